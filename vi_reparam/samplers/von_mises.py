"""Von Mises draws by Best and Fisher (1979): a wrapped Cauchy proposal."""

from __future__ import annotations

import math

from vi_reparam.backend.ops import Array
from vi_reparam.backend.registry import ops_of
from vi_reparam.numerics import bessel, special
from vi_reparam.numerics.identities import attach
from vi_reparam.samplers.base import RejectionSampler


class VonMisesDeviation(RejectionSampler):
    """x = angle - loc in (-pi, pi] for VonMises(loc, concentration).

    The noise u is uniform on (-1, 1) and tan(x / 2) = g tan(pi u / 2) with
    log g = -asinh(2 concentration) / 2: the wrapped Cauchy proposal as one monotone map of one
    uniform. Its edges are one point of the circle, and they do not move.
    """

    noise = "uniform"
    rounds = 36

    def propose(self, noise: Array, *params: Array) -> Array:
        # (0, 1] to (-1, 1): half a grid step off, so that neither edge is reached.
        eps = float(ops_of(noise).xp.finfo(noise.dtype).eps)
        return ops_of(noise).xp.clip(2.0 * noise - 1.0, -1.0 + eps, 1.0 - eps)

    def _half(self, noise: Array, kappa: Array) -> tuple[Array, Array, Array]:
        """g sin(pi u / 2), cos(pi u / 2) and the sum of their squares."""
        xp = ops_of(kappa).xp
        angle = 0.5 * math.pi * noise
        opposite = xp.exp(-0.5 * xp.asinh(2.0 * kappa)) * xp.sin(angle)
        adjacent = xp.cos(angle)
        return opposite, adjacent, opposite * opposite + adjacent * adjacent

    def transform(self, noise: Array, kappa: Array) -> Array:
        opposite, adjacent, _ = self._half(noise, kappa)
        return 2.0 * ops_of(kappa).xp.atan2(opposite, adjacent)

    def inverse(self, value: Array, kappa: Array) -> Array:
        xp = ops_of(kappa).xp
        widen = xp.exp(0.5 * xp.asinh(2.0 * kappa))
        return 2.0 / math.pi * xp.atan2(widen * xp.sin(0.5 * value), xp.cos(0.5 * value))

    def log_proposal(self, value: Array, kappa: Array) -> Array:
        xp = ops_of(kappa).xp
        log_g = -0.5 * xp.asinh(2.0 * kappa)
        spread = xp.sin(0.5 * value) ** 2 + xp.exp(2.0 * log_g) * xp.cos(0.5 * value) ** 2
        return log_g - xp.log(spread) - special.LOG_2PI

    def log_target(self, value: Array, kappa: Array) -> Array:
        square = ops_of(kappa).xp.sin(0.5 * value) ** 2
        return -2.0 * kappa * square - special.LOG_2PI - bessel.log_i0e(kappa)

    def _offset(self, kappa: Array) -> Array:
        """The least value of log1p's argument in `log_accept`, in (-1/2, 0]."""
        xp = ops_of(kappa).xp
        return 0.5 * xp.expm1(-xp.asinh(2.0 * kappa))

    def log_bound(self, kappa: Array) -> Array:
        xp = ops_of(kappa).xp
        root = xp.sqrt(1.0 + 4.0 * kappa * kappa)
        return self._offset(kappa) - 0.5 * xp.log(0.5 * (1.0 + root)) - bessel.log_i0e(kappa)

    def log_accept(self, noise: Array, kappa: Array) -> Array:
        opposite, _, total = self._half(noise, kappa)
        return -special.minus_log1p(self._offset(kappa) + 2.0 * kappa * opposite * opposite / total)

    def log_noise_density(self, noise: Array, kappa: Array) -> Array:
        return self.log_accept(noise, kappa) + self.log_bound(kappa)

    def attach(self, value: Array, kappa: Array) -> Array:
        return attach(ops_of(kappa).stop_gradient(value), kappa, self._slope)

    @staticmethod
    def _slope(value: Array, kappa: Array) -> Array:
        xp = ops_of(kappa).xp
        tiny = float(xp.finfo(value.dtype).smallest_normal)
        slope = bessel.angle_slope(xp.clip(xp.abs(value), tiny, None), kappa, 2)
        return xp.where(value < 0.0, -slope, slope)
