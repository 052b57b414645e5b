"""Bernoulli and Poisson: served by score functions and by weak derivatives."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.backend.registry import ops_of
from vi_reparam.draw import Draw
from vi_reparam.families.base import Family, WeakDerivative
from vi_reparam.samplers.primitive import Primitive

_KINDS = frozenset({"score_function", "measure_valued"})


class Bernoulli(Family):
    """Bernoulli(logits) on {0, 1}."""

    name = "bernoulli"
    parameters = ("logits",)
    parameter_event_dims = (0,)
    kinds = _KINDS
    weak_parameters = ("logits",)

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        xp = ops.xp
        logits = xp.broadcast_to(params[0], shape)
        if value is None:
            u = ops.uniform(key, shape, logits.dtype)
            value = xp.where(xp.log(u) - xp.log1p(-u) <= logits, 1.0, 0.0)
        value = ops.stop_gradient(xp.astype(value, logits.dtype))
        return Draw(value=value, log_prob=self.log_prob(value, logits))

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        value, logits = self.ranked(value, *params)
        xp = ops_of(value, logits).xp
        positive = xp.where(logits > 0.0, logits, 0.0 * logits)
        return value * logits - positive - xp.log1p(xp.exp(-xp.abs(logits)))

    def entropy(self, *params: Array) -> Array:
        (logits,) = params
        p = 1.0 / (1.0 + ops_of(logits).xp.exp(-logits))
        return -self.log_prob(p, logits)

    def weak_derivatives(
        self, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None
    ) -> tuple[Array, list[WeakDerivative]]:
        """Exact: p'(logits) (f(1) - f(0))."""
        xp = ops.xp
        logits = ops.stop_gradient(xp.broadcast_to(params[0], shape))
        z = self.build(_NO_PRIMITIVE, ops, key, shape, logits, value=value).value
        p = 1.0 / (1.0 + xp.exp(-logits))
        return z, [WeakDerivative(0, p * (1.0 - p), 0.0 * z + 1.0, 0.0 * z)]


class Poisson(Family):
    """Poisson(rate) on the counts."""

    name = "poisson"
    parameters = ("rate",)
    parameter_event_dims = (0,)
    kinds = _KINDS
    weak_parameters = ("rate",)

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        rate = ops.xp.broadcast_to(params[0], shape)
        value = ops.stop_gradient(ops.poisson(key, rate, shape) if value is None else ops.xp.astype(value, rate.dtype))
        return Draw(value=value, log_prob=self.log_prob(value, rate))

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        value, rate = self.ranked(value, *params)
        ops = ops_of(value, rate)
        return value * ops.xp.log(rate) - rate - ops.gammaln(value + 1.0)

    def weak_derivatives(
        self, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None
    ) -> tuple[Array, list[WeakDerivative]]:
        """In the rate: Poisson + 1 against Poisson, of the same draw."""
        rate = ops.stop_gradient(ops.xp.broadcast_to(params[0], shape))
        z = self.build(_NO_PRIMITIVE, ops, key, shape, rate, value=value).value
        return z, [WeakDerivative(0, 0.0 * rate + 1.0, z + 1.0, z)]


_NO_PRIMITIVE: Any = None
BERNOULLI = Bernoulli()
POISSON = Poisson()
