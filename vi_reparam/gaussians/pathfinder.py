"""Where to start and in what units: a Newton path, each point of it a Gaussian that the bound judges.

As Pathfinder (Zhang, Carpenter, Gelman and Vehtari 2022), with the modulus of the Hessian (the saddle-free Newton step
of Dauphin et al. 2014) in place of a quasi-Newton estimate: it serves also where there is no mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.numerics.special import LOG_2PI

State = dict[str, Array]

NUM_ITERATIONS = 40
NUM_DRAWS = 64
LARGEST = 128
"""Most coordinates: a step takes as many gradients as there are."""

STEPS = (0.0, 1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.001)
WIDEST = 100.0
"""Largest standard deviation of a direction that the density leaves flat."""


@dataclass(frozen=True)
class Density:
    """A log density over vectors of shape ``[D]``, with its derivatives.

    Attributes:
        values: at vectors of shape ``[N, D]``, shape ``[N]``.
        curvature: its gradient and its matrix of second derivatives at one vector.
    """

    values: Callable[[Array], Array]
    curvature: Callable[[Array], tuple[Array, Array]]


def begin(ops: Ops, start: Array) -> State:
    """The state of a path at its start, shape ``[D]``, where nothing is known yet."""
    xp = ops.xp
    nothing = xp.full_like(start[0], -math.inf)
    return {
        "at": start,
        "value": nothing,
        "center": start,
        "root": xp.eye(start.shape[0], dtype=start.dtype),
        "bound": nothing,
        "error": xp.zeros_like(start[0]),
    }


def advance(ops: Ops, density: Density, noise: Array, state: State) -> State:
    """Judge the Gaussian at this point of the path, and take a step up.

    Args:
        noise: standard normal, shape ``[N, D]``; the same for all points, so that their bounds compare.

    Returns:
        The new state; `center`, `root` (lower triangular), `bound` and `error` are those of the best
        Gaussian so far: its location, its scale, its ELBO in nats and the ELBO's standard error.
    """
    xp = ops.xp
    at = state["at"]
    slope, hessian = density.curvature(at)
    slope = xp.where(xp.isfinite(slope), slope, xp.zeros_like(slope))
    values, vectors = _modulus(ops, hessian)
    root = _triangular(xp, vectors / xp.sqrt(values)[None, :])
    direction = vectors @ ((slope @ vectors) / values)
    trials = at[None] + xp.asarray(STEPS, dtype=at.dtype)[:, None] * direction[None]
    heights = density.values(xp.concat([at[None] + noise @ root.T, trials]))  # at once: one copy of the model
    bound, error = _gaussian_bound(ops, heights[: noise.shape[0]], root, noise)
    better = bound > state["bound"]
    heights = heights[noise.shape[0] :]
    heights = xp.where(xp.isfinite(heights), heights, xp.full_like(heights, -math.inf))
    best = xp.reshape(xp.argmax(heights), (1,))  # taken, not indexed: it may be a lane's own
    return {
        "at": xp.take(trials, best, axis=0)[0],
        "value": xp.take(heights, best, axis=0)[0],
        "center": xp.where(better, at, state["center"]),
        "root": xp.where(better, root, state["root"]),
        "bound": xp.where(better, bound, state["bound"]),
        "error": xp.where(better, error, state["error"]),
    }


def _gaussian_bound(ops: Ops, log_p: Array, root: Array, noise: Array) -> tuple[Array, Array]:
    """The ELBO of a Gaussian from log p at its draws, and its standard error; minus infinity if one is not finite."""
    xp = ops.xp
    num, size = noise.shape
    log_det = xp.sum(xp.log(xp.abs(xp.linalg.diagonal(root))))
    terms = log_p + 0.5 * xp.sum(noise * noise, axis=-1) + 0.5 * size * LOG_2PI + log_det
    mean = xp.mean(terms)
    spread = xp.sqrt(xp.mean((terms - mean) ** 2) / num)
    fine = xp.all(xp.isfinite(terms))
    return xp.where(fine, mean, xp.full_like(mean, -math.inf)), xp.where(fine, spread, xp.zeros_like(spread))


def _modulus(ops: Ops, hessian: Array) -> tuple[Array, Array]:
    """Moduli of the curvatures, kept away from zero, and their directions as columns."""
    xp = ops.xp
    hessian = xp.where(xp.isfinite(hessian), hessian, xp.zeros_like(hessian))
    values, vectors = xp.linalg.eigh(-0.5 * (hessian + hessian.T))
    values = xp.abs(values)
    rounding = 1e-12 if "64" in str(values.dtype) else 1e-6
    floor = xp.max(values) * rounding + WIDEST**-2
    return xp.where(values > floor, values, floor), vectors


def _triangular(xp: Any, factor: Array) -> Array:
    """The lower triangular L with L L^T = factor factor^T, its diagonal positive."""
    upper = xp.linalg.qr(factor.T)[1]
    signs = xp.where(xp.linalg.diagonal(upper) < 0.0, -1.0, 1.0)
    return upper.T * xp.astype(signs, factor.dtype)[None, :]


APART = 4.0
"""Standard deviations between places that are counted as two."""

SMALL = 12
"""Coordinates up to which a narrow place within a wide one is counted too: `vr.AdaptiveMixture` serves there."""

WORSE = 10.0
"""A place whose bound is lower by more than this many nats is not kept."""

MOST_PLACES = 24
MANY = 20_000
"""Numbers in a run of the model above which fewer paths are begun, to keep within memory."""

VALLEY = 1.0
"""Nats by which the density falls between two places that are counted as two modes."""

NUM_STOPS = 13
"""Points on the way between two places."""

FEW, MOST_TRIED, POINTS = 4, 2_048, 250_000
"""Coordinates up to which a narrow mode can be met by chance, and points of which one becomes a start there: at the
most, and times the numbers in a run of the model."""

INFLATIONS = (1.0, 2.0, 3.5, 6.0)
"""How much wider than what is known the points lie among which other modes are looked for."""

MOST_RUNS = 3
"""Places that one Gaussian is fitted from."""


def num_starts(size: int, scalars: int) -> int:
    """Of the paths, for a vector of `size` coordinates: a mode of a tenth of the mass needs about thirty.

    Args:
        scalars: numbers that one run of the model holds, about.
    """
    return 32 if size <= 32 and scalars < MANY else 16 if size <= 64 and scalars < 2 * MANY else 8


def num_tried(size: int, scalars: int) -> int:
    """Points of which one becomes a start: more where they fill the space. `scalars`: as in `num_starts`."""
    least = 256 if size <= 8 and scalars < MANY // 10 else 64
    return max(least, min(MOST_TRIED, POINTS // scalars)) if size <= FEW else least


def unlike(ops: Ops, values: Callable[[Array], Array], known: State, noise: Array, num: int) -> Array:
    """Points where a density is high beside the Gaussians that are known of it: there may be other modes.

    Args:
        values: the log density at vectors of shape ``[N, D]``.
        known: `center` and `root` of K Gaussians.
        noise: standard normal, shape ``[num * M, D]``; of each M points the one with the highest ratio is taken.

    Returns:
        Shape ``[num, D]``.
    """
    xp = ops.xp
    center, root = known["center"], known["root"]
    size, count = noise.shape[1], noise.shape[0]
    widths = xp.take(ops.asarray(list(INFLATIONS), noise.dtype), xp.arange(count) % len(INFLATIONS))
    index = xp.arange(count) // len(INFLATIONS) % center.shape[0]
    wide = noise * widths[:, None]
    points = xp.take(center, index, axis=0) + xp.sum(xp.take(root, index, axis=0) * wide[:, None, :], axis=-1)
    x = (points[None] - center[:, None]) @ xp.permute_dims(xp.linalg.inv(root), (0, 2, 1))
    square, log_det = xp.sum(x * x, axis=-1), xp.sum(xp.log(xp.abs(xp.linalg.diagonal(root))), axis=-1)
    each = [xp.max(-0.5 * square / s**2 - size * math.log(s) - log_det[:, None], axis=0) for s in INFLATIONS]
    ratio = values(points) - xp.max(xp.stack(each), axis=0)
    ratio = xp.where(xp.isfinite(ratio), ratio, xp.full_like(ratio, -math.inf))
    best = xp.argmax(xp.reshape(ratio, (num, -1)), axis=1) + xp.arange(num) * (count // num)
    return xp.take(points, best, axis=0)


def distances(ops: Ops, centers: Array, roots: Array) -> Array:
    """Between Gaussians, each pair in the deviations of its mean covariance. Shape ``[S, S]``."""
    xp = ops.xp
    covariances = roots @ xp.permute_dims(roots, (0, 2, 1))
    common = 0.5 * (covariances[:, None] + covariances[None])
    moves = centers[:, None] - centers[None]
    return xp.sqrt(xp.sum(moves * xp.linalg.solve(common, moves[..., None])[..., 0], axis=-1))


def with_widths(distances: Any, roots: Any) -> Any:
    """Up to `SMALL` coordinates, the distances of Gaussians of equal covariance that overlap as little as these.

    By Bhattacharyya's distance, which sets a narrow one within a wide one apart too. On the host: two factorizations of
    many matrices that XLA runs side by side wait for each other forever where it has two threads.

    Args:
        distances: NumPy's, shape ``[S, S]``; `roots`: of the covariances, triangular, shape ``[S, D, D]``.
    """
    if roots.shape[-1] > SMALL:
        return distances
    xp = roots.__array_namespace__()
    roots = xp.asarray(roots, dtype=xp.float64)
    covariances = roots @ xp.swapaxes(roots, 1, 2)
    both = xp.linalg.slogdet(0.5 * (covariances[:, None] + covariances[None]))[1]
    own = xp.log(xp.abs(xp.diagonal(roots, axis1=1, axis2=2))).sum(1)
    return xp.sqrt(distances**2 + 4.0 * xp.maximum(both - own[:, None] - own[None], 0.0))


def places_apart(bounds: Any, distances: Any) -> list[int]:
    """Which Gaussians lie apart, the best first; arrays on the host, of shapes ``[S]`` and ``[S, S]``."""
    order = sorted((i for i in range(len(bounds)) if bounds[i] > -math.inf), key=lambda i: -float(bounds[i]))
    chosen: list[int] = []
    for i in order:
        if float(bounds[i]) <= float(bounds[order[0]]) - WORSE or len(chosen) == MOST_PLACES:
            break
        if all(distances[i][j] > APART for j in chosen):
            chosen.append(i)
    return chosen


def between(ends: list[list[float]]) -> list[list[float]]:
    """Points on the straight ways between each two of these, `NUM_STOPS` a way."""
    parts = [k / (NUM_STOPS - 1) for k in range(NUM_STOPS)]
    ways = [list(zip(ends[i], ends[j], strict=True)) for i, j in pairs(len(ends))]
    return [[a + part * (b - a) for a, b in way] for way in ways for part in parts]


def valleys(heights: list[float], num: int) -> list[list[float]]:
    """How deep the log density falls on the way between each two of `num` points, below the lower one.

    Args:
        heights: the log density at the points `between`.
    """
    depths = [[0.0] * num for _ in range(num)]
    for k, (i, j) in enumerate(pairs(num)):
        own = [x if math.isfinite(x) else -math.inf for x in heights[k * NUM_STOPS : (k + 1) * NUM_STOPS]]
        lower = min(own[0], own[-1])
        if lower > -math.inf:
            depths[i][j] = depths[j][i] = lower - min(own)
    return depths


def pairs(num: int) -> list[tuple[int, int]]:
    """Each two of `num`."""
    return [(i, j) for i in range(num) for j in range(i)]


def distance(move: Any, root: Any, solve: Callable[[Any, Any], Any]) -> float:
    """The largest coordinate of a move, in standard deviations of a Gaussian."""
    whitened = move / root if root.ndim == 1 else solve(root, move)
    return float(abs(whitened).max())
