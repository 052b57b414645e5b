"""One Gaussian over all latents."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Ops
from vi_reparam.gaussians import path_gradient as path
from vi_reparam.gaussians.bases import Base, Diagonal
from vi_reparam.gaussians.pathfinder import MOST_RUNS
from vi_reparam.gaussians.preconditioner import Preconditioner
from vi_reparam.guides.gaussian import Gaussian
from vi_reparam.programs.joint import Array, Draws, JointGuide, Key, Layout, Params
from vi_reparam.programs.vector import Vector


class GaussianGuide(JointGuide):
    """One Gaussian over all latents, in the frame that the search found."""

    kind = "gaussian"

    @property
    def transports(self) -> bool:  # type: ignore[override]
        return self.family.gaussian.num_components == 1

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> Any:
        ops, family = self.ops, self.family
        base = family.gaussian.resolve(layout)
        start = self.start(layout, args, kwargs)
        frame = self.frame(layout.size, family.init_scale, start, dense=family.is_dense(layout.size))
        tail = self.tail()
        params = self.base_params(base, 1.0, lambda: ops.xp.zeros(layout.size, dtype=ops.float_dtype()))
        gradient = self.gradient(family.gradient)

        def noise(key: Key, lead: tuple[int, ...]) -> Any:
            key, component = self.choose_component(base, key, lead)
            normal = ops.normal(key, (*lead, layout.size), ops.float_dtype())
            return normal if component is None else (normal, component)

        def draw(own: Any, row: Array | None) -> Vector:
            if not isinstance(own, tuple):
                made = path.gaussian(ops, base, params, frame, tail, own, gradient=gradient)
                return Vector(*made, frozen=family.gradient == "path")
            y = base.to_latent(ops, base.component(ops, params, own[1]), own[0])
            held = {name: ops.stop_gradient(p) for name, p in params.items()}
            return Vector(frame.place(y), base.log_prob(ops, held, y) - frame.log_det(ops), frozen=True)

        return self.vector(layout, noise, draw, features)

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Key) -> list[Params]:
        if self.family.gaussian.diagonal_first:
            params = dict(fit(Gaussian(Diagonal(), self.family.init_scale), None, key).params)
            found = frame_of(self.backend, take_gaussian(self.backend, params, Diagonal()))
            return [{**params, **self._at(found)}]
        if not self.family.is_dense(self.layout(*data.call).size):
            return [{}]
        modes = [place for place in self.searcher.run(data, key) if place.is_mode]
        return [self._at(place.frame) for place in modes[:MOST_RUNS]] or [{}]

    def _at(self, frame: Preconditioner) -> Params:
        return self.named({"center": frame.center, "root": frame.root})

    def matched(self, layout: Layout, draws: Draws) -> Params:
        return self.matched_frame(layout, draws, bends=False, dense=self.family.is_dense(layout.size))

    def location(self, params: Params) -> Preconditioner | None:
        own = {name: params[f"{self.prefix}_{name}"] for name in self.family.gaussian.names}
        if own["loc"].ndim != 1:
            return None
        frame = params[f"{self.prefix}_center"], params[f"{self.prefix}_root"]
        return frame_of(self.backend, fold(self.backend, *frame, own))


def take_gaussian(backend: Backend, params: Params, spec: Base) -> Params:
    """Take a `GaussianGuide`'s parameters out of these, as those of its base in the model's own coordinates."""
    center, root = params.pop("gaussian_center"), params.pop("gaussian_root")
    params.pop("gaussian_tail")
    return fold(backend, center, root, {name: params.pop(f"gaussian_{name}") for name in spec.names})


def fold(backend: Backend, center: Array, root: Array, params: Params) -> Params:
    """`Preconditioner.fold`."""
    return _fold(backend.ops)(center, root, params)


def frame_of(backend: Backend, params: Params) -> Preconditioner:
    """`Preconditioner.of`."""
    return Preconditioner(*_frame_of(backend.ops)(params))


# as one program each: operation by operation they would be compiled for long


@functools.cache
def _fold(ops: Ops) -> Callable[..., Params]:
    return ops.compiled(lambda center, root, params: Preconditioner(center, root).fold(ops, params))


@functools.cache
def _frame_of(ops: Ops) -> Callable[[Params], tuple[Array, Array]]:
    def run(params: Params) -> tuple[Array, Array]:
        found = Preconditioner.of(ops, params)
        return found.center, found.root

    return ops.compiled(run)
