"""One-sided tails for the coordinates of a Gaussian, learned: what the logarithm of a gamma variate looks like.

A positive latent moved to the reals has an exponential tail to one side: log z of a gamma variate is
about normal at a large concentration a, and an exponential with rate a at a small one, where the nearest
normal loses 0.24 (a = 0.3) to 0.75 nats (a = 0.05) a coordinate. The map

    g(x) = [(1 - t) x + t (log Phi(x) + 1)] / n(t),    t = tanh(raw) in [0, 1),

is increasing and concave, and has mean 0 and variance 1 under a standard normal x. It goes from the identity
at t = 0 to the quantiles of an exponential at t = 1; shifted and scaled it comes within 0.0011 nats of log z at
every a from 0.05 on. A negative ``raw`` bends to the other side, as an inverse gamma asks.
"""

from __future__ import annotations

import math

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.gaussians.bases import Params
from vi_reparam.numerics.special import LOG_2PI

HIDDEN = 64
"""Width of the layer between features and bends."""

NUM_MATCHED = 512
"""Draws that `match` is given."""

COVARIANCE = 0.9031972855686254
"""Of x and log Phi(x) under a standard normal x: E[phi(x) / Phi(x)]."""


def skew(ops: Ops, x: Array, raw: Array) -> tuple[Array, Array, Array]:
    """g(x), log g'(x), and the slope of log g'(x) in x, elementwise.

    Args:
        x: about standard normal.
        raw: of each coordinate, of the shape of `x`; 0 for the identity.
    """
    xp = ops.xp
    side = xp.where(raw < 0.0, -xp.ones_like(raw), xp.ones_like(raw))
    t, v = xp.tanh(side * raw), side * x
    rest = 2.0 / (xp.exp(2.0 * side * raw) + 1.0)  # 1 - t, where that would round to zero
    norm = xp.sqrt(1.0 - 2.0 * (1.0 - COVARIANCE) * t * rest)
    log_cdf = ops.log_ndtr(v)
    mills = xp.exp(-0.5 * v * v - 0.5 * LOG_2PI - log_cdf)
    rise = rest + t * mills
    value = side * (rest * v + t * (log_cdf + 1.0)) / norm
    return value, xp.log(rise / norm), -side * t * mills * (v + mills) / rise


def shapes(size: int, num_features: int) -> dict[str, tuple[tuple[int, ...], float]]:
    """Parameter name -> its shape, and the standard deviation of its start (0: starts at zero).

    Args:
        size: D.
        num_features: of the row on which the bends depend; 0 for none.
    """
    out: dict[str, tuple[tuple[int, ...], float]] = {"skew": ((size,), 0.0)}
    if num_features:
        out["skew_in"] = ((num_features, HIDDEN), num_features**-0.5)
        out["skew_bias"] = ((HIDDEN,), 0.0)
        out["skew_out"] = ((HIDDEN, size), 0.0)
    return out


def raw_of(ops: Ops, params: Params, mask: Array, row: Array | None) -> Array:
    """The bend of each coordinate, shape ``[D]``.

    Args:
        params: as `shapes` names them.
        mask: 1 where a coordinate may bend, 0 elsewhere. Shape ``[D]``.
        row: of features, shape ``[F]``; None without.
    """
    raw = params["skew"]
    if row is not None:
        hidden = row @ params["skew_in"] + params["skew_bias"]
        raw = raw + ops.xp.tanh(hidden) @ params["skew_out"]
    return mask * raw


def match(ops: Ops, draws: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Location, scale and `raw` of each coordinate (shape ``[D]``), by three L-moments of draws (Hosking 1990).

    They are averages of ordered draws, which a long tail does not decide. Those of g follow from a normal's
    (0, 1 / sqrt(pi), 0) and an exponential's (1, 1/2, 1/6).

    Args:
        draws: shape ``[N, D]``, finite.
        mask: as in `raw_of`; other coordinates are matched by a normal.
    """
    xp, num = ops.xp, draws.shape[0]
    ordered = xp.sort(draws, axis=0)
    rank = xp.reshape(xp.arange(num, dtype=draws.dtype), (-1, 1))
    location = xp.mean(ordered, axis=0)
    once = xp.mean(ordered * rank, axis=0) / (num - 1)
    twice = xp.mean(ordered * rank * (rank - 1.0), axis=0) / ((num - 1) * (num - 2))
    second, third = 2.0 * once - location, 6.0 * twice - 6.0 * once + location
    second = xp.where(second > 0.0, second, 1e-6 * (1.0 + xp.abs(location)))  # draws that are all the same
    lean = mask * xp.clip(xp.abs(third) / second, 0.0, 0.333)
    t = lean / math.sqrt(math.pi) / (1.0 / 6.0 - lean * (0.5 - 1.0 / math.sqrt(math.pi)))
    norm = xp.sqrt(1.0 - 2.0 * (1.0 - COVARIANCE) * t * (1.0 - t))
    scale = second * norm / ((1.0 - t) / math.sqrt(math.pi) + 0.5 * t)
    return location, scale, xp.where(third > 0.0, -1.0, 1.0) * xp.atanh(t)


def raw_of_skewness(ops: Ops, skewness: Array) -> Array:
    """`raw` at which g has this skewness, within 0.01 of it; at most 1.9, of the 2 of an exponential."""
    size = ops.xp.clip(ops.xp.abs(skewness), 0.0, 1.9)
    side = ops.xp.where(skewness < 0.0, ops.xp.ones_like(size), -ops.xp.ones_like(size))
    return side * ops.xp.atanh(size / (1.79 + 0.277 * size - 0.086 * size * size))
