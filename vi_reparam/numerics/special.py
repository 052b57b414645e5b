"""Functions that keep their precision where the textbook forms lose it.

All are elementwise and differentiable; inputs are clamped on both sides of each `where`, against NaN gradients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from vi_reparam.backend.ops import Array
from vi_reparam.backend.registry import ops_of

AT_ONCE = 4_096
"""Numbers up to which a quadrature's nodes share an axis: fewer, larger operations. Above, memory counts."""

LOG_2PI = math.log(2.0 * math.pi)


def _is_double(ops: Any, x: Array) -> bool:
    return ops.xp.finfo(x.dtype).eps < 1e-10


def _apart(xp: Any, first: Array, x: Array, other: float, rest: float) -> tuple[Array, Array]:
    """x where `first` holds, else `other`; and x where it does not, else `rest`: no NaN gradient from either side."""
    return xp.where(first, x, 0.0 * x + other), xp.where(first, 0.0 * x + rest, x)


def horner(x: Array, coefficients: list[float]) -> Array:
    """SUM_k c_k x^k."""
    total = coefficients[-1] + 0.0 * x
    for c in reversed(coefficients[:-1]):
        total = c + x * total
    return total


def log_sum_exp(ops: Any, x: Array, *, axis: int, keepdims: bool = False) -> Array:
    """log SUM e^x along an axis, without overflow."""
    top = ops.stop_gradient(ops.xp.max(x, axis=axis, keepdims=True))
    total = top + ops.xp.log(ops.xp.sum(ops.xp.exp(x - top), axis=axis, keepdims=True))
    return total if keepdims else ops.xp.squeeze(total, axis=axis)


def expm1_minus(x: Array) -> Array:
    """e^x - 1 - x, to relative precision also near 0.

    In twice the precision nothing is lost above 1e-8; below, the error is of 1e-16 x.
    """
    ops = ops_of(x)
    xp = ops.xp
    wide = ops.upcast(x)
    if wide is not None:
        return xp.astype(xp.expm1(wide) - wide, x.dtype)
    small = xp.abs(x) < 0.5
    near, far = _apart(xp, small, x, 0.0, 1.0)
    terms = 16 if _is_double(ops, x) else 9
    series = near * near * horner(near, [1.0 / math.factorial(k) for k in range(2, terms)])
    return xp.where(small, series, xp.expm1(far) - far)


def minus_log1p(t: Array) -> Array:
    """t - log(1 + t) for t > -1, to relative precision also near 0; in twice the precision as `expm1_minus`."""
    ops = ops_of(t)
    xp = ops.xp
    wide = ops.upcast(t)
    if wide is not None:
        return xp.astype(wide - xp.log1p(wide), t.dtype)
    small = xp.abs(t) < 0.3
    near, far = _apart(xp, small, t, 0.0, 1.0)
    r = near / (2.0 + near)
    terms = 11 if _is_double(ops, t) else 5
    series = near * r - 2.0 * r**3 * horner(r * r, [1.0 / (2 * k + 3) for k in range(terms)])
    return xp.where(small, series, far - xp.log1p(far))


def log1p_remainder(x: Array) -> Array:
    """3 log(1 + x) - 3 x + 1.5 x^2 - x^3 for x > -1: of fourth order, as -3/4 x^4 near 0."""
    ops = ops_of(x)
    xp = ops.xp
    small = xp.abs(x) < 0.2
    near, far = _apart(xp, small, x, 0.0, 1.0)
    terms = 26 if _is_double(ops, x) else 13
    series = near**4 * horner(near, [-3.0 * (-1.0) ** k / k for k in range(4, terms)])
    return xp.where(small, series, 3.0 * xp.log1p(far) - 3.0 * far + 1.5 * far * far - far**3)


_STIRLING = [1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156]
_DIGAMMA = [-1 / 12, 1 / 120, -1 / 252, 1 / 240, -1 / 132, 691 / 32760, -1 / 12]


