"""The normal truncated to an interval, a half-line or nothing."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.backend.registry import ops_of
from vi_reparam.draw import Draw
from vi_reparam.families.base import Family, same_rank
from vi_reparam.numerics import mills
from vi_reparam.samplers.primitive import Primitive
from vi_reparam.samplers.truncated_normal import TruncatedNormalOffset

_SAMPLER = TruncatedNormalOffset()


def _standardize(ops: Ops, loc: Array, scale: Array, *edges: Array) -> list[Array]:
    """(edge - loc) / scale; an infinite edge stays, without a gradient."""
    where, stop = ops.xp.where, ops.stop_gradient
    finite = [(edge, ops.xp.isfinite(edge)) for edge in edges]
    return [where(inside, (where(inside, edge, stop(loc)) - loc) / scale, stop(edge)) for edge, inside in finite]


def _anchor(ops: Ops, loc: Array, low: Array, high: Array) -> Array:
    """The mode: loc, or the edge nearest to it."""
    return ops.xp.where(low >= loc, low, ops.xp.where(high <= loc, high, loc))


class TruncatedNormal(Family):
    """TruncatedNormal(loc, scale, low, high), loc and scale those of the normal; edges may be infinite.

    Gradients in finite edges too, with `Implicit` and `Rejection`. The score function has no
    such gradient, since the support moves: asking for it gives NaN.
    """

    name = "truncated_normal"
    parameters = ("loc", "scale", "low", "high")
    parameter_event_dims = (0, 0, 0, 0)
    kinds = frozenset({"implicit", "rejection", "score_function"})
    edge_parameters = (2, 3)

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        xp, stop = ops.xp, ops.stop_gradient
        loc, scale, low, high = (xp.broadcast_to(p, shape) for p in params)
        edges = _standardize(ops, loc, scale, low, high)
        anchor = _anchor(ops, loc, low, high)
        given = None if value is None else stop((value - anchor) / scale)
        offset, score_term, noise = primitive(ops, key, _SAMPLER, shape, *edges, value=given)
        moving = anchor + scale * offset
        held = stop(xp.minimum(xp.maximum(moving, low), high))
        log_prob = _SAMPLER.log_target(offset, *edges) - xp.log(scale)
        return Draw(held + (moving - stop(moving)), log_prob, score_term, noise=noise)

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        ops = ops_of(value, *params)
        xp = ops.xp
        value, loc, scale, low, high = xp.broadcast_arrays(*self.ranked(value, *params))
        inside = (value >= low) & (value <= high)
        anchor = _anchor(ops, loc, low, high)
        offset = xp.where(inside, (value - anchor) / scale, 0.0 * scale)
        log_prob = _SAMPLER.log_target(offset, *_standardize(ops, loc, scale, low, high)) - xp.log(scale)
        return xp.where(inside, log_prob, 0.0 * loc - float("inf"))

    def entropy(self, *params: Array) -> Array:
        ops = ops_of(*params)
        xp = ops.xp
        loc, scale, low, high = xp.broadcast_arrays(*same_rank(params, self.parameter_event_dims))
        interval = _SAMPLER.interval(*_standardize(ops, loc, scale, low, high))
        ahead = mills.moments(interval.c, interval.ahead)
        behind = mills.moments(0.0 * interval.c, interval.behind)
        total = ahead[0] + behind[0]
        return (interval.c * ahead[1] + 0.5 * (ahead[2] + behind[2])) / total + xp.log(total) + xp.log(scale)


TRUNCATED_NORMAL = TruncatedNormal()
