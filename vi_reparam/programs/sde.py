"""The learned diffusion over all latents."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Ops
from vi_reparam.errors import ArgumentError
from vi_reparam.gaussians.bases import Diagonal, DiagonalMixture
from vi_reparam.guides.gaussian import Gaussian
from vi_reparam.guides.sde import SDE
from vi_reparam.guides.selection import ALL, SiteSelection
from vi_reparam.programs.gaussian import take_gaussian
from vi_reparam.programs.joint import Array, Draws, JointGuide, Key, Layout, Params
from vi_reparam.programs.vector import Vector
from vi_reparam.sde import latent
from vi_reparam.sde.network import MLP


class SDEGuide(JointGuide):
    """A path from the base's noise to the latents, weighted by the kernels that it took.

    Attributes:
        steps: other steps than the trained ones, to draw with.
        model_params: names of the model's parameters, where the drift computes with log p.
    """

    kind = "sde"

    steps: latent.Steps | None = None

    def __init__(self, backend: Backend, model: Any, family: SDE, selection: SiteSelection = ALL) -> None:
        super().__init__(backend, model, family, selection)
        self.model_params = frozenset[str]()
        self._said: set[str] = set()

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> Any:
        ops, size, dtype = self.ops, layout.size, self.ops.float_dtype()
        family: SDE = self.family.resolve(layout)
        base = self.base_params(family.base, family.init_scale, self.start(layout, args, kwargs))
        if not family.learn_base:
            base = {name: ops.stop_gradient(p) for name, p in base.items()}
        log_ratio = None
        num_steps = family.num_steps if self.steps is None else self.steps.num_steps
        if family.variance == "learned" and self.steps is None:
            log_ratio = self.param("log_deviation", ops.xp.zeros((family.num_steps, size), dtype=dtype))
        network = self._network(layout, family.base.num_components, 0 if features is None else features.shape[1])
        target = self._target(layout, args, kwargs)
        bend = self.bends(layout, features, wanted=family.skew)
        clip = family.network.clip if isinstance(family.network, MLP) else MLP().clip
        options = {"target": target, "slope": ops.grad, "clip": clip, "steps": self.steps}

        def noise(key: Key, lead: tuple[int, ...]) -> tuple[Array, ...]:
            key, component = self.choose_component(family.base, key, lead)
            start_key, noise_key = ops.split(key, 2)
            start = ops.normal(start_key, (*lead, size), dtype)
            steps = ops.normal(noise_key, (*lead, num_steps, size), dtype)
            return (start, steps) if component is None else (start, steps, component)

        def draw(own: tuple[Array, ...], row: Array | None) -> Vector:
            start, steps, *chosen = own
            component = chosen[0] if chosen else None
            parts = network(component, row), start, steps
            made = latent.draw(ops, family, base, log_ratio, *parts, component=component, bend=bend(row), **options)
            return Vector(made.value, made.log_q, made.score_term, frozen=family.gradient == "path")

        return self.vector(layout, noise, draw, features)

    def _network(self, layout: Layout, num_components: int, num_features: int) -> Callable[..., latent.Residual]:
        """The drift's network, given the component and the row of features."""
        ops, spec, grid = self.ops, self.family.network, self.family.schedule.grid(1)
        if not isinstance(spec, MLP):
            live, frozen = self.host.drift(spec, f"{self.scope}{self.prefix}_network")
            return lambda component, row: UserDrift(ops, live, frozen, row)
        params = self.drawn_params(spec.shapes(layout.size, num_components, num_features))
        span = grid[0], grid[-1]
        return lambda component, row: latent.MLPResidual(ops, spec, params, span, component, row)

    def _target(self, layout: Layout, args: Any, kwargs: Any) -> Callable[[Array], Array] | None:
        """log p of a latent vector, all data and parameters live; None where the drift goes without."""
        spec = self.family.network
        wanted = spec.target if isinstance(spec, MLP) else "off"
        if wanted == "off" or self.selection != ALL or layout.plate is not None:  # other latents are not at hand
            return None
        structure = self.latents.structure(args, kwargs)
        if structure.mutable:
            self._say("the model holds mutable state, so the drift goes without the gradient of log p")
            return None
        if structure.subsampled and wanted == "auto":
            self._say(
                f"plate {structure.subsampled[0]!r} is subsampled, so the drift goes without the gradient of log p (it "
                "would be a minibatch's); MLP(target='full') takes it from all of the data, MLP(target='off') says no "
                "more"
            )
            return None
        params = self.backend.tracer.outer_params(self.model, args, kwargs) if structure.params else {}
        self.model_params = frozenset(params)
        return self.log_joint(layout, params, args, kwargs)

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(what, stacklevel=2)

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Key) -> list[Params]:
        family: SDE = self.family.resolve(self.layout(*data.call))
        if not family.warm_start or family.is_local:
            return [{}]
        spec = Diagonal() if isinstance(family.base, DiagonalMixture) else family.base
        params = dict(fit(Gaussian(spec, family.init_scale), family.warm_start, key).params)
        own = take_gaussian(self.backend, params, spec)
        if isinstance(family.base, DiagonalMixture):
            scale = self.ops.xp.exp(own["log_scale"])
            own = family.base.parameters(self.ops, self.ops.key(0), own["loc"], scale)
        return [{**params, **self.named(own)}]

    def matched(self, layout: Layout, draws: Draws) -> Params:
        family: SDE = self.family.resolve(layout)
        center, scale, bend = self.match_draws(layout, draws, bends=family.skew)
        found = family.base.parameters(self.ops, self.ops.key(0), center, scale)
        if family.skew and any(layout.positive()):
            found["skew"] = bend
        return self.named(found)

    def with_steps(self, steps: latent.Steps) -> SDEGuide:
        """The same guide with other steps."""
        made = copy.copy(self)
        made.steps = steps
        return made


class UserDrift:
    """A user's own drift network.

    Args:
        live: the network, a function of x, lambda and the row of features if there is one; `frozen`: the same with its
            weights as constants.
        features: the row; None for none.
    """

    def __init__(
        self, ops: Ops, live: Callable[..., Array], frozen: Callable[..., Array], features: Array | None
    ) -> None:
        self.ops, self.live, self.frozen = ops, live, frozen
        self.features = () if features is None else (features,)

    def rows(self, lambdas: tuple[float, ...], dtype: Any, *, frozen: bool) -> Any:
        return self.ops.xp.asarray(lambdas, dtype=dtype)

    def at(self, x: Array, row: Any, *, frozen: bool) -> tuple[Array, Array | None]:
        r = (self.frozen if frozen else self.live)(x, row, *self.features)
        if r.shape != x.shape:
            raise ArgumentError(f"the drift network returned shape {tuple(r.shape)} for x of shape {tuple(x.shape)}")
        return r, None
