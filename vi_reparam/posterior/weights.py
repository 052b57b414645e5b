"""Figures from log weights: their mean, the evidence, Pareto smoothing, weighted means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vi_reparam.posterior import psis
from vi_reparam.posterior.attempt import TINY_GAP, are_even
from vi_reparam.posterior.verdict import KHAT_GOOD

SUSPECT_SD, OUTERMOST = 0.1, 0.005
LONG_TAIL, NO_VARIANCE = 0.35, 0.45
"""Pareto shapes: where a sample's variance has no standard error, so that two may differ by it alone; and where there
is hardly one.
"""

LEAST_LEFT = 0.05
"""Of one minus a k-hat: from one on, the mass beyond the largest weight is infinite."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Importance weights of draws of a guide.

    Attributes:
        log_p: log joint densities, in nats, shape ``[num_draws]``; `log_q`: of the guide.
        epsilon: relative rounding of either.
    """

    log_p: np.ndarray
    log_q: np.ndarray
    epsilon: float = 0.0

    @cached_property
    def log(self) -> np.ndarray:
        """log p - log q."""
        with np.errstate(invalid="ignore"):
            return self.log_p - self.log_q

    def elbo(self) -> tuple[float, float]:
        """Their mean and its standard error, in nats; a log weight of NaN makes both NaN."""
        return mean_and_error(self.log)

    @cached_property
    def smoothed(self) -> tuple[np.ndarray, float]:
        """Log weights, Pareto-smoothed, and k-hat."""
        largest = max(np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in (self.log_p, self.log_q))
        return psis.pareto_smooth(self.log, 16 * self.epsilon * float(largest))

    @property
    def khat(self) -> float:
        """Pareto shape of their tail."""
        return self.smoothed[1]

    @property
    def are_usable(self) -> bool:
        """Whether a weighted mean exists."""
        return not np.isnan(self.khat) and bool(np.isfinite(self.smoothed[0]).any())

    @property
    def are_few(self) -> bool:
        """Whether they are nearly even but for a tail that more of them would tell."""
        gap = self.log_evidence()[0] - self.elbo()[0] if self.are_usable else math.inf
        return self.khat >= KHAT_GOOD and gap < TINY_GAP and not are_even(gap, self.beyond)

    def normalized(self) -> np.ndarray:
        """The smoothed weights, which sum to 1."""
        weights = np.exp(self.smoothed[0] - self.smoothed[0].max())
        return weights / weights.sum()

    @property
    def raw_evidence(self) -> float:
        """Log of the mean weight as it is; -inf where no weight is finite."""
        found = self.log[np.isfinite(self.log)]
        if not len(found):
            return -math.inf
        return float(found.max() + np.log(np.exp(found - found.max()).sum() / len(self.log)))

    def log_evidence(self) -> tuple[float, float]:
        """Log of the mean smoothed weight and its standard error, in nats.

        The error is that of the delta method, and what a tail of shape k-hat holds beyond the largest weight.
        """
        if not self.are_usable:
            return float("nan") if np.isnan(self.khat) else float("-inf"), float("nan")
        largest = self.smoothed[0].max()
        mean, error = mean_and_error(np.exp(self.smoothed[0] - largest))
        return float(largest + np.log(mean)), float(np.hypot(error / mean, self.beyond))

    @property
    def beyond(self) -> float:
        """Part of the mass that a tail of shape k-hat holds beyond the largest weight."""
        if not self.are_usable or self.khat <= 0.0:
            return 0.0 if self.are_usable else math.inf
        held = np.exp(self.smoothed[0] - self.smoothed[0].max()).sum()
        return float(1.0 / (held * max(1.0 - self.khat, LEAST_LEFT)))


@dataclass(frozen=True)
class Estimate:
    """A mean and its Monte Carlo standard error; a leaf of trees."""

    mean: Any
    error: Any


def mean_and_error(x: np.ndarray) -> tuple[float, float]:
    """The mean of numbers and its standard error."""
    pair = mean_and_error_of_rows(x)
    return float(pair.mean), float(pair.error)


def mean_and_error_of_rows(x: np.ndarray) -> Estimate:
    """The mean over the leading dimension, by element; one row has no error."""
    with np.errstate(all="ignore"):
        if len(x) < 2:
            return Estimate(x.mean(axis=0), np.full(x.shape[1:], np.nan))
        return Estimate(x.mean(axis=0), x.std(axis=0, ddof=1) / np.sqrt(len(x)))


def shifts(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By column, how far weights move the mean, in its standard deviations, and the logarithm of one of these.

    A column with a tail as long as a Cauchy's, or a long one with the weights and without, is judged between its outer
    quantiles: its standard deviation is that of the few largest draws, or there is none.
    """
    mean, sd = _shifts(x, weights)
    for i in np.flatnonzero(sd > SUSPECT_SD):
        tail, own = _tail_of(_resampled(x[:, i], weights)), _tail_of(x[:, i])
        if tail > NO_VARIANCE or min(tail, own) > LONG_TAIL:
            low, high = np.quantile(_resampled(x[:, i], weights), [OUTERMOST, 1.0 - OUTERMOST])
            (mean[i],), (sd[i],) = _shifts(np.clip(x[:, i : i + 1], low, high), weights)
    return mean, sd


def _shifts(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = weights @ x
    spread = np.sqrt(weights @ (x - mean) ** 2)
    with np.errstate(all="ignore"):
        return np.abs(x.mean(axis=0) - mean) / spread, np.abs(np.log(x.std(axis=0) / spread))


def _resampled(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """As many draws, sorted, each as often as its weight says."""
    order = np.argsort(x)
    places = (np.arange(len(x)) + 0.5) / len(x)
    return x[order][np.minimum(np.searchsorted(np.cumsum(weights[order]), places), len(x) - 1)]


def _tail_of(x: np.ndarray) -> float:
    """Pareto shape of the distances from the median: from 1/2 on there is no variance."""
    size = np.sort(np.abs(x - np.median(x)))
    length = min(len(x) // 5, math.ceil(3.0 * math.sqrt(len(x))))
    tail = size[len(x) - length :] - size[len(x) - length - 1]
    return psis.fit_pareto(tail)[0] if tail[0] > 0.0 else -math.inf


def weighted_mean_and_error(x: np.ndarray, weights: np.ndarray) -> Estimate:
    """The mean over the leading dimension under weights that sum to 1."""
    weights = weights.reshape(-1, *[1] * (x.ndim - 1))
    mean = (weights * x).sum(axis=0)
    return Estimate(mean, np.sqrt((weights**2 * (x - mean) ** 2).sum(axis=0)))
