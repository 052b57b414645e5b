"""A mixture of Gaussians of weighted draws, by EM (as in the population Monte Carlo of Cappé et al. 2008)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

NUM_UPDATES, LITTLE = 60, 1e-5
"""Of EM, at the most, and the gain in nats a draw at which it ends."""

TRIED, MOST = (1, 2, 3, 4, 6, 9, 13, 20), 6
"""Numbers of components, of which the one with the highest likelihood of draws left out is taken; the largest one
unless told."""

FEWEST = 8
"""Effective draws a coordinate that a component needs."""

LEAST = 1e-4
"""Part of all draws' covariance that is added to a component's."""

DF, WIDER = 4, 1.2
"""Degrees of freedom of a proposal, and how much wider it is than what is known."""


class Mixture(NamedTuple):
    """Gaussians with weights.

    Attributes:
        log_weight: shape ``[K]``.
        center: shape ``[K, D]``.
        root: lower triangular, shape ``[K, D, D]``.
    """

    log_weight: np.ndarray
    center: np.ndarray
    root: np.ndarray

    def standardized(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of vectors, shape ``[N, D]``: squared lengths in each component's scales, shape ``[N, K]``; log weights less
        log volumes, shape ``[K]``.
        """
        back = np.linalg.inv(self.root)
        ways = back @ (z.T - self.center[:, :, None])
        volumes = np.log(np.einsum("kii->ki", self.root)).sum(1)
        return np.einsum("kdn,kdn->nk", ways, ways), self.log_weight - volumes

    def log_probs(self, z: np.ndarray) -> np.ndarray:
        """Log weight plus log density of each component. Shape ``[N, K]``."""
        squares, scores = self.standardized(z)
        return scores - 0.5 * squares - 0.5 * z.shape[1] * np.log(2.0 * np.pi)


def propose(known: Mixture, num: int, rng: np.random.Generator, *, df: int = DF, wider: float = WIDER) -> np.ndarray:
    """Draws of Student-t's at the components. Shape ``[num, D]``."""
    chosen = rng.choice(len(known.log_weight), size=num, p=np.exp(known.log_weight))
    noise = rng.normal(size=(num, known.center.shape[1])) * np.sqrt(df / rng.chisquare(df, size=num))[:, None]
    return known.center[chosen] + wider * np.einsum("nij,nj->ni", known.root[chosen], noise)


def proposed_log_prob(known: Mixture, z: np.ndarray, df: int = DF, wider: float = WIDER) -> np.ndarray:
    """Their log density at vectors, shape ``[N, D]``. Shape ``[N]``."""
    if not len(z):
        return np.zeros(0)
    squares, scores = known.standardized(z)
    size = z.shape[1]
    norm = math.lgamma(0.5 * (df + size)) - math.lgamma(0.5 * df) - 0.5 * size * math.log(df * math.pi)
    norm -= size * math.log(wider)
    return log_sums(scores + norm - 0.5 * (df + size) * np.log1p(squares / (wider**2 * df)))


def tempered(log_weights: np.ndarray, least: float) -> np.ndarray:
    """Normalized weights to the highest power, at most one, at which so many draws are effective."""
    log_weights = np.maximum(log_weights, -1e300)
    for power in 0.8 ** np.arange(40):
        weights = np.exp(power * (log_weights - log_weights.max()))
        weights = weights / weights.sum()
        if 1.0 / (weights**2).sum() >= min(least, 0.5 * len(log_weights)):
            break
    return weights


def best_of(z: np.ndarray, weights: np.ndarray, rng: np.random.Generator, most: int = MOST) -> Mixture:
    """The mixture with as many components as half of the draws say that the other half is likeliest under.

    Args:
        z: shape ``[N, D]``.
        weights: normalized, shape ``[N]``.
        most: components.
    """
    fold = rng.permutation(len(z)) % 2 == 0
    effective = 1.0 / (weights**2).sum()
    tried = [k for k in TRIED if k <= most and (k == 1 or effective >= 2 * FEWEST * k * z.shape[1])]
    scores = []
    for k in tried:
        score = 0.0
        for own in (fold, ~fold):
            made = of_draws(z[own], weights[own] / weights[own].sum(), k, rng)
            score += float(weights[~own] @ log_sums(made.log_probs(z[~own])))
        scores.append(score)
        if int(np.argmax(scores)) < len(scores) - 2:  # two larger numbers are no better
            break
    return of_draws(z, weights, tried[int(np.argmax(scores))], rng)


def log_sums(rows: np.ndarray) -> np.ndarray:
    """Log of the sum of each row's exponentials; NumPy's own `logaddexp.reduce` takes five times as long."""
    top = np.maximum(rows.max(1), -1e300)
    return top + np.log(np.exp(rows - top[:, None]).sum(1))


def of_draws(z: np.ndarray, weights: np.ndarray, num: int, rng: np.random.Generator) -> Mixture:
    """The mixture of so many Gaussians with the highest likelihood; its mean and covariance are about the draws'."""
    mean = weights @ z
    covariance = (weights[:, None] * (z - mean)).T @ (z - mean)
    spread = np.sqrt(np.maximum(np.diag(covariance), np.finfo(float).tiny))
    least = LEAST * covariance + 1e-12 * np.diag(spread**2)
    size, effective = z.shape[1], 1.0 / (weights**2).sum()
    told = size + 2 if num > 1 else 0  # draws that a prior is worth (Fraley and Raftery 2007)
    prior = told * num ** (-2.0 / size) * covariance
    chosen = z[rng.choice(len(z), size=num, p=weights)]
    made = Mixture(
        np.full(num, -np.log(num)), mean + (chosen - mean) * (num > 1), np.stack([_root(covariance + least)] * num)
    )
    before = -math.inf
    for _ in range(NUM_UPDATES if num > 1 else 1):
        each = made.log_probs(z)
        both = log_sums(each)
        after = float(weights @ both)
        if after - before < LITTLE:
            break
        before, belongs = after, weights * np.exp(each - both[:, None]).T
        total = np.maximum(belongs.sum(1), 1e-12)
        center = (belongs @ z) / total[:, None]
        way = z.T - center[:, :, None]
        seen = (effective * total)[:, None, None]
        squares = (belongs[:, None] * way) @ way.transpose(0, 2, 1) / total[:, None, None]
        covariances = (seen * squares + prior) / (seen + told)
        made = Mixture(np.log(total / total.sum()), center, _root(covariances + least))
    return made


def _root(covariance: np.ndarray) -> np.ndarray:
    return np.linalg.cholesky(0.5 * (covariance + np.swapaxes(covariance, -1, -2)))
