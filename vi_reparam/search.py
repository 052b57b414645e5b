"""Where to start and in what units: a Newton path, each point of it a Gaussian that the bound judges.

As Pathfinder (Zhang, Carpenter, Gelman and Vehtari 2022), with the curvature itself in place of a
quasi-Newton estimate: the modulus of the Hessian (the saddle-free Newton step of Dauphin et al.
2014) gives a way up from anywhere and a scale at every point, also where there is no mode, as in
the neck of a funnel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vi_reparam.ops import Ops
from vi_reparam.special import LOG_2PI

Array = Any
State = dict[str, Array]

NUM_ITERATIONS = 40
NUM_STARTS = 8
NUM_DRAWS = 64
LARGEST = 128
"""Most coordinates: a step takes as many gradients as there are."""

STEPS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.001)
WIDEST = 100.0
"""Largest standard deviation of a direction that the density leaves flat."""


@dataclass(frozen=True)
class Density:
    """A log density over vectors of shape ``[D]``, with its derivatives.

    Attributes:
        values: at vectors of shape ``[N, D]``, shape ``[N]``.
        slope: its gradient at one vector.
        hessian: its matrix of second derivatives at one vector.
    """

    values: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    hessian: Callable[[Array], Array]


def begin(ops: Ops, density: Density, start: Array) -> State:
    """The state of a path at its start, shape ``[D]``."""
    xp = ops.xp
    size = start.shape[0]
    value = _finite(xp, density.values(start[None])[0])
    return {
        "at": start,
        "value": value,
        "center": start,
        "root": xp.eye(size, dtype=start.dtype),
        "bound": xp.full_like(value, -math.inf),
        "error": xp.zeros_like(value),
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
    values, vectors = _modulus(ops, density.hessian(at))
    root = _triangular(xp, vectors / xp.sqrt(values)[None, :])
    bound, error = gaussian_bound(ops, density, at, root, noise)
    better = bound > state["bound"]
    slope = density.slope(at)
    slope = xp.where(xp.isfinite(slope), slope, xp.zeros_like(slope))
    direction = vectors @ ((slope @ vectors) / values)
    trials = at[None] + xp.asarray(STEPS, dtype=at.dtype)[:, None] * direction[None]
    heights = _finite(xp, density.values(trials))
    best = xp.reshape(xp.argmax(heights), (1,))  # taken, not indexed: it may be a lane's own
    trial, height = xp.take(trials, best, axis=0)[0], xp.take(heights, best, axis=0)[0]
    moved = height > state["value"]
    return {
        "at": xp.where(moved, trial, at),
        "value": xp.where(moved, height, state["value"]),
        "center": xp.where(better, at, state["center"]),
        "root": xp.where(better, root, state["root"]),
        "bound": xp.where(better, bound, state["bound"]),
        "error": xp.where(better, error, state["error"]),
    }


def gaussian_bound(ops: Ops, density: Density, center: Array, root: Array, noise: Array) -> tuple[Array, Array]:
    """The ELBO of a Gaussian and its standard error; minus infinity if a draw has no finite density."""
    xp = ops.xp
    num, size = noise.shape
    log_p = density.values(center[None] + noise @ root.T)
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


def _finite(xp: Any, x: Array) -> Array:
    return xp.where(xp.isfinite(x), x, xp.full_like(x, -math.inf))


FAR = 4.0
"""Standard deviations between places that are counted as two."""

RIVAL = 10.0
"""A place whose bound is lower by more than this many nats is not tried."""

MOST_RUNS = 3


def worth_a_run(bounds: Any, centers: Any, roots: Any, solve: Callable[[Any, Any], Any]) -> list[int]:
    """Which places a fit should start from, the best first.

    Args:
        bounds: shape ``[S]``; `centers`: shape ``[S, D]``; `roots`: shape ``[S, D, D]``; arrays on the host.
        solve: of linear systems.
    """
    order = sorted((i for i in range(len(bounds)) if bounds[i] > -math.inf), key=lambda i: -float(bounds[i]))
    chosen: list[int] = []
    for i in order:
        near = any(distance(centers[i] - centers[j], roots[j], solve) <= FAR for j in chosen)
        if not near and float(bounds[i]) > float(bounds[order[0]]) - RIVAL and len(chosen) < MOST_RUNS:
            chosen.append(i)
    return chosen


def distance(move: Any, root: Any, solve: Callable[[Any, Any], Any]) -> float:
    """The largest coordinate of a move, in standard deviations of a Gaussian."""
    whitened = move / root if root.ndim == 1 else solve(root, move)
    return float(abs(whitened).max())
