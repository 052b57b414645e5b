"""Several Gaussians over all latents, one at each place that the search found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from vi_reparam.backend.data import Data
from vi_reparam.gaussians.bases import lift
from vi_reparam.numerics.special import LOG_2PI, log_sum_exp
from vi_reparam.programs.joint import Array, Draws, JointGuide, Key, Layout, Params
from vi_reparam.programs.searcher import Place
from vi_reparam.programs.student_t import standard
from vi_reparam.programs.vector import Vector

DF = 4
"""Degrees of freedom of the part of the draws that makes the tails."""

WIDE = 1.5
"""How much wider than the whole mixture it is."""


class MixtureGuide(JointGuide):
    """A mixture whose weights are constants of the fit, so that the choice of a component needs no score term.

    A small part of the draws (`tail`) comes from a Student-t over all of it, if the importance weights ask for that.
    """

    kind = "mixture"

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> Any:
        ops, xp, size, dtype = self.ops, self.ops.xp, layout.size, self.ops.float_dtype()
        own = self._params(size, self.start(layout, args, kwargs))
        wanted = self.gradient(self.family.gradient)
        held = {name: ops.stop_gradient(p) for name, p in own.items()} if wanted == "path" else own
        loc, scale = placed(ops, own)
        center, root = whole = over_all(ops, {name: ops.stop_gradient(p) for name, p in own.items()})
        score = scorer(ops, held, whole)
        weights = xp.exp(own["log_weight"])
        upper = xp.cumulative_sum(weights) / xp.sum(weights)
        lower = xp.concat([xp.zeros_like(upper[:1]), upper[:-1]])

        def noise(key: Key, lead: tuple[int, ...]) -> tuple[Array, Array]:
            key, choice = ops.split(key, 2)
            return ops.normal(key, (*lead, size + DF), dtype), ops.uniform(choice, (*lead, 2), dtype)

        def draw(own_noise: tuple[Array, Array], row: Array | None) -> Vector:
            n, choice = own_noise[0][:size], own_noise[1]
            # a product, since an index may be a lane's own
            chosen = xp.astype((choice[:1] > lower) & (choice[:1] <= upper), dtype)
            mixed = xp.reshape(chosen @ xp.reshape(scale, (scale.shape[0], -1)), (size, size))
            far = center + root @ (n * xp.sqrt(DF / xp.sum(own_noise[0][size:] ** 2)))
            z = xp.where(choice[1:] <= own["tail"], far, chosen @ loc + mixed @ n)
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
        eyes = xp.zeros((num, 1, 1), dtype=dtype) + lift(ops, xp.eye(size, dtype=dtype), 3)
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
        ops = self.ops
        places = self.searcher.run(data, key)[: self.family.num_components]
        if not places:
            return [{}]
        chosen = [*range(len(places)), *[0] * ((self.family.num_components or 0) - len(places))]  # the rest at the best
        moves = self.family.spread * ops.normal(key, (len(chosen), self.layout(*data.call).size), ops.float_dtype())
        frames = [places[i].frame for i in chosen]
        centers = [f.place(moves[j] * float(j >= len(places))) for j, f in enumerate(frames)]
        masses = [places[i].bound - math.log(chosen.count(i)) for i in chosen]
        return [self.named(self._at(centers, [f.root for f in frames], masses))]

    def of_gaussians(self, places: Sequence[Place], gaussians: Sequence[Params]) -> Params:
        """All parameters, of each place's frame and a full covariance's own in it."""
        own = {name: self.ops.xp.stack([g[name] for g in gaussians]) for name in gaussians[0]}
        centers, roots = [place.frame.center for place in places], [place.frame.root for place in places]
        known = self._at(centers, roots, [place.bound for place in places])
        return self.named({**known, **own, "tail": self.ops.asarray(0.0)})

    def _at(self, centers: list[Array], roots: list[Array], masses: list[float]) -> Params:
        """Frames of the components, and their weights by the logarithms of their masses, as parameters."""
        xp, log_weight = self.ops.xp, self.ops.asarray([mass - max(masses) for mass in masses])
        log_weight = log_weight - log_sum_exp(self.ops, log_weight, axis=0)
        return {"center": xp.stack(centers), "root": xp.stack(roots), "log_weight": log_weight}

    def matched(self, layout: Layout, draws: Draws) -> Params:
        found = self.matched_frame(layout, draws, bends=False, dense=True)
        return {name: value[None] for name, value in found.items()}

    def component_log_probs(self, params: Params, vectors: Array) -> Array:
        """Log density of each component at these vectors, weights and tails left out. Shape ``[N, components]``.

        Args:
            params: of the posterior.
            vectors: shape ``[N, D]``.
        """
        own = self._own(params)
        zero = self.ops.xp.zeros_like(own["log_weight"])
        return self.ops.vmap(scorer(self.ops, {**own, "log_weight": zero}))(vectors)

    def log_prob(self, params: Params) -> Callable[[Array], Array]:
        """Log density of the mixture as a function of a vector."""
        own = self._own(params)
        score = scorer(self.ops, own, over_all(self.ops, own))
        return lambda z: log_sum_exp(self.ops, score(z), axis=0)

    def nearest_centers(self, params: Params, vectors: Array) -> Any:
        """Of each vector, the location of its likeliest component, as an array on the host. Shape ``[N, D]``."""
        own = self._own(params)
        scores = self.ops.to_numpy(self.ops.compiled(self.ops.vmap(scorer(self.ops, own)))(vectors))
        return self.ops.to_numpy(placed(self.ops, own)[0])[scores.argmax(1)]

    def _own(self, params: Params) -> Params:
        names = ("center", "root", "log_weight", "tail", "loc", "log_scale", "lower")
        return {name: params[f"{self.prefix}_{name}"] for name in names}


def placed(ops: Any, params: Params) -> tuple[Array, Array]:
    """Locations and scales of the components, of shapes ``[K, D]`` and ``[K, D, D]``, the latter triangular."""
    xp, root = ops.xp, params["root"]
    own = xp.tril(params["lower"], k=-1) + lift(ops, xp.eye(root.shape[-1], dtype=root.dtype), 3)
    scale = root @ (xp.exp(params["log_scale"])[:, :, None] * own)
    return params["center"] + (root @ params["loc"][:, :, None])[:, :, 0], scale


def over_all(ops: Any, params: Params) -> tuple[Array, Array]:
    """Mean of the mixture, and a triangular root of its covariance, widened: of shapes ``[D]`` and ``[D, D]``."""
    xp = ops.xp
    loc, scale = placed(ops, params)
    weights = xp.exp(params["log_weight"]) / xp.sum(xp.exp(params["log_weight"]))
    center = weights @ loc
    columns = xp.concat([scale, (loc - center[None])[:, :, None]], axis=2) * xp.sqrt(weights)[:, None, None]
    flat = xp.reshape(xp.permute_dims(columns, (1, 0, 2)), (loc.shape[1], -1))
    return center, WIDE * xp.linalg.cholesky(flat @ flat.T)


def scorer(ops: Any, params: Params, whole: tuple[Array, Array] | None = None) -> Callable[[Array], Array]:
    """Log weight plus log density of each component at a vector of shape ``[D]``; last, if asked for, of the `tail`.

    Args:
        whole: `over_all`, of which the tail is made; None to leave it out.
    """
    xp = ops.xp
    loc, scale = placed(ops, params)
    size, log_weight = loc.shape[-1], params["log_weight"]
    norm = log_weight - xp.sum(xp.log(xp.abs(xp.linalg.diagonal(scale))), axis=-1) - 0.5 * size * LOG_2PI
    inverse = xp.linalg.inv(scale)

    def components(z: Array) -> Array:
        x = (inverse @ (xp.reshape(z, (1, -1)) - loc)[:, :, None])[:, :, 0]
        return norm - 0.5 * xp.sum(x * x, axis=-1)

    if whole is None:
        return components
    center, root = whole
    back, log_det = xp.linalg.inv(root), xp.sum(xp.log(xp.linalg.diagonal(root)))
    part, floor = params["tail"], xp.finfo(scale.dtype).smallest_normal

    def score(z: Array) -> Array:
        far = standard(ops, back @ (z - center), DF)[0] - log_det
        return xp.concat([components(z) + xp.log1p(-part), xp.reshape(far + xp.log(part + floor), (1,))])

    return score
