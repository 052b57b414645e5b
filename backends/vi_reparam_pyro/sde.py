"""The learned diffusion as a Pyro guide."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution

from vi_reparam.backend.data import Data
from vi_reparam.errors import ArgumentError
from vi_reparam.gaussians.bases import Diagonal, Mixture
from vi_reparam.guides import SDE
from vi_reparam.guides.gaussian import Gaussian
from vi_reparam.guides.selection import ALL, SiteSelection
from vi_reparam.programs.layout import Layout
from vi_reparam.sde import latent
from vi_reparam.sde.network import MLP
from vi_reparam_pyro.joint import (
    Joint,
    JointGuide,
    Vector,
    base_params,
    bends,
    choose_component,
    match_draws,
    normal_start,
    take_gaussian,
)
from vi_reparam_pyro.lanes import vmap as lanes
from vi_reparam_pyro.ops.ops import mix, ops

Array = Any


class SDEGuide(JointGuide):
    """A path from the base's noise to the latents, weighted by the kernels that it took.

    Args:
        model: the model.
        family: the specification.
        cover: which latents it draws.
        steps: other steps than the trained ones, to draw with.
    """

    kind = "sde"

    def __init__(
        self, model: Any, family: SDE, cover: SiteSelection = ALL, *, steps: latent.Steps | None = None
    ) -> None:
        super().__init__(model, family, cover)
        self.steps = steps
        self._said: set[str] = set()

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> TorchDistribution:
        size, dtype, prefix = layout.size, torch.get_default_dtype(), f"{self.scope}{self.prefix}"
        family: SDE = self.family.resolve(layout)
        base = base_params(prefix, family.base, family.init_scale, self.start(layout, args, kwargs))
        if not family.learn_base:
            base = {name: p.detach() for name, p in base.items()}
        log_ratio = None
        num_steps = family.num_steps if self.steps is None else self.steps.num_steps
        if family.variance == "learned" and self.steps is None:
            log_ratio = pyro.param(f"{prefix}_log_deviation", torch.zeros(family.num_steps, size))
        network = self._network(layout, family.base.num_components, 0 if features is None else features.shape[1])
        target = self._target(layout, args, kwargs)
        bend = bends(prefix, layout, features) if family.skew else lambda row: None
        clip = family.network.clip if isinstance(family.network, MLP) else MLP().clip

        def noise(key: int, *lead: int) -> tuple[Array, ...]:
            key, component = choose_component(family.base, key, lead)
            start_key, noise_key = ops.split(key, 2)
            start = ops.normal(start_key, (*lead, size), dtype)
            steps = ops.normal(noise_key, (*lead, num_steps, size), dtype)
            return (start, steps) if component is None else (start, steps, component)

        def draw(own: tuple[Array, ...], row: Array | None) -> Vector:
            start, steps, *chosen = own
            component = chosen[0] if chosen else None
            made = latent.draw(
                ops,
                family,
                base,
                log_ratio,
                network(component, row),
                start,
                steps,
                component=component,
                bend=bend(row),
                target=target,
                slope=_slope,
                clip=clip,
                steps=self.steps,
            )
            return Vector(made.value, made.log_q, made.score_term, frozen=family.gradient == "path")

        if layout.plate is None:
            return Joint(size, lambda key: draw(noise(key), None), self.site)
        return Joint.each(size, noise, draw, self.site, features, layout.plate)

    def _network(self, layout: Layout, num_components: int, num_features: int) -> Callable[..., latent.Residual]:
        """The drift's network, given the component and the row of features."""
        spec, grid = self.family.network, self.family.schedule.grid(1)
        if not isinstance(spec, MLP):
            if isinstance(spec, torch.nn.Module):
                pyro.module(f"{self.scope}{self.prefix}_network", spec)
            return lambda component, row: UserDrift(spec, row)
        params = {}
        shapes = spec.shapes(layout.size, num_components, num_features)
        for number, (name, (shape, deviation)) in enumerate(shapes.items()):
            params[name] = pyro.param(f"{self.scope}{self.prefix}_{name}", normal_start(shape, deviation, number))
        span = grid[0], grid[-1]
        return lambda component, row: latent.MLPResidual(ops, spec, params, span, component, row)

    def _target(self, layout: Layout, args: Any, kwargs: Any) -> Callable[[Array], Array] | None:
        """Log p of a latent vector, all data and parameters live; None where the drift goes without."""
        spec = self.family.network
        wanted = spec.target if isinstance(spec, MLP) else "off"
        if wanted == "off" or self.cover != ALL or layout.plate is not None:  # other latents are not at hand
            return None
        plates = self.latents.structure(args, kwargs).subsampled
        if plates and wanted == "auto":
            self._say(
                f"plate {plates[0]!r} is subsampled, so the drift goes without the gradient of log p (it would "
                "be a minibatch's); MLP(target='full') takes it from all of the data, MLP(target='off') says no more"
            )
            return None

        return self.log_joint(layout, {}, args, kwargs)

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(what, stacklevel=2)

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: int) -> list[dict[str, Array]]:
        family: SDE = self.family.resolve(self.layout(*data.call))
        if not family.warm_start or family.is_local:
            return [{}]
        spec = Diagonal() if isinstance(family.base, Mixture) else family.base
        params = dict(fit(Gaussian(spec, family.init_scale), family.warm_start, key).params)
        own = take_gaussian(params, spec)
        if isinstance(family.base, Mixture):
            own = family.base.parameters(ops, mix(0), own["loc"], own["log_scale"].exp())
        return [{**params, **{f"{self.prefix}_{name}": value for name, value in own.items()}}]

    def matched(self, layout: Layout, draws: dict[str, Array]) -> dict[str, Array]:
        family: SDE = self.family.resolve(layout)
        center, scale, bend = match_draws(layout, draws, bends=family.skew)
        found = family.base.parameters(ops, mix(0), center, scale)
        if family.skew and any(layout.positive()):
            found["skew"] = bend
        return {f"{self.prefix}_{name}": value for name, value in found.items()}

    def with_steps(self, steps: latent.Steps) -> SDEGuide:
        """The same guide with other steps."""
        made = SDEGuide(self.model, self.family, self.cover, steps=steps)
        made.scope = self.scope
        made.share(self)
        return made


class UserDrift:
    """A user's own drift network: a module called with x and lambda."""

    def __init__(self, module: Any, features: Array | None) -> None:
        self.module = module
        self.features = () if features is None else (features,)

    def rows(self, lambdas: tuple[float, ...], dtype: Any, *, frozen: bool) -> Any:
        return torch.as_tensor(lambdas, dtype=dtype)

    def at(self, x: Array, row: Any, *, frozen: bool) -> tuple[Array, Array | None]:
        if frozen and isinstance(self.module, torch.nn.Module):
            held = {name: p.detach() for name, p in self.module.named_parameters()}
            r = torch.func.functional_call(self.module, held, (x, row, *self.features))
        else:
            r = self.module(x, row, *self.features)
        if r.shape != x.shape:
            raise ArgumentError(f"the drift network returned shape {tuple(r.shape)} for x of shape {tuple(x.shape)}")
        return r, None


def _slope(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The gradient, inside lanes by `torch.func`, and outside by autograd, which lets programs read values."""
    if lanes.running():
        return torch.func.grad(fn)

    def slope(x: Array) -> Array:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(fn(x), x)[0]

    return slope
