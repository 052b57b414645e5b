"""A normalizing flow over all latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vi_reparam.backend.data import Data
from vi_reparam.gaussians import path_gradient as path
from vi_reparam.gaussians.bases import Diagonal
from vi_reparam.gaussians.pathfinder import LARGEST
from vi_reparam.guides.flow import CHEAP_INVERSES
from vi_reparam.guides.gaussian import FullRank, Gaussian
from vi_reparam.programs.gaussian import frame_of, take_gaussian
from vi_reparam.programs.joint import Array, Draws, JointGuide, Key, Layout, Params
from vi_reparam.programs.vector import Vector


class FlowGuide(JointGuide):
    """A Gaussian's frame, and a bijection that bends it."""

    kind = "flow"
    transports = True

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> Any:
        ops, size, family = self.ops, layout.size, self.family
        width = 0.1 if layout.plate is None else 1.0  # one frame for all elements, which lie apart
        frame = self.frame(size, width, self.start(layout, args, kwargs), dense=size <= LARGEST)
        tail = self.tail()
        network = self.host.bijection(family, size, None if features is None else features.shape[1])
        weights = self.weights(network)
        live = network.bind(weights)
        held = network.bind({name: ops.stop_gradient(weight) for name, weight in weights.items()})
        bend = self.bends(layout, features, wanted=family.skew)
        wanted, cheap = family.gradient_at(size), family.kind_at(size) in CHEAP_INVERSES
        gradient = self.gradient(wanted)

        def noise(key: Key, lead: tuple[int, ...]) -> Array:
            return ops.normal(key, (*lead, size), ops.float_dtype())

        def draw(own: Array, row: Array | None) -> Vector:
            z, log_q = path.flow(
                ops, live, held, frame, tail, own, row=row, bend=bend(row), gradient=gradient, cheap_inverse=cheap
            )
            return Vector(z, log_q, frozen=wanted == "path")

        return self.vector(layout, noise, draw, features)

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Key) -> list[Params]:
        if self.family.is_local:
            return [{}]
        spec = FullRank() if self.layout(*data.call).size <= LARGEST else Gaussian(Diagonal())
        params = dict(fit(spec, None, key).params)
        found = frame_of(self.backend, take_gaussian(self.backend, params, spec.gaussian))
        return [{**params, **self.named({"center": found.center, "root": found.root})}]

    def matched(self, layout: Layout, draws: Draws) -> Params:
        return self.matched_frame(layout, draws, bends=self.family.skew, dense=layout.size <= LARGEST)
