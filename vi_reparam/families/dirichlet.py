"""Dirichlet and beta: normalized gammas, in log space."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.backend.registry import ops_of
from vi_reparam.draw import Draw
from vi_reparam.families.base import Family, same_rank
from vi_reparam.families.gamma import GAMMA, GAMMA_KINDS
from vi_reparam.numerics import special
from vi_reparam.samplers.gamma import LogGamma
from vi_reparam.samplers.primitive import Constant, Primitive


def _from_ratios(ops: Ops, w: Array, a: Array) -> tuple[Array, Array]:
    """log x and log density of x = z / sum z, from w = log(z / a), along the last axis.

    Near the mean both are written about it, since sum a log x loses all digits at large a.
    """
    xp = ops.xp
    total = xp.sum(a, axis=-1, keepdims=True)
    t = xp.sum(a / total * xp.expm1(w), axis=-1, keepdims=True)
    near = xp.abs(t) < 0.5
    t = xp.where(near, t, 0.0 * t)
    log_sum = special.log_sum_exp(ops, w + xp.log(a), axis=-1, keepdims=True)
    shift = xp.where(near, xp.log1p(t), log_sum - xp.log(total))
    from_mean = w - shift
    log_x = from_mean + xp.log(a) - xp.log(total)
    centred = xp.where(near, w, 0.0 * w)
    middle = -xp.sum(a * special.expm1_minus(centred), axis=-1) + total[..., 0] * special.minus_log1p(t)[..., 0]
    outer = xp.sum(a * from_mean, axis=-1)
    power = xp.where(near[..., 0], middle, outer)
    return log_x, power + _normalizer(ops, a) - xp.sum(log_x, axis=-1)


def _normalizer(ops: Ops, a: Array) -> Array:
    """log Gamma(A) - sum log Gamma(a) + sum a log(a / A), by Stirling's remainder."""
    xp = ops.xp
    total = xp.sum(a, axis=-1)
    half = 0.5 * xp.sum(xp.log(a) - special.LOG_2PI - 2.0 * special.stirling(a), axis=-1)
    return half - 0.5 * (xp.log(total) - special.LOG_2PI) + special.stirling(total)


class Dirichlet(Family):
    """Dirichlet(concentration) on the simplex."""

    name = "dirichlet"
    parameters = ("concentration",)
    parameter_event_dims = (1,)
    event_dim = 1
    kinds = GAMMA_KINDS
    shape_parameters = ((0, 1.0),)

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        xp = ops.xp
        a = xp.broadcast_to(params[0], (*shape, params[0].shape[-1]))
        sampler = LogGamma(primitive.boost)
        key, total_key = ops.split(key, 2)
        given = None
        if value is not None:
            given = self._ratios_given(ops, total_key, ops.stop_gradient(xp.log(value)), ops.stop_gradient(a))
        w, score_term, noise = primitive(ops, key, sampler, tuple(a.shape), a, value=given)
        log_x, log_prob = _from_ratios(ops, w, a)
        score_term = None if score_term is None else xp.sum(score_term, axis=-1)
        return Draw(special.exp_clipped(log_x), log_prob, score_term, noise=noise, logs=(log_x,))

    @staticmethod
    def _ratios_given(ops: Ops, key: Any, log_x: Array, a: Array) -> Array:
        """w of the gammas behind a given x: their sum is Gamma(sum a), independent of x."""
        total = ops.xp.sum(a, axis=-1, keepdims=True)
        log_sum = GAMMA.build(Constant(), ops, key, tuple(total.shape), total, 0.0 * total + 1.0).logs
        assert log_sum is not None
        return ops.stop_gradient(log_x + log_sum[0] - ops.xp.log(a))

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        (a,) = params
        ops = ops_of(value, a)
        xp = ops.xp
        log_x, a = self.ranked(xp.log(value) if logs is None else logs[0], a)
        mean = a / xp.sum(a, axis=-1, keepdims=True)
        power = xp.sum(a * (log_x - xp.log(mean)), axis=-1)
        return power + _normalizer(ops, a) - xp.sum(log_x, axis=-1)

    def entropy(self, *params: Array) -> Array:
        (a,) = params
        ops = ops_of(a)
        xp = ops.xp
        total = xp.sum(a, axis=-1, keepdims=True)
        mean_log = ops.digamma(a) - ops.digamma(total)
        log_beta = xp.sum(ops.gammaln(a), axis=-1) - ops.gammaln(total[..., 0])
        return log_beta - xp.sum((a - 1.0) * mean_log, axis=-1)


class Beta(Family):
    """Beta(concentration1, concentration0) on the unit interval: a Dirichlet of two."""

    name = "beta"
    parameters = ("concentration1", "concentration0")
    parameter_event_dims = (0, 0)
    kinds = GAMMA_KINDS
    shape_parameters = ((0, 1.0), (1, 1.0))

    @staticmethod
    def _stack(ops: Ops, *pair: Array) -> Array:
        return ops.xp.stack(list(ops.xp.broadcast_arrays(*same_rank(pair, (0, 0)))), axis=-1)

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        xp = ops.xp
        pair = None if value is None else self._stack(ops, value, 1.0 - value)
        draw = DIRICHLET.build(primitive, ops, key, shape, self._stack(ops, *params), value=pair)
        assert draw.logs is not None
        log_x, log_rest = draw.logs[0][..., 0], draw.logs[0][..., 1]
        # Above one half the complement is the precise one; x is kept below 1 by half an epsilon.
        eps = float(xp.finfo(log_x.dtype).eps)
        x, rest = draw.value[..., 0], draw.value[..., 1]
        high = log_x > -math.log(2.0)
        held = ops.stop_gradient(xp.where(high, xp.clip(1.0 - rest, None, 1.0 - 0.5 * eps), x))
        slope = xp.where(high, -rest, x)
        log_moving = xp.where(high, log_rest, log_x)
        value = held + ops.stop_gradient(slope) * (log_moving - ops.stop_gradient(log_moving))
        return replace(draw, value=value, logs=(log_x, log_rest))

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        ops = ops_of(value, *params)
        xp = ops.xp
        log_pair = (xp.log(value), xp.log1p(-value)) if logs is None else logs
        return DIRICHLET.log_prob(value, self._stack(ops, *params), logs=(self._stack(ops, *log_pair),))

    def entropy(self, *params: Array) -> Array:
        return DIRICHLET.entropy(self._stack(ops_of(*params), *params))


DIRICHLET = Dirichlet()
BETA = Beta()
