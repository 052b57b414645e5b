"""Pareto-smoothed importance sampling (Vehtari et al. 2024), as ArviZ has it, whose import takes longer than a fit."""

from __future__ import annotations

import math

import numpy as np

FLAT_WEIGHTS = 0.02
"""Nats: weights this close to one another have no tail worth a name."""

FEWEST = 25
"""Weights below which there is no tail to fit."""

FEWEST_IN_TAIL = 5
PRIOR_K, PRIOR_WEIGHT = 0.5, 10
"""Of k-hat, and how many draws it counts for."""


def pareto_smooth(log_weights: np.ndarray, rounding: float = 0.0) -> tuple[np.ndarray, float]:
    """Pareto-smoothed importance sampling (Vehtari et al. 2024).

    Args:
        log_weights: shape ``[num_draws]``.
        rounding: how far rounding alone may move a log weight.

    Returns:
        The smoothed log weights, unnormalized, and k-hat. Weights above zero within a fiftieth (or
        within their rounding) of one another come back as they are with a k-hat of 0: there is no tail
        to fit. A NaN or +inf anywhere makes k-hat NaN; no finite weight, or too few in all, make it infinite.
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
        return log_weights, float("nan")
    finite = np.isfinite(log_weights)
    if not finite.any():
        return log_weights, float("inf")
    if np.ptp(log_weights[finite]) <= max(FLAT_WEIGHTS, rounding):
        return log_weights, 0.0
    if len(log_weights) < FEWEST:
        return log_weights, float("inf")
    with np.errstate(all="ignore"):
        smoothed, khat = psislw(log_weights)
    return smoothed + log_weights.max(), khat  # exact, however low the lowest one is


def psislw(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Log weights with the largest replaced by what a generalized Pareto tail expects, and k-hat, its shape.

    Args:
        log_weights: shape ``[num_draws]``; minus infinity for none.

    Returns:
        Unnormalized, the largest zero or below.
    """
    smoothed = log_weights - log_weights.max()
    order = np.argsort(smoothed)
    length = math.ceil(min(len(order) / 5.0, 3.0 * math.sqrt(len(order))))
    edge = max(smoothed[order[-length - 1]], math.log(np.finfo(float).tiny))
    tail = order[smoothed[order] > edge]
    if len(tail) < FEWEST_IN_TAIL:
        return smoothed, math.inf
    k, scale = fit_pareto(np.exp(smoothed[tail]) - math.exp(edge))
    if math.isfinite(k):
        at = -np.log1p(-np.arange(0.5, len(tail)) / len(tail))
        quantiles = scale * (at if k == 0.0 else np.expm1(k * at) / k)
        smoothed[tail] = np.minimum(np.log(quantiles + math.exp(edge)), 0.0)
    return smoothed, k


def fit_pareto(x: np.ndarray) -> tuple[float, float]:
    """Shape and scale of the generalized Pareto distribution of these, rising (Zhang and Stephens 2009)."""
    num = len(x)
    grid = 30 + int(math.sqrt(num))
    b = 1.0 / x[-1] + (1.0 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3.0 * x[int(num / 4 + 0.5) - 1])
    k = np.log1p(-b[:, None] * x).mean(axis=1)
    log_likelihood = num * (np.log(-b / k) - k - 1.0)
    with np.errstate(over="ignore"):  # a weight of zero
        weights = 1.0 / np.exp(log_likelihood - log_likelihood[:, None]).sum(axis=1)
    kept = weights >= 10.0 * np.finfo(float).eps
    mean = float((b[kept] * weights[kept]).sum() / weights[kept].sum())
    shape = float(np.log1p(-mean * x).mean())
    return (num * shape + PRIOR_WEIGHT * PRIOR_K) / (num + PRIOR_WEIGHT), -shape / mean
