"""The normal family: pathwise by location and scale."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.backend.registry import ops_of
from vi_reparam.draw import Draw
from vi_reparam.families.base import Family, WeakDerivative, same_rank
from vi_reparam.numerics import special
from vi_reparam.samplers.primitive import Primitive


class Normal(Family):
    """Normal(loc, scale) on the reals."""

    name = "normal"
    parameters = ("loc", "scale")
    parameter_event_dims = (0, 0)
    kinds = frozenset({"pathwise", "score_function", "measure_valued"})
    weak_parameters = ("loc", "scale")

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        loc, scale = (ops.xp.broadcast_to(p, shape) for p in params)
        eps = ops.normal(key, shape, loc.dtype) if value is None else ops.stop_gradient((value - loc) / scale)
        log_prob = -0.5 * eps * eps - ops.xp.log(scale) - 0.5 * special.LOG_2PI
        return Draw(value=loc + scale * eps, log_prob=log_prob, noise=eps)

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        value, loc, scale = self.ranked(value, *params)
        eps = (value - loc) / scale
        return -0.5 * eps * eps - ops_of(value, loc, scale).xp.log(scale) - 0.5 * special.LOG_2PI

    def entropy(self, *params: Array) -> Array:
        loc, scale = same_rank(params, self.parameter_event_dims)
        return 0.0 * loc + ops_of(loc, scale).xp.log(scale) + 0.5 * (special.LOG_2PI + 1.0)

    def weak_derivatives(
        self, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None
    ) -> tuple[Array, list[WeakDerivative]]:
        """Mohamed et al. (2020), table 1: loc by two Weibulls, scale by a double-sided Maxwell.

        The Weibulls share their draw; the Maxwell's product with a uniform is the normal
        against which it is coupled (section 7.2).
        """
        xp = ops.xp
        loc, scale = (ops.stop_gradient(xp.broadcast_to(p, shape)) for p in params)
        keys = ops.split(key, 4)
        dtype = loc.dtype
        z = loc + scale * ops.normal(keys[0], shape, dtype) if value is None else ops.stop_gradient(value)
        weibull = scale * xp.sqrt(-2.0 * xp.log(ops.uniform(keys[1], shape, dtype)))
        three = ops.normal(keys[2], (3, *shape), dtype)
        maxwell = xp.sqrt(xp.sum(three * three, axis=0)) * xp.where(three[0] < 0.0, -1.0, 1.0)
        inner = maxwell * ops.uniform(keys[3], shape, dtype)
        root = (2.0 * 3.141592653589793) ** 0.5
        return z, [
            WeakDerivative(0, 1.0 / (root * scale), loc + weibull, loc - weibull),
            WeakDerivative(1, 1.0 / scale, loc + scale * maxwell, loc + scale * inner),
        ]


NORMAL = Normal()
