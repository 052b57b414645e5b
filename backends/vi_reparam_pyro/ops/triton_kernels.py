"""Gamma draws and their slopes as Triton kernels, for GPUs: each block of lanes runs its own loop in registers.

The same sampler as the plain version, Marsaglia and Tsang's in log space, with noise of its own: Philox words keyed by
lane and round. So the draws are other numbers of the same law than the plain version's, and on a GPU a seed gives the
same draws as long as the same version is the faster one (`kernels.fastest`). Imported on a GPU only, where Triton comes
with torch; tests run it in Triton's interpreter.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from vi_reparam.numerics.gamma_slope import RULE, SERIES_BELOW, SINGLE_TERMS

Array = Any

_LANES = 256
"""A program's: it goes on until the last of them has its draw."""


@triton.jit
def _single(word):
    """On (0, 1]."""
    return (word.to(tl.uint32, bitcast=True).to(tl.float32) + 0.5) * 2.3283064365386963e-10


@triton.jit
def _double(high, low):
    """On (0, 1]."""
    low = (low.to(tl.uint32, bitcast=True).to(tl.float64) + 0.5) * 2.3283064365386963e-10
    return (high.to(tl.uint32, bitcast=True).to(tl.float64) + low) * 2.3283064365386963e-10


@triton.jit
def _log1p(x):
    y = 1.0 + x
    return tl.log(y) - ((y - 1.0) - x) / y


@triton.jit
def _remainder(x):
    """3 log(1 + x) - 3 x + 1.5 x^2 - x^3, of fourth order near 0."""
    near = tl.where(tl.abs(x) < 0.2, x, 0.0)
    series = 3.0 / 11.0
    series = -3.0 / 10.0 + near * series
    series = 3.0 / 9.0 + near * series
    series = -3.0 / 8.0 + near * series
    series = 3.0 / 7.0 + near * series
    series = -3.0 / 6.0 + near * series
    series = 3.0 / 5.0 + near * series
    series = -3.0 / 4.0 + near * series
    square = near * near
    far = tl.where(tl.abs(x) < 0.2, 0.0, x)
    direct = 3.0 * tl.log(1.0 + far) - 3.0 * far + 1.5 * far * far - far * far * far
    return tl.where(tl.abs(x) < 0.2, square * square * series, direct)


@triton.jit
def _draw(a_at, seed_at, out_at, num, most, shift, RATIO: tl.constexpr, DOUBLE: tl.constexpr, LANES: tl.constexpr):
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    seed = tl.load(seed_at)
    a = tl.load(a_at + lane, mask=lane < num, other=1.0)
    d = a + shift
    scale = 1.0 / (3.0 * tl.sqrt(d))
    zero = lane * 0
    left = tl.where(a == a, zero + 1, zero)  # no proposal is accepted where a is NaN
    eps = a * 0.0 + float("nan")
    u = a * 0.0 + 1.0
    count = 0
    while (count < most) & (tl.max(left, axis=0) > 0):  # pyright: ignore[reportOperatorIssue]
        one, two, three, four = tl.philox(seed, lane, zero + count, zero, zero)
        if DOUBLE:
            normal = tl.sqrt(-2.0 * tl.log(_double(one, two))) * tl.cos(
                6.283185307179586 * _single(three).to(tl.float64)
            )
            coin = _single(four)
        else:
            normal = tl.sqrt(-2.0 * tl.log(_single(one))) * tl.cos(6.283185307179586 * _single(two))
            coin = _single(three)
        fresh = scale * normal
        inside = fresh > -1.0
        accepted = tl.log(coin) < d * _remainder(tl.where(inside, fresh, 0.0))
        taken = (left > 0) & inside & accepted
        eps = tl.where(taken, normal, eps)
        if RATIO and not DOUBLE:
            u = tl.where(taken, _single(four), u)
        left = tl.where(taken, 0, left)
        count += 1
    if RATIO:
        if DOUBLE:
            high, low, _, _ = tl.philox(seed, lane, zero, zero + 1, zero)
            u = _double(high, low)
        eps = 3.0 * _log1p(scale * eps) + _log1p(shift / a) + tl.log(u) / a
    tl.store(out_at + lane, eps, mask=lane < num)


