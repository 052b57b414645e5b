"""The polar angle of von Mises-Fisher draws by Ulrich (1984) and Wood (1994)."""

from __future__ import annotations

import math
from typing import Any

from vi_reparam.backend.ops import Array, Ops, Shape
from vi_reparam.backend.registry import ops_of
from vi_reparam.errors import ArgumentError
from vi_reparam.numerics import bessel, special
from vi_reparam.numerics.identities import attach
from vi_reparam.samplers.base import RejectionSampler


class PolarLogit(RejectionSampler):
    """ell = logit(sin^2(t / 2)), t the angle between a VonMisesFisher draw and its direction.

    Wood's proposal w = (1 - (1 + b) z) / (1 - (1 - b) z) with z ~ Beta((p - 1) / 2, (p - 1) / 2)
    is a shift in these coordinates: ell = logit z + log b, log b = -asinh(2 concentration / (p - 1)).
    The noise is logit z, on all reals.

    Args:
        dim: p, the number of coordinates of a draw, at least 2.

    Raises:
        ArgumentError: for a smaller `dim`.
    """

    rounds = 36

    def __init__(self, dim: int) -> None:
        if dim < 2:
            raise ArgumentError(f"a direction with {dim} coordinates: von Mises-Fisher needs at least 2")
        self.dim = dim

    def raw_noise(self, ops: Ops, key: Any, shape: Shape, dtype: Any) -> Array:
        """logit of a symmetric beta, (1 + R cos A) / 2 (Ulrich 1984), with neither end cancelled."""
        xp = ops.xp
        pair = ops.uniform(key, (2, *shape), dtype)
        half = math.pi * pair[0]
        if self.dim == 2:
            return 2.0 * (xp.log(xp.abs(xp.cos(half))) - xp.log(xp.abs(xp.sin(half))))
        tail = 2.0 / (self.dim - 2) * xp.log(pair[1])
        radius = xp.sqrt(-xp.expm1(tail))
        rest = xp.exp(tail) / (1.0 + radius)
        return xp.log(rest + 2.0 * radius * xp.cos(half) ** 2) - xp.log(rest + 2.0 * radius * xp.sin(half) ** 2)

    def _shift(self, kappa: Array) -> Array:
        return -ops_of(kappa).xp.asinh(2.0 / (self.dim - 1) * kappa)

    def _square(self, value: Array) -> Array:
        """sin^2(t / 2)."""
        xp = ops_of(value).xp
        small = xp.exp(-xp.abs(value))
        return xp.where(value < 0.0, small, 0.0 * small + 1.0) / (1.0 + small)

    def _power(self, value: Array) -> Array:
        """log of [v (1 - v)]^((p - 1) / 2) at v = sin^2(t / 2)."""
        xp = ops_of(value).xp
        size = xp.abs(value)
        return -0.5 * (self.dim - 1) * (size + 2.0 * xp.log1p(xp.exp(-size)))

    def transform(self, noise: Array, kappa: Array) -> Array:
        return noise + self._shift(kappa)

    def inverse(self, value: Array, kappa: Array) -> Array:
        return value - self._shift(kappa)

    def log_proposal(self, value: Array, kappa: Array) -> Array:
        return self._power(self.inverse(value, kappa)) - self._log_beta()

    def _log_beta(self) -> float:
        a = 0.5 * (self.dim - 1)
        return 2.0 * math.lgamma(a) - math.lgamma(2.0 * a)

    def log_normalizer(self, kappa: Array) -> Array:
        """log of INT_0^pi exp(-concentration (1 - cos t)) sin^(p - 2) t dt."""
        return bessel.normalizer(kappa, self.dim)[0]

    def log_target(self, value: Array, kappa: Array) -> Array:
        log_mass = self.log_normalizer(kappa) - (self.dim - 2) * math.log(2.0)
        return -2.0 * kappa * self._square(value) + self._power(value) - log_mass

    def _best(self, kappa: Array) -> tuple[Array, Array]:
        """sin^2(t / 2) where target over proposal is largest, b / (1 + b); and log b."""
        shift = self._shift(kappa)
        return self._square(shift), shift

    def log_bound(self, kappa: Array) -> Array:
        xp = ops_of(kappa).xp
        best, shift = self._best(kappa)
        n = self.dim - 1
        peak = n * (math.log(2.0) - xp.log1p(xp.exp(shift)) + 0.5 * shift) - 2.0 * kappa * best
        return peak - self.log_normalizer(kappa) + (self.dim - 2) * math.log(2.0) + self._log_beta()

    def log_accept(self, noise: Array, kappa: Array) -> Array:
        best, shift = self._best(kappa)
        n = self.dim - 1
        return -n * special.minus_log1p(2.0 / n * kappa * (self._square(noise + shift) - best))

    def log_noise_density(self, noise: Array, kappa: Array) -> Array:
        return self.log_accept(noise, kappa) + self.log_bound(kappa)

    def attach(self, value: Array, kappa: Array) -> Array:
        return attach(ops_of(kappa).stop_gradient(value), kappa, self._slope)

    def _slope(self, value: Array, kappa: Array) -> Array:
        xp = ops_of(kappa).xp
        theta = 2.0 * xp.atan(xp.exp(0.5 * value))
        per_angle = xp.exp(0.5 * value) + xp.exp(-0.5 * value)  # d ell / d t = 2 / sin t
        return per_angle * bessel.angle_slope(theta, kappa, self.dim)
