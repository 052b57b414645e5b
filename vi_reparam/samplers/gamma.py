"""Gamma draws by Marsaglia and Tsang (2000) with shape augmentation, in centred log space."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.ops import Array, Ops, Shape
from vi_reparam.backend.registry import ops_of
from vi_reparam.numerics import special
from vi_reparam.numerics.gamma_slope import ratio_slope
from vi_reparam.numerics.identities import attach
from vi_reparam.samplers.base import RejectionSampler


class LogGamma(RejectionSampler):
    """w = log(z / concentration) for z ~ Gamma(concentration, 1).

    The centred logarithm stays precise at both ends: log z far below the smallest number at
    small concentrations, z - concentration at large ones. The proposal for concentration
    a + B is d (1 + c eps)^3 with d = a + B - 1/3, c = 1 / sqrt(9 d), eps normal; B uniforms take
    it down to concentration a (Naesseth et al. 2017, section 3.4), and the larger B, the smaller
    the correction.

    Args:
        boost: B, the number of shape augmentations.
    """

    rounds = 12

    def __init__(self, boost: int = 1) -> None:
        self.boost = boost

    def _x(self, noise: Array, a: Array) -> tuple[Array, Array]:
        d = a + (self.boost - 1.0 / 3.0)
        return noise / (3.0 * ops_of(a).xp.sqrt(d)), d

    def transform(self, noise: tuple[Array, Array], a: Array) -> Array:
        eps, uniforms = noise
        xp = ops_of(a).xp
        x, _ = self._x(eps, a)
        w = 3.0 * xp.log1p(x) + xp.log1p((self.boost - 1.0 / 3.0) / a)
        for k in range(self.boost):
            w = w + xp.log(uniforms[k]) / (a + k)
        return w

    def inverse(self, value: Array, a: Array) -> tuple[Array, Array]:
        """Noise of an un-boosted value; `recover` serves boosted ones.

        Raises:
            GradientError: with a boost, whose transform is not one-to-one.
        """
        if self.boost:
            return super().inverse(value, a)
        ops = ops_of(a)
        d = a - 1.0 / 3.0
        third = (value - ops.xp.log1p(-1.0 / (3.0 * a))) / 3.0
        return ops.stop_gradient(ops.xp.expm1(third) * 3.0 * ops.xp.sqrt(d)), a[None][:0]

    def recover(self, ops: Ops, key: Any, value: Array, a: Array) -> tuple[Array, Array]:
        """Noise of a given w, drawn from its exact conditional law.

        With y_0 = z, y_k = y_(k-1) + Exp(1) and u_k = (y_(k-1) / y_k)^(a + k - 1), the pair
        (y_B, u) has the law it has given z under the augmentation; y_B is then inverted.
        """
        xp, stop = ops.xp, ops.stop_gradient
        a = stop(a)
        log_y = stop(value) + xp.log(a)
        uniforms = []
        for k, sub in enumerate(ops.split(key, max(self.boost, 1))[: self.boost]):
            log_exp = xp.log(-xp.log(ops.uniform(sub, value.shape, value.dtype)))
            log_next = xp.logaddexp(log_y, log_exp)
            uniforms.append(xp.exp((a + k) * (log_y - log_next)))
            log_y = log_next
        top = a + self.boost
        eps, none = LogGamma(boost=0).inverse(log_y - xp.log(top), top)
        return eps, xp.stack(uniforms) if uniforms else none

    def log_noise_density(self, noise: tuple[Array, Array], a: Array) -> Array:
        x, d = self._x(noise[0], a)
        return d * special.log1p_remainder(x) + self.log_bound(a)

    def log_bound(self, a: Array) -> Array:
        b = a + self.boost
        xp = ops_of(a).xp
        return (b - 0.5) * xp.log1p(-1.0 / (3.0 * b)) + 1.0 / 3.0 - special.stirling(b)

    def log_accept(self, noise: Array, a: Array) -> Array:
        x, d = self._x(noise, a)
        return d * special.log1p_remainder(x)

    def squeeze(self, noise: Array, u: Array, a: Array) -> Array:
        """Marsaglia and Tsang's: u < 1 - 0.0331 eps^4, for a + B of at least 1."""
        square = noise * noise
        return (u < 1.0 - 0.0331 * square * square) & (a >= 1.0 - self.boost)

    def log_target(self, value: Array, a: Array) -> Array:
        xp = ops_of(a).xp
        return -a * special.expm1_minus(value) + 0.5 * (xp.log(a) - special.LOG_2PI) - special.stirling(a)

    def log_proposal(self, value: Array, a: Array) -> Array:
        """Density of the un-boosted proposal, in w.

        Raises:
            GradientError: with a boost, where the value is not a function of one noise.
        """
        eps, _ = self.inverse(value, a)
        x, d = self._x(eps, a)
        xp = ops_of(a).xp
        return -0.5 * eps * eps - 0.5 * special.LOG_2PI + 0.5 * xp.log(d) + xp.log1p(x)

    def auxiliary(self, ops: Ops, key: Any, shape: Shape, dtype: Any) -> Array:
        return ops.uniform(key, (self.boost, *shape), dtype)

    def join(self, noise: Array, auxiliary: Any) -> tuple[Array, Array]:
        return noise, auxiliary

    def attach(self, value: Array, a: Array) -> Array:
        return attach(ops_of(a).stop_gradient(value), a, ratio_slope)
