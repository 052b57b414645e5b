"""Truncated normal draws by Robert (1995), with proposals whose noise has a fixed support."""

from __future__ import annotations

import math
from typing import NamedTuple

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.backend.registry import ops_of
from vi_reparam.numerics import mills
from vi_reparam.samplers.base import RejectionSampler

_ROOT = math.sqrt(2.0)
_FAR = 100.0  # standard deviations at which a normal weighs nothing in any dtype


class Interval(NamedTuple):
    """The interval seen from its mode: density exp(-c t - t^2 / 2) on -behind < t < ahead.

    Attributes:
        tail: whether the mode is an edge; then behind is 0, else c is 0.
        sign: -1 where the interval is reflected (mode at the upper edge).
    """

    tail: Array
    sign: Array
    c: Array
    behind: Array
    ahead: Array


class TruncatedNormalOffset(RejectionSampler):
    """y = x - mode, for x a standard normal on (low, high), the mode being 0 clipped to that interval.

    Robert's exponential proposal serves the tails, with its rate lowered to the chord's on short
    intervals (acceptance at least 0.76); a logistic of the normal's curvature, truncated to the
    interval, serves intervals around 0 (at least 0.88). Both are quantile functions of one
    uniform on (0, 1). Robert's own normal proposal is not here: its accepted noise lives on
    (low, high) itself, whose edges move with the parameters, and the mean of grad log pi is
    then not zero.

    Parameters: low, high, standardized; either may be infinite.
    """

    noise = "uniform"
    rounds = 26

    def propose(self, noise: Array, *params: Array) -> Array:
        xp = ops_of(noise).xp
        return xp.clip(noise, None, 1.0 - 0.5 * float(xp.finfo(noise.dtype).eps))

    def interval(self, low: Array, high: Array) -> Interval:
        xp = ops_of(low, high).xp
        right, left = low >= 0.0, high <= 0.0
        zero = xp.zeros_like(low)
        tail = right | left
        width = xp.clip(xp.where(tail, high - low, zero + 1.0), None, _FAR)
        inner_low = xp.clip(xp.where(tail, zero - 1.0, low), -_FAR, None)
        inner_high = xp.clip(xp.where(tail, zero + 1.0, high), None, _FAR)
        return Interval(
            tail=tail,
            sign=xp.where(left, zero - 1.0, zero + 1.0),
            c=xp.where(right, low, xp.where(left, -high, zero)),
            behind=xp.where(tail, zero, -inner_low),
            ahead=xp.where(tail, width, inner_high),
        )

    def _exponential(self, interval: Interval) -> tuple[Array, Array]:
        """What the proposal's rate adds to c, and 1 - exp(-rate * width)."""
        xp = ops_of(interval.c).xp
        robert = 2.0 / (interval.c + xp.sqrt(interval.c * interval.c + 4.0))
        tilt = xp.where(0.5 * interval.ahead < robert, 0.5 * interval.ahead, robert)
        return tilt, -xp.expm1(-(interval.c + tilt) * interval.ahead)

    def _logistic(self, interval: Interval) -> tuple[Array, Array]:
        """tanh(edge / sqrt 2), the proposal's distribution function up to scale."""
        xp = ops_of(interval.c).xp
        behind = xp.where(interval.tail, 1.0 + 0.0 * interval.c, interval.behind)
        return xp.tanh(behind / _ROOT), xp.tanh(interval.ahead / _ROOT)

    def transform(self, noise: Array, *params: Array) -> Array:
        interval = self.interval(*params)
        xp = ops_of(interval.c).xp
        tilt, mass = self._exponential(interval)
        outer = -xp.log1p(-noise * mass) / (interval.c + tilt)
        behind, ahead = self._logistic(interval)
        inner = _ROOT * xp.atanh(noise * ahead - (1.0 - noise) * behind)
        return interval.sign * xp.where(interval.tail, outer, inner)

    def inverse(self, value: Array, *params: Array) -> Array:
        interval = self.interval(*params)
        xp = ops_of(interval.c).xp
        t = interval.sign * value
        tilt, mass = self._exponential(interval)
        outer = -xp.expm1(-(interval.c + tilt) * t) / mass
        behind, ahead = self._logistic(interval)
        inner = (xp.tanh(t / _ROOT) + behind) / (behind + ahead)
        return xp.where(interval.tail, outer, inner)

    @staticmethod
    def _log_cosh(ops: Ops, x: Array) -> Array:
        return ops.xp.abs(x) + ops.xp.log1p(ops.xp.exp(-2.0 * ops.xp.abs(x))) - math.log(2.0)

    def log_proposal(self, value: Array, *params: Array) -> Array:
        interval = self.interval(*params)
        ops = ops_of(interval.c)
        xp = ops.xp
        t = interval.sign * value
        tilt, mass = self._exponential(interval)
        rate = interval.c + tilt
        outer = xp.log(rate) - rate * t - xp.log(mass)
        inner = -2.0 * self._log_cosh(ops, t / _ROOT) - xp.log(_ROOT * sum(self._logistic(interval)))
        return xp.where(interval.tail, outer, inner)

    def log_normalizer(self, interval: Interval) -> Array:
        """log of INT exp(-c t - t^2 / 2) dt over the interval."""
        ahead, _, _ = mills.moments(interval.c, interval.ahead)
        behind, _, _ = mills.moments(0.0 * interval.c, interval.behind)
        return ops_of(interval.c).xp.log(ahead + behind)

    def log_target(self, value: Array, *params: Array) -> Array:
        interval = self.interval(*params)
        t = interval.sign * value
        return -t * (interval.c + 0.5 * t) - self.log_normalizer(interval)

    def log_bound(self, *params: Array) -> Array:
        interval = self.interval(*params)
        xp = ops_of(interval.c).xp
        tilt, mass = self._exponential(interval)
        outer = 0.5 * tilt * tilt + xp.log(mass) - xp.log(interval.c + tilt)
        inner = xp.log(_ROOT * sum(self._logistic(interval)))
        return xp.where(interval.tail, outer, inner) - self.log_normalizer(interval)

    def log_accept(self, noise: Array, *params: Array) -> Array:
        interval = self.interval(*params)
        ops = ops_of(interval.c)
        t = interval.sign * self.transform(noise, *params)
        tilt, _ = self._exponential(interval)
        inner = 2.0 * self._log_cosh(ops, t / _ROOT) - 0.5 * t * t
        return ops.xp.where(interval.tail, -0.5 * (t - tilt) ** 2, inner)

    def log_noise_density(self, noise: Array, *params: Array) -> Array:
        return self.log_accept(noise, *params) + self.log_bound(*params)

    def attach(self, value: Array, *params: Array) -> Array:
        """dx/dlow = (1 - F) q(low) / q(x), dx/dhigh = F q(high) / q(x), in the interval of the mode."""
        moving = self.interval(*params)
        ops = ops_of(moving.c)
        xp, stop = ops.xp, ops.stop_gradient
        value = stop(value)
        interval = Interval(*(stop(part) for part in moving))
        t = interval.sign * value
        flip = t < 0.0  # only inside, where c is 0 and the two sides can change places
        size = xp.abs(t)
        room = xp.clip(xp.where(flip, interval.behind, interval.ahead) - size, 0.0, None)
        other = xp.where(flip, interval.ahead, interval.behind)
        # Masses on either side of the draw; what lies beyond is relative to the density there.
        within, within_first, _ = mills.moments(interval.c, size)
        opposite, _, _ = mills.moments(0.0 * interval.c, other)
        beyond, beyond_first, _ = mills.moments(interval.c + size, room)
        density = xp.exp(-size * (interval.c + 0.5 * size))
        total = within + opposite + density * beyond
        by_far = (within + opposite) / total * xp.exp(-room * (interval.c + size + 0.5 * room))
        by_other = -beyond / total * xp.exp(-0.5 * other * other)
        by_c = (beyond * (within_first - size * within) - within * beyond_first) / total
        by_ahead, by_behind = xp.where(flip, by_other, by_far), xp.where(flip, by_far, by_other)
        slope = by_c * (moving.c - interval.c)
        slope = slope + by_ahead * (moving.ahead - interval.ahead) + by_behind * (moving.behind - interval.behind)
        return value + interval.sign * xp.where(flip, -slope, slope)
