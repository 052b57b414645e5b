"""Student's t: a normal over the root of a gamma, in log space."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.backend.registry import ops_of
from vi_reparam.draw import Draw
from vi_reparam.families.base import Family
from vi_reparam.families.gamma import GAMMA, GAMMA_KINDS
from vi_reparam.numerics import special
from vi_reparam.samplers.gamma import LogGamma
from vi_reparam.samplers.primitive import Constant, Primitive

_LOG_PI = special.LOG_2PI - 0.6931471805599453


def _log_density(ops: Ops, log_t: Array, df: Array) -> Array:
    """Log density of the standard t at exp(log_t), precise for any df and any |t|."""
    xp = ops.xp
    ratio = 2.0 * log_t - xp.log(df)
    tail = xp.where(ratio < 0.0, 0.0 * ratio, ratio) + xp.log1p(xp.exp(-xp.abs(ratio)))
    return _by_tail(ops, tail, df)


def _by_tail(ops: Ops, tail: Array, df: Array) -> Array:
    """Log density of the standard t by log(1 + t^2 / df)."""
    return special.gammaln_half_step(0.5 * df) - 0.5 * (ops.xp.log(df) + _LOG_PI) - 0.5 * (df + 1.0) * tail


class StudentT(Family):
    """StudentT(df, loc, scale) on the reals. The one draw log is log |t| of the standardized value."""

    name = "student_t"
    parameters = ("df", "loc", "scale")
    parameter_event_dims = (0, 0, 0)
    kinds = GAMMA_KINDS
    shape_parameters = ((0, 0.5),)

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        xp, stop = ops.xp, ops.stop_gradient
        df, loc, scale = (xp.broadcast_to(p, shape) for p in params)
        normal_key, gamma_key = ops.split(key, 2)
        a = 0.5 * df
        given = None
        if value is None:
            eps = ops.normal(normal_key, shape, df.dtype)
        else:
            t = stop((value - loc) / scale)
            given = self._ratio_given(ops, normal_key, t, stop(df))
            eps = t * xp.exp(0.5 * given)
        w, score_term, noise = primitive(ops, gamma_key, LogGamma(primitive.boost), shape, a, value=given)
        log_t = xp.log(xp.abs(eps)) - 0.5 * w
        t = special.exp_clipped(log_t) * xp.where(eps < 0.0, -1.0, 1.0)
        log_prob = _log_density(ops, log_t, df) - xp.log(scale)
        return Draw(loc + scale * t, log_prob, score_term, noise=noise, logs=(log_t,))

    @staticmethod
    def _ratio_given(ops: Ops, key: Any, t: Array, df: Array) -> Array:
        """log of (gamma / its mean) given t: the gamma's posterior, Gamma((df + 1) / 2, (df + t^2) / 2)."""
        a = 0.5 * (df + 1.0)
        logs = GAMMA.build(Constant(), ops, key, tuple(t.shape), a, 0.5 * (df + t * t)).logs
        assert logs is not None
        return ops.stop_gradient(logs[0])

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        value, df, loc, scale = self.ranked(value, *params)
        ops = ops_of(value, *params)
        xp = ops.xp
        t = (value - loc) / scale
        if logs is not None:
            # log |t| has the digits; how the density moves with value, loc and scale is in t.
            size = xp.clip(xp.abs(t), None, 1e15)
            slope = xp.where(t < 0.0, size, -size) * (df + 1.0) / (df + size * size)
            moving = ops.stop_gradient(slope) * (t - ops.stop_gradient(t))
            return _log_density(ops, ops.stop_gradient(logs[0]), df) - xp.log(scale) + moving
        return _by_tail(ops, xp.log1p(t * t / df), df) - xp.log(scale)


STUDENT_T = StudentT()
