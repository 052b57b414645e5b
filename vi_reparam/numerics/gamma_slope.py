"""The implicit derivative of a gamma draw in its shape, in log space."""

from __future__ import annotations

import math

from vi_reparam.backend.ops import Array
from vi_reparam.backend.registry import ops_of
from vi_reparam.numerics import special

RULE = (
    (0.0739240574, 0.1857083, 0.0860773727, 0.214783336),
    (0.354746549, 0.353048888, 0.407358287, 0.406088543),
    (0.715657911, 0.344761493, 0.85877498, 0.481469402),
    (1.09539965, 0.463348939, 1.35062278, 0.497518739),
    (1.65848008, 0.643814178, 1.85318591, 0.511303763),
    (2.35546284, 0.745249029, 2.38755346, 0.567435971),
    (3.15978962, 0.879797202, 3.01162307, 0.693916281),
    (4.16455691, 1.15980072, 3.80684133, 0.916760466),
    (5.54943789, 1.65358259, 4.90396596, 1.31993122),
    (7.59666391, 2.53367927, 6.57279868, 2.11209973),
    (10.9546276, 4.51793525, 9.48233697, 4.05942913),
)
"""Node and weight in the lower tail, node and weight in the upper: fitted, see `_by_rule`."""

SERIES_BELOW = 1.5
"""The z below which the power series serves; `RULE` is fitted for those above."""

SINGLE_TERMS = 12
"""Its terms in float32."""

_EXP = [1.0 / math.factorial(k) for k in range(2, 9)]

_FEW = 64
"""Numbers up to which the nodes share an axis; more would make the sum over it slower than the nodes one by one."""


def log_slope(w: Array, a: Array) -> Array:
    """d log z / da of z ~ Gamma(a, 1) at constant F(z; a): a constant, not meant to be differentiated.

    With w = log(z / a) and e(x) = exp(x) - 1 - x, substituting t = z exp(-u) in the lower and
    t = z exp(u) in the upper incomplete gamma integral gives, with s the sign of w,

        slope = INT_0^inf exp(-a |exp(w) - 1| u - z e(s u)) (u - s (psi(a) - log a - w)) du,

    a decaying integrand on either side. For z below 1.5 the power series of the distribution
    function is used. The relative error is below 1e-5 in float32 and below 1e-10 in float64.

    Args:
        w: log(z / a), any shape; `a`: the concentration, same shape, both of one float dtype.
    """
    ops = ops_of(w, a)
    xp = ops.xp
    w, a = ops.stop_gradient(w), ops.stop_gradient(a)
    double = xp.finfo(w.dtype).eps < 1e-10
    log_a = xp.log(a)
    log_z = w + log_a
    small = log_z < math.log(SERIES_BELOW)
    if double:
        psi = ops.digamma(a + 1.0) - log_z
        centre = special.digamma_minus_log(a) - w
    else:
        psi = _next_digamma_minus_log(a) - w
        centre = psi - 1.0 / a
    zero = 0.0 * w

    # Both branches are computed everywhere: each is given harmless numbers where the other serves.
    series = _series(xp.exp(xp.where(small, log_z, zero)), a, psi, 24 if double else SINGLE_TERMS)
    a = xp.where(small, zero + 2.0, a)
    w = xp.where(small, zero, w)
    centre = xp.where(small, zero, centre)
    integral = (_by_legendre if double else _by_rule)(w, a, centre)
    return xp.where(small, series, integral)


def ratio_slope(w: Array, a: Array) -> Array:
    """d w / da at constant F(z; a): `log_slope` less the 1 / a by which w = log(z / a) differs from log z."""
    return log_slope(w, a) - 1.0 / a


def _next_digamma_minus_log(a: Array) -> Array:
    """psi(a + 1) - log a in float32: the asymptotic series at a + 4, four steps down."""
    xp = ops_of(a).xp
    y = 1.0 / (a + 4.0)
    square = y * y
    far = xp.log1p(4.0 / a) - 0.5 * y - square * (1.0 / 12.0 - square * (1.0 / 120.0 - square * (1.0 / 252.0)))
    return far - (1.0 / (a + 1.0) + 1.0 / (a + 2.0) + 1.0 / (a + 3.0))


