"""The learned diffusion as a NumPyro guide."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.handlers import block

from vi_reparam.backend.data import Data
from vi_reparam.errors import ArgumentError
from vi_reparam.gaussians.bases import Diagonal, Mixture
from vi_reparam.guides import SDE
from vi_reparam.guides.gaussian import Gaussian
from vi_reparam.guides.selection import ALL, SiteSelection
from vi_reparam.programs.latents import origin
from vi_reparam.programs.layout import Layout
from vi_reparam.sde import latent
from vi_reparam.sde.network import MLP
from vi_reparam_numpyro.backend import backend
from vi_reparam_numpyro.joint import (
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
from vi_reparam_numpyro.ops.ops import ops

Array = jax.Array


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

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> dist.Distribution:
        size, dtype, prefix = layout.size, jnp.result_type(float), self.prefix
        family: SDE = self.family.resolve(layout)
        base = base_params(prefix, family.base, family.init_scale, self.start(layout, args, kwargs))
        if not family.learn_base:
            base = {name: lax.stop_gradient(p) for name, p in base.items()}
        log_ratio = None
        num_steps = family.num_steps if self.steps is None else self.steps.num_steps
        if family.variance == "learned" and self.steps is None:
            log_ratio = numpyro.param(f"{prefix}_log_deviation", jnp.zeros((family.num_steps, size), dtype))
        network = self._network(layout, family.base.num_components, 0 if features is None else features.shape[1])
        target = self._target(layout, args, kwargs)
        bend = bends(prefix, layout, features) if family.skew else lambda row: None
        clip = family.network.clip if isinstance(family.network, MLP) else MLP().clip

        def make(key: Array, row: Array | None = None) -> Vector:
            key, component = choose_component(family.base, key)
            start_key, noise_key = random.split(key)
            made = latent.draw(
                ops,
                family,
                base,
                log_ratio,
                network(component, row),
                random.normal(start_key, (size,), dtype),
                random.normal(noise_key, (num_steps, size), dtype),
                component=component,
                bend=bend(row),
                target=target,
                slope=jax.grad,
                clip=clip,
                steps=self.steps,
            )
            return Vector(made.value, made.log_q, made.score_term, frozen=family.gradient == "path")

        if layout.plate is None:
            return Joint(size, make, self.site)
        return Joint.each(size, make, self.site, features, layout.plate)

    def _network(self, layout: Layout, num_components: int, num_features: int) -> Callable[..., latent.Residual]:
        """The drift's network, given the component and the row of features."""
        spec, grid = self.family.network, self.family.schedule.grid(1)
        if not isinstance(spec, MLP):
            module = _register(spec, self.prefix)
            return lambda component, row: UserDrift(module, layout.size, row)
        params = {}
        shapes = spec.shapes(layout.size, num_components, num_features)
        for name, (shape, deviation) in shapes.items():
            params[name] = numpyro.param(f"{self.prefix}_{name}", normal_start(shape, deviation))
        span = grid[0], grid[-1]
        return lambda component, row: latent.MLPResidual(ops, spec, params, span, component, row)

    def _target(self, layout: Layout, args: Any, kwargs: Any) -> Callable[[Array], Array] | None:
        """Log p of a latent vector, all data and parameters live; None where the drift goes without."""
        spec = self.family.network
        wanted = spec.target if isinstance(spec, MLP) else "off"
        if wanted == "off" or self.cover != ALL or layout.plate is not None:  # other latents are not at hand
            return None
        learned, mutable, plates = self.latents.structure(args, kwargs)
        if mutable:
            self._say("the model holds mutable state, so the drift goes without the gradient of log p")
            return None
        if plates and wanted == "auto":
            self._say(
                f"plate {plates[0]!r} is subsampled, so the drift goes without the gradient of log p (it would be a "
                "minibatch's); MLP(target='full') takes it from all of the data, MLP(target='off') says no more"
            )
            return None
        with block(hide_fn=lambda msg: msg["type"] != "param"):  # the parameters come from outside, as they are now
            values = {n: origin(backend, s.support, s.shape) for n, s in self.latents.sites(args, kwargs).items()}
            found = backend.tracer.run(self.model, args, kwargs, random.key(0), values=values, full_data=True)
        params = {n: found[n].value for n in learned}

        return self.log_joint(layout, params, args, kwargs)

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(what, stacklevel=2)

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Any) -> list[dict[str, Array]]:
        family: SDE = self.family.resolve(self.layout(*data.call))
        if not family.warm_start or family.is_local:
            return [{}]
        spec = Diagonal() if isinstance(family.base, Mixture) else family.base
        params = dict(fit(Gaussian(spec, family.init_scale), family.warm_start, key).params)
        own = take_gaussian(params, spec)
        if isinstance(family.base, Mixture):
            own = family.base.parameters(ops, random.key(0), own["loc"], jnp.exp(own["log_scale"]))
        return [{**params, **{f"{self.prefix}_{name}": value for name, value in own.items()}}]

    def matched(self, layout: Layout, draws: dict[str, Array]) -> dict[str, Array]:
        family: SDE = self.family.resolve(layout)
        center, scale, bend = match_draws(layout, draws, bends=family.skew)
        found = family.base.parameters(ops, random.key(0), center, scale)
        if family.skew and any(layout.positive()):
            found["skew"] = bend
        return {f"{self.prefix}_{name}": value for name, value in found.items()}

    def with_steps(self, steps: latent.Steps) -> SDEGuide:
        """The same guide with other steps."""
        made = SDEGuide(self.model, self.family, self.cover, steps=steps)
        made.share(self)
        return made


class UserDrift:
    """A user's own drift network: a module called with x and lambda."""

    def __init__(self, module: Any, size: int, features: Array | None) -> None:
        self.module, self.size = module, size
        self.features = () if features is None else (features,)
        self.fixed = jax.tree.map(lambda p: lax.stop_gradient(p) if _is_array(p) else p, module)

    def rows(self, lambdas: tuple[float, ...], dtype: Any, *, frozen: bool) -> Any:
        return jnp.asarray(lambdas, dtype)

    def at(self, x: Array, row: Any, *, frozen: bool) -> tuple[Array, Array | None]:
        r = (self.fixed if frozen else self.module)(x, row, *self.features)
        if jnp.shape(r) != jnp.shape(x):
            raise ArgumentError(f"the drift network returned shape {jnp.shape(r)} for x of shape {jnp.shape(x)}")
        return r, None


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array)


def _register(module: Any, prefix: str) -> Any:
    """The module with its arrays as a `numpyro.param`; a function, since a module that can be called looks like one."""
    import equinox

    arrays, rest = equinox.partition(module, equinox.is_inexact_array)
    return equinox.combine(numpyro.param(f"{prefix}_network", lambda key: arrays), rest)