def stirling(a: Array) -> Array:
    """log Gamma(a) - [(a - 1/2) log a - a + log(2 pi) / 2], about 1 / (12 a)."""
    ops = ops_of(a)
    xp = ops.xp
    large = a > 8.0
    far, near = _apart(xp, large, a, 8.0, 8.0)
    series = horner(1.0 / (far * far), _STIRLING) / far
    direct = ops.gammaln(near) - (near - 0.5) * xp.log(near) + near - 0.5 * LOG_2PI
    return xp.where(large, series, direct)


def digamma_minus_log(a: Array) -> Array:
    """psi(a) - log a, about -1 / (2 a)."""
    ops = ops_of(a)
    xp = ops.xp
    large = a > 8.0
    far, near = _apart(xp, large, a, 8.0, 8.0)
    square = 1.0 / (far * far)
    return xp.where(large, -0.5 / far + square * horner(square, _DIGAMMA), ops.digamma(near) - xp.log(near))


def gammaln_half_step(a: Array) -> Array:
    """log Gamma(a + 1/2) - log Gamma(a), without cancellation at large a."""
    xp = ops_of(a).xp
    return a * xp.log1p(0.5 / a) - 0.5 + 0.5 * xp.log(a) + stirling(a + 0.5) - stirling(a)


def exp_clipped(log_value: Array, value: Array | None = None) -> Array:
    """exp(log_value) kept between the smallest normal and the largest number; a clipped draw still has a gradient.

    Args:
        log_value: the precise logarithm.
        value: the exponential, where a more precise form than exp(log_value) is at hand.
    """
    ops = ops_of(log_value)
    xp = ops.xp
    info = xp.finfo(log_value.dtype)
    largest = math.log(float(info.max)) - 1e-3
    smallest = math.log(float(info.smallest_normal))
    inside = (log_value > smallest) & (log_value < largest)
    raw = ops.stop_gradient(xp.exp(xp.clip(log_value, smallest, largest)))
    raw = raw if value is None else xp.where(inside, ops.stop_gradient(value), raw)
    raw = xp.where(raw < float(info.smallest_normal), 0.0 * raw + float(info.smallest_normal), raw)
    return raw * (1.0 + (log_value - ops.stop_gradient(log_value)))


@functools.cache
def legendre(num: int) -> tuple[tuple[float, float], ...]:
    """Nodes and weights of the Gauss-Legendre rule on [0, 1]."""
    rule = []
    for i in range(num):
        x = math.cos(math.pi * (i + 0.75) / (num + 0.5))
        slope = 1.0
        for _ in range(100):
            previous, current = 1.0, x
            for k in range(2, num + 1):
                previous, current = current, ((2 * k - 1) * x * current - (k - 1) * previous) / k
            slope = num * (x * current - previous) / (x * x - 1.0)
            step = current / slope
            x -= step
            if abs(step) < 1e-15:
                break
        rule.append((0.5 * (1.0 - x), 1.0 / ((1.0 - x * x) * slope * slope)))
    return tuple(rule)


def columns(rule: tuple[tuple[float, ...], ...], like: Array) -> tuple[Array, ...]:
    """The columns of a table, each along a new leading axis; dimensions and dtype of `like`."""
    xp = ops_of(like).xp
    shape = (len(rule), *(1 for _ in like.shape))
    return tuple(xp.reshape(xp.asarray(column, dtype=like.dtype), shape) for column in zip(*rule, strict=True))


def nodes(num: int, like: Array) -> tuple[Array, Array]:
    """The rule of `legendre` on a new leading axis, to be summed over axis 0; dimensions and dtype of `like`."""
    return columns(legendre(num), like)  # type: ignore[return-value]


def sum_of(term: Callable[..., Array], rule: tuple[tuple[float, ...], ...], like: Array) -> Array:
    """SUM of ``term(*row)`` over the rows of a table, in a row and fused where arrays are compiled; as `like`."""
    ops = ops_of(like)
    table = tuple(ops.xp.asarray(column, dtype=like.dtype) for column in zip(*rule, strict=True))

    def add(total: Array, row: tuple[Array, ...]) -> tuple[Array, tuple[()]]:
        return total + term(*row), ()

    return ops.scan(add, 0.0 * like, table, unroll=True)[0]
