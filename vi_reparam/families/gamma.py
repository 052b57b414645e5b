"""The gamma family and the two that are a gamma by another name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.backend.registry import ops_of
from vi_reparam.draw import Draw
from vi_reparam.families.base import Family, WeakDerivative, same_rank
from vi_reparam.numerics import special
from vi_reparam.samplers.gamma import LogGamma
from vi_reparam.samplers.primitive import Constant, Primitive

GAMMA_KINDS = frozenset({"implicit", "rejection", "score_function"})


def log_ratio(unit: Array, log_unit: Array, a: Array) -> Array:
    """w = log(unit / a), from `unit` itself near a and from its logarithm elsewhere."""
    ops = ops_of(a)
    xp = ops.xp
    far = log_unit - xp.log(a)
    wide = ops.upcast(unit)
    if wide is not None:
        info = xp.finfo(unit.dtype)
        inside = (unit > float(info.smallest_normal)) & (unit < float(info.max))
        near = xp.log(xp.where(inside, wide, xp.ones_like(wide))) - xp.log(ops.upcast(a))
        return xp.where(inside, xp.astype(near, unit.dtype), far)
    relative = (unit - a) / a
    near = xp.abs(relative) < 0.5
    return xp.where(near, xp.log1p(xp.where(near, relative, 0.0 * relative)), far)


class Gamma(Family):
    """Gamma(concentration, rate) on the positives."""

    name = "gamma"
    parameters = ("concentration", "rate")
    parameter_event_dims = (0, 0)
    kinds = GAMMA_KINDS | {"measure_valued"}
    weak_parameters = ("rate",)
    shape_parameters = ((0, 1.0),)

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        xp, stop = ops.xp, ops.stop_gradient
        a, rate = (xp.broadcast_to(p, shape) for p in params)
        sampler = LogGamma(primitive.boost)
        given = None
        if value is not None:
            unit = stop(value * rate)
            given = log_ratio(unit, xp.log(unit), stop(a))
        w, score_term, noise = primitive(ops, key, sampler, shape, a, value=given)
        log_value = w + xp.log(a) - xp.log(rate)
        # About the mean for its digits, but not below it: 1 + expm1(w) has none left there.
        natural = stop(xp.where(w > -0.5, a + a * xp.expm1(w), a * xp.exp(w)) / rate)
        log_prob = sampler.log_target(w, a) - log_value if primitive.density else None
        return Draw(special.exp_clipped(log_value, natural), log_prob, score_term, noise=noise, logs=(log_value,))

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        value, a, rate = self.ranked(value, *params)
        xp = ops_of(value, a, rate).xp
        log_value = xp.log(value) if logs is None else logs[0]
        w = log_ratio(value * rate, log_value + xp.log(rate), a)
        return LogGamma().log_target(w, a) - log_value

    def entropy(self, *params: Array) -> Array:
        a, rate = same_rank(params, self.parameter_event_dims)
        ops = ops_of(a, rate)
        psi = special.digamma_minus_log(a)
        # a - log rate + log Gamma(a) + (1 - a) psi(a), with the large terms cancelled by hand.
        log_a = ops.xp.log(a)
        return special.stirling(a) + 0.5 * special.LOG_2PI + 0.5 * log_a + (1.0 - a) * psi - ops.xp.log(rate)

    def weak_derivatives(
        self, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None
    ) -> tuple[Array, list[WeakDerivative]]:
        """In the rate: (a / rate) (Gamma(a, rate) - Gamma(a + 1, rate)), coupled by adding Exp(rate)."""
        a, rate = (ops.stop_gradient(ops.xp.broadcast_to(p, shape)) for p in params)
        draw_key, exp_key = ops.split(key, 2)
        z = ops.stop_gradient(self.build(Constant(), ops, draw_key, shape, a, rate, value=value).value)
        more = z - ops.xp.log(ops.uniform(exp_key, shape, z.dtype)) / rate
        return z, [WeakDerivative(1, a / rate, z, more)]


class InverseGamma(Family):
    """InverseGamma(concentration, rate): the reciprocal of a Gamma(concentration, rate)."""

    name = "inverse_gamma"
    parameters = ("concentration", "rate")
    parameter_event_dims = (0, 0)
    kinds = GAMMA_KINDS
    shape_parameters = ((0, 1.0),)

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        draw = GAMMA.build(primitive, ops, key, shape, *params, value=None if value is None else 1.0 / value)
        assert draw.logs is not None
        log_value = -draw.logs[0]
        moved = special.exp_clipped(log_value, ops.stop_gradient(1.0 / draw.value))
        log_prob = draw.log_prob - 2.0 * log_value if primitive.density else None
        return replace(draw, value=moved, log_prob=log_prob, logs=(log_value,))

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        log_value = ops_of(value).xp.log(value) if logs is None else logs[0]
        return GAMMA.log_prob(1.0 / value, *params, logs=(-log_value,)) - 2.0 * log_value

    def entropy(self, *params: Array) -> Array:
        a, rate = same_rank(params, self.parameter_event_dims)
        ops = ops_of(a, rate)
        return GAMMA.entropy(a, rate) + 2.0 * (ops.xp.log(rate) - ops.digamma(a))  # twice the mean logarithm


class Chi2(Family):
    """Chi-squared with df degrees of freedom: Gamma(df / 2, 1 / 2)."""

    name = "chi2"
    parameters = ("df",)
    parameter_event_dims = (0,)
    kinds = GAMMA_KINDS
    shape_parameters = ((0, 0.5),)

    @staticmethod
    def _gamma(df: Array) -> tuple[Array, Array]:
        return 0.5 * df, 0.0 * ops_of(df).stop_gradient(df) + 0.5

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        return GAMMA.build(primitive, ops, key, shape, *self._gamma(params[0]), value=value)

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        return GAMMA.log_prob(value, *self._gamma(params[0]), logs=logs)

    def entropy(self, *params: Array) -> Array:
        return GAMMA.entropy(*self._gamma(params[0]))


GAMMA = Gamma()
INVERSE_GAMMA = InverseGamma()
CHI2 = Chi2()
