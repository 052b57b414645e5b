"""Several Gaussians over all latents, one at each place that the search found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from vi_reparam.backend.data import Data
from vi_reparam.numerics.special import LOG_2PI, log_sum_exp
from vi_reparam.programs.joint import Array, Draws, JointGuide, Key, Layout, Params
from vi_reparam.programs.vector import Vector

WIDE = 2.0
"""How much wider than its component the part of the draws is that makes the tails."""


class MixtureGuide(JointGuide):
    """A mixture whose weights are constants of the fit, so that the choice of a component needs no score term.

    A small part of each component's draws (`tail`) is wider, if the importance weights ask for that.
    """

    kind = "mixture"

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> Any:
        ops, xp, size, dtype = self.ops, self.ops.xp, layout.size, self.ops.float_dtype()
        own = self._params(size, self.start(layout, args, kwargs))
        wanted = self.gradient(self.family.gradient)
        held = {name: ops.stop_gradient(p) for name, p in own.items()} if wanted == "path" else own
        loc, scale = placed(ops, own)
        score = scorer(ops, held)
        weights = xp.exp(own["log_weight"])
        upper = xp.cumulative_sum(weights) / xp.sum(weights)
        lower = xp.concat([xp.zeros_like(upper[:1]), upper[:-1]])

        def noise(key: Key, lead: tuple[int, ...]) -> tuple[Array, Array]:
            key, choice = ops.split(key, 2)
            return ops.normal(key, (*lead, size), dtype), ops.uniform(choice, (*lead, 2), dtype)

        def draw(own_noise: tuple[Array, Array], row: Array | None) -> Vector:
            n, choice = own_noise
            # a product, since an index may be a lane's own
            chosen = xp.astype((choice[:1] > lower) & (choice[:1] <= upper), dtype)
            n = n * xp.where(choice[1] <= own["tail"], WIDE, 1.0)
            mixed = xp.reshape(chosen @ xp.reshape(scale, (scale.shape[0], -1)), (size, size))
            z = chosen @ loc + mixed @ n
            return Vector(z, log_sum_exp(ops, score(z), axis=0), frozen=self.family.gradient == "path")

        return self.vector(layout, noise, draw, features)

    def _params(self, size: int, start: Callable[[], Array]) -> Params:
        ops, xp, dtype = self.ops, self.ops.xp, self.ops.float_dtype()
        num = self.family.num_components or 1

        def centers(key: Key) -> Array:
            moves = self.family.spread * ops.normal(key, (num, size), dtype)
            return xp.reshape(start(), (1, -1)) + moves * xp.reshape(xp.arange(num) > 0, (-1, 1))

        center = self.constant("center", centers)
        num = center.shape[0]
        eyes = xp.zeros((num, 1, 1), dtype=dtype) + xp.reshape(xp.eye(size, dtype=dtype), (1, size, size))
        return {
            "center": center,
            "root": self.constant("root", 0.1 * eyes),
            "log_weight": self.constant("log_weight", xp.full((num,), -math.log(num), dtype=dtype)),
            "tail": self.tail(),
            **self.drawn_params(
                {"loc": ((num, size), 0.0), "log_scale": ((num, size), 0.0), "lower": ((num, size, size), 0.0)}
            ),
        }

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Key) -> list[Params]:
        ops, xp = self.ops, self.ops.xp
        places = self.searcher.run(data, key)[: self.family.num_components]
        if not places:
            return [{}]
        chosen = [*range(len(places)), *[0] * ((self.family.num_components or 0) - len(places))]  # the rest at the best
        moves = self.family.spread * ops.normal(key, (len(chosen), self.layout(*data.call).size), ops.float_dtype())
        frames = [places[i].frame for i in chosen]
        centers = [f.place(moves[j] * float(j >= len(places))) for j, f in enumerate(frames)]
        log_weight = ops.asarray([places[i].bound - places[0].bound - math.log(chosen.count(i)) for i in chosen])
        log_weight = log_weight - log_sum_exp(ops, log_weight, axis=0)
        roots = xp.stack([f.root for f in frames])
        return [self.named({"center": xp.stack(centers), "root": roots, "log_weight": log_weight})]

    def matched(self, layout: Layout, draws: Draws) -> Params:
        found = self.matched_frame(layout, draws, bends=False, dense=True)
        return {name: value[None] for name, value in found.items()}

    def component_log_probs(self, params: Params, vectors: Array) -> Array:
        """Log density of each component at these vectors, weights and tails left out. Shape ``[N, components]``.

        Args:
            params: of the posterior.
            vectors: shape ``[N, D]``.
        """
        names = ("center", "root", "loc", "log_scale", "lower")
        own = {name: params[f"{self.prefix}_{name}"] for name in names}
        zero = self.ops.xp.zeros_like(own["center"][:, 0])
        return self.ops.vmap(scorer(self.ops, {**own, "log_weight": zero, "tail": zero[0]}))(vectors)


def placed(ops: Any, params: Params) -> tuple[Array, Array]:
    """Locations and scales of the components, of shapes ``[K, D]`` and ``[K, D, D]``, the latter triangular."""
    xp, root = ops.xp, params["root"]
    size = root.shape[-1]
    own = xp.tril(params["lower"], k=-1) + xp.reshape(xp.eye(size, dtype=root.dtype), (1, size, size))
    scale = root @ (xp.exp(params["log_scale"])[:, :, None] * own)
    return params["center"] + (root @ params["loc"][:, :, None])[:, :, 0], scale


def scorer(ops: Any, params: Params) -> Callable[[Array], Array]:
    """Log weight plus log density of each component at a vector of shape ``[D]``. Shape ``[K]``."""
    xp = ops.xp
    loc, scale = placed(ops, params)
    inverse = xp.linalg.inv(scale)
    norm = params["log_weight"] - xp.sum(xp.log(xp.abs(xp.linalg.diagonal(scale))), axis=-1)
    size, tail = loc.shape[-1], params["tail"]
    floor = xp.finfo(scale.dtype).smallest_normal
    log_part, log_wide = xp.log1p(-tail), xp.log(tail + floor) - size * math.log(WIDE)

    def score(z: Array) -> Array:
        x = (inverse @ (xp.reshape(z, (1, -1)) - loc)[:, :, None])[:, :, 0]
        square = -0.5 * xp.sum(x * x, axis=-1)
        both = xp.stack([log_part + square, log_wide + square / WIDE**2])
        return norm - 0.5 * size * LOG_2PI + log_sum_exp(ops, both, axis=0)

    return score