@triton.jit
def _expm1_minus(x):
    """exp(x) - 1 - x."""
    near = tl.where(tl.abs(x) < 0.5, x, 0.0)
    series = 1.0 / 5040.0 + near * (1.0 / 40320.0)
    series = 1.0 / 720.0 + near * series
    series = 1.0 / 120.0 + near * series
    series = 1.0 / 24.0 + near * series
    series = 1.0 / 6.0 + near * series
    series = 0.5 + near * series
    return tl.where(tl.abs(x) < 0.5, near * near * series, tl.exp(x) - 1.0 - x)


@triton.jit
def _slope(w_at, a_at, rule_at, out_at, num, below, TERMS: tl.constexpr, NODES: tl.constexpr, LANES: tl.constexpr):
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    w = tl.load(w_at + lane, mask=lane < num, other=0.0)
    a = tl.load(a_at + lane, mask=lane < num, other=1.0)
    y = 1.0 / (a + 4.0)
    square = y * y
    psi = _log1p(4.0 / a) - 0.5 * y - square * (1.0 / 12.0 - square * (1.0 / 120.0 - square * (1.0 / 252.0)))
    psi = psi - (1.0 / (a + 1.0) + 1.0 / (a + 2.0) + 1.0 / (a + 3.0)) - w
    centre = psi - 1.0 / a
    small = w + tl.log(a) < below
    # the power series
    z = tl.where(small, a * tl.exp(w), 0.0)
    term = 1.0 / a
    total = term * psi
    step = term
    for n in range(1, TERMS):
        step = 1.0 / (a + n)
        term = term * z * step
        psi = psi + step
        total = total + term * psi
    # the rule, at harmless numbers where the series serves
    a = tl.where(small, 2.0, a)
    w = tl.where(small, 0.0, w)
    centre = tl.where(small, 0.0, centre)
    lower = w < 0.0
    sign = tl.where(lower, -1.0, 1.0)
    shrink = _expm1_minus(w) + w
    z = a + a * shrink
    c = a * tl.abs(shrink)
    unit = 2.0 / (c + tl.sqrt(c * c + 2.0 * z))
    centre = sign * centre
    sum_ = 0.0 * w
    for i in range(NODES):
        node = tl.where(lower, tl.load(rule_at + 4 * i), tl.load(rule_at + 4 * i + 2))
        weight = tl.where(lower, tl.load(rule_at + 4 * i + 1), tl.load(rule_at + 4 * i + 3))
        u = unit * node
        sum_ += weight * tl.exp(-c * u - z * _expm1_minus(sign * u)) * (u - centre)
    tl.store(out_at + lane, tl.where(small, total, unit * sum_), mask=lane < num)


def draw(key: Any, a: Array, *, boost: float, most: int, ratio: bool) -> Array:
    """Accepted normals of Marsaglia and Tsang's sampler; a lane that no proposal serves is NaN.

    Args:
        key: up to 63 bits, or an int64 tensor of no dimension on the same device.
        a: concentrations, float32 or float64.
        boost: of the sampler.
        most: proposals a lane may make.
        ratio: give W = log(z / a) for z ~ Gamma(a, 1) instead, with a boost of one.
    """
    a = a.detach().contiguous()
    out = torch.empty_like(a)
    if a.numel():
        seed = key if isinstance(key, torch.Tensor) else torch.full((), key, dtype=torch.int64, device=a.device)
        program: Any = _draw
        options = {"RATIO": ratio, "DOUBLE": a.dtype == torch.float64, "LANES": _LANES}
        with _on(a.device):
            program[(triton.cdiv(a.numel(), _LANES),)](a, seed, out, a.numel(), most, boost - 1.0 / 3.0, **options)
    return out


def slope(w: Array, a: Array) -> Array:
    """`vi_reparam.numerics.gamma_slope.log_slope`, of float32 tensors of one shape."""
    w, a = w.detach().contiguous(), a.detach().contiguous()
    out = torch.empty_like(w)
    if w.numel():
        program: Any = _slope
        options = {"TERMS": SINGLE_TERMS, "NODES": len(RULE), "LANES": _LANES}
        with _on(a.device):
            program[(triton.cdiv(w.numel(), _LANES),)](
                w, a, _rule(a.device), out, w.numel(), math.log(SERIES_BELOW), **options
            )
    return out


def _on(device: torch.device) -> Any:
    """Triton launches on torch's current GPU, which need not be the one the tensors are on."""
    return torch.cuda.device(device if device.type == "cuda" else -1)


@functools.cache
def _rule(device: torch.device) -> Array:
    return torch.tensor(RULE, dtype=torch.float32, device=device)