def _series(z: Array, a: Array, psi: Array, terms: int) -> Array:
    """SUM_n z^n / (a (a + 1) ... (a + n)) (psi(a + n + 1) - log z); `psi` is that of n = 0."""
    term = 1.0 / a
    total = term * psi
    for n in range(1, terms):
        step = 1.0 / (a + n)
        term = term * z * step
        psi = psi + step
        total = total + term * psi
    return total


def _by_rule(w: Array, a: Array, centre: Array) -> Array:
    """The integral by 11 nodes, for float32.

    In units of L, where c L + z L^2 / 2 = 1, the integrands are a family of two parameters (how
    much of the decay at L is quadratic, and L itself, at most 1.16 as z is at least 1.5). The
    rule was fitted to it by Gauss-Newton, node by node eliminated from a longer one; its largest
    relative error over the family is 2e-7 in the lower tail and 3e-6 in the upper.
    """
    xp = ops_of(w).xp
    lower = w < 0.0
    shrink = xp.expm1(w)
    z = a + a * shrink
    c = a * xp.abs(shrink)
    unit = 2.0 / (c + xp.sqrt(c * c + 2.0 * z))
    sign = xp.where(lower, 0.0 * w - 1.0, 0.0 * w + 1.0)
    centre = sign * centre
    if math.prod(w.shape) <= _FEW:
        low_node, low_weight, high_node, high_weight = special.columns(RULE, w)
        node = xp.where(lower[None], low_node, high_node)
        weight = xp.where(lower[None], low_weight, high_weight)
        u = unit[None] * node
        decay = xp.exp(-c[None] * u - z[None] * _expm1_minus(sign[None] * u))
        return unit * xp.sum(weight * decay * (u - centre[None]), axis=0)
    share = 0.5 - 0.5 * sign  # 1 in the lower tail, 0 in the upper

    def term(low_node: Array, low_weight: Array, high_node: Array, high_weight: Array) -> Array:
        u = unit * (high_node + (low_node - high_node) * share)
        weight = high_weight + (low_weight - high_weight) * share
        return weight * xp.exp(-c * u - z * _expm1_minus(sign * u)) * (u - centre)

    return unit * special.sum_of(term, RULE, w)


def _expm1_minus(x: Array) -> Array:
    """`special.expm1_minus` in float32 for what is not differentiated, hence shorter."""
    xp = ops_of(x).xp
    return xp.where(xp.abs(x) < 0.5, x * x * special.horner(x, _EXP), xp.exp(x) - 1.0 - x)


def _by_legendre(w: Array, a: Array, centre: Array) -> Array:
    """The integral by a Gauss-Legendre rule of 44 nodes on the range in which it matters, for float64."""
    xp = ops_of(w).xp
    reach, num = 38.0, 44
    z = a * xp.exp(w)
    s = xp.where(w < 0.0, -1.0 + 0.0 * w, 1.0 + 0.0 * w)
    c = a * xp.abs(xp.expm1(w))
    tail = xp.where(w < 0.0, reach / 3.0 + 0.0 * w, 0.0 * w)
    b = c - tail
    curve = 0.5 * z + xp.where(w < 0.0, c / 3.0, 0.0 * c)
    root = xp.sqrt(b * b + 4.0 * curve * reach)
    upper = xp.where(b > 0.0, 2.0 * reach / (xp.abs(b) + root), (root - b) / (2.0 * curve))
    for _ in range(3):
        value = c * upper + z * special.expm1_minus(s * upper) - reach
        upper = upper - value / (c + z * s * xp.expm1(s * upper))
    if math.prod(w.shape) <= special.AT_ONCE:
        node, weight = special.nodes(num, w)
        u = upper[None] * node
        decay = xp.exp(-c[None] * u - z[None] * special.expm1_minus(s[None] * u))
        return upper * xp.sum(weight * decay * (u - (s * centre)[None]), axis=0)

    def term(node: Array, weight: Array) -> Array:
        u = upper * node
        return weight * xp.exp(-c * u - z * special.expm1_minus(s * u)) * (u - s * centre)

    return upper * special.sum_of(term, special.legendre(num), w)
