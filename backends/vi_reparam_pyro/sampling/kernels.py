"""Gamma draws as one Triton kernel, for GPUs: each lane runs its own loop in registers.

The same sampler as the plain version, Marsaglia and Tsang's in log space with a boost of one, with
noise of its own: Philox words keyed by lane and round. So the draws are other numbers of the same
law than the plain version's, and on a GPU a seed gives the same draws as long as the same version
is the faster one (`gammas.ratios` says how that is found). Imported on a GPU only, where Triton
comes with torch; tests run it in Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

Array = Any

MOST = 2_000
"""Proposals a lane may make."""

_LANES = 256
"""A program's: it goes on until the last of them has its draw."""


@triton.jit
def _uniform(word):
    """On (0, 1]."""
    return (word.to(tl.uint32, bitcast=True).to(tl.float32) + 0.5) * 2.3283064365386963e-10


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
def _draw(a_at, out_at, seed, num, most, LANES: tl.constexpr):
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    a = tl.load(a_at + lane, mask=lane < num, other=1.0)
    d = a + 0.6666666666666666
    c = 1.0 / (3.0 * tl.sqrt(d))
    zero = lane * 0
    left = zero + 1
    x = a * 0.0 + float("nan")
    count = 0
    while (count < most) & (tl.max(left, axis=0) > 0):  # pyright: ignore[reportOperatorIssue]
        one, two, coin, _ = tl.philox(seed, lane, zero + count, zero, zero)
        eps = tl.sqrt(-2.0 * tl.log(_uniform(one))) * tl.cos(6.283185307179586 * _uniform(two))
        fresh = c * eps
        inside = fresh > -1.0
        accepted = tl.log(_uniform(coin)) < d * _remainder(tl.where(inside, fresh, 0.0))
        taken = (left > 0) & inside & accepted
        x = tl.where(taken, fresh, x)
        left = tl.where(taken, 0, left)
        count += 1
    boost, _, _, _ = tl.philox(seed, lane, zero, zero + 1, zero)
    w = 3.0 * _log1p(x) + _log1p(0.6666666666666666 / a) + tl.log(_uniform(boost)) / a
    tl.store(out_at + lane, w, mask=lane < num)


def ratios(key: int, a: Array, most: int = MOST) -> Array:
    """W = log(z / a) for z ~ Gamma(a, 1), of a float32 tensor; a lane that no proposal serves is NaN.

    Args:
        key: up to 63 bits.
        a: concentrations.
        most: proposals a lane may make.
    """
    a = a.detach().contiguous()
    out = torch.empty_like(a)
    if a.numel():
        program: Any = _draw
        program[(triton.cdiv(a.numel(), _LANES),)](a, out, key, a.numel(), most, LANES=_LANES)
    return out
