"""The draws of a Markov chain, drawn from once more."""

from __future__ import annotations

import math
from typing import Any

from vi_reparam.programs.joint import Array, Draws, JointGuide, Key, Layout, Params
from vi_reparam.programs.vector import Vector


class RefinedGuide(JointGuide):
    """Each draw is one of the stored vectors, chosen at random. Its density is not known: log q is NaN."""

    kind = "refined"

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> Any:
        ops, xp, dtype = self.ops, self.ops.xp, self.ops.float_dtype()
        start = self.start(layout, args, kwargs)
        vectors = self.constant("vectors", lambda _: start()[None])
        num = vectors.shape[0]

        def noise(key: Key, lead: tuple[int, ...]) -> Array:
            return ops.uniform(key, (*lead, 1), dtype)

        def draw(own: Array, row: Array | None) -> Vector:
            place = xp.clip(xp.astype(xp.ceil(own * num), xp.int32) - 1, 0, num - 1)
            return Vector(xp.take(vectors, place, axis=0)[0], xp.full((), math.nan, dtype=dtype))

        return self.vector(layout, noise, draw, features)

    def matched(self, layout: Layout, draws: Draws) -> Params:
        return self.named(
            {"vectors": self.ops.vmap(layout.pack)({p.site.name: draws[p.site.name] for p in layout.parts})}
        )
