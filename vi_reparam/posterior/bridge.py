"""The log evidence from draws of the posterior: bridge sampling, and the learned harmonic mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.errors import ArgumentError
from vi_reparam.numerics.special import LOG_2PI
from vi_reparam.posterior.refine import MOST_CHAINS, walked
from vi_reparam.posterior.sites import check_count
from vi_reparam.posterior.walk import LARGEST_MATRIX, Walk, dense_root

if TYPE_CHECKING:
    from vi_reparam.posterior.posterior import Posterior

METHODS = ("importance", "bridge", "harmonic")
MOST_TURNS, CLOSE = 200, 1e-10
INNER = 0.8
"""Part of the reference's mass to which the harmonic mean's is cut: its tails are lighter than the posterior's then."""


def by_chains(posterior: Posterior, method: str, num_draws: int, seed: Any, *, progress: bool) -> tuple[float, float]:
    """The log evidence by refined draws, with its standard error, in nats.

    The earlier half of the draws makes a normal reference in the guide's coordinates, unless the guide is a mixture,
    which is its own; the later half, and as many draws of the reference, give the evidence.

    Raises:
        ArgumentError: for an unknown method.
        SiteError: for discrete or masked latents.
    """
    if method not in METHODS[1:]:
        raise ArgumentError(f"log_evidence(method={method!r}): expected one of {METHODS}")
    walk = Walk(posterior, seed, MOST_CHAINS)
    chains = walked(walk, 2 * check_count("num_draws", num_draws), progress=progress, name=f"evidence {posterior.name}")
    half = len(chains.at) // 2
    early, late = chains.at[:half].reshape(-1, walk.size), chains.at[half:]
    flat = late.reshape(-1, walk.size)
    reference = None if walk.chart.extra else Normal(early)
    proposals = walk.propose(len(flat), 1) if reference is None else reference.draws(len(flat))
    (own, own_q), (other, other_q) = (_ratio(walk, reference, x) for x in (flat, proposals))
    own = np.where(np.isnan(own), -np.inf, own).reshape(late.shape[:2])
    other = np.where(np.isnan(other), -np.inf, other)
    if method == "harmonic":
        return harmonic(own, own_q.reshape(own.shape), other_q)
    return bridge(own, other, min(chains.figures["effective_draws"] / 2.0, own.size))


def _ratio(walk: Walk, reference: Normal | None, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p less log q at coordinates, shape ``[N, D]``, and log q up to a constant; q is the guide's unless given."""
    log_p, ratio = walk.log_densities(at)
    if reference is None:
        assert ratio is not None
        return ratio, log_p - ratio
    log_q = reference.log_density(at)
    return log_p - log_q, log_q


class Normal:
    """The normal distribution with the mean and covariance of some vectors, shape ``[N, D]``."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.mean, spread = vectors.mean(0), np.maximum(vectors.std(0), 1e-12)
        self.is_dense = vectors.shape[1] <= min(LARGEST_MATRIX, len(vectors) // 10)
        self.root = np.diag(spread)
        if self.is_dense:
            self.root = dense_root(vectors, spread)
        self.norm = 0.5 * len(self.mean) * LOG_2PI + np.log(self.root.diagonal()).sum()

    def draws(self, num: int) -> np.ndarray:
        """Of shape ``[num, D]``."""
        return self.mean + np.random.default_rng(0).normal(size=(num, len(self.mean))) @ self.root.T

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Of vectors, shape ``[N, D]``."""
        return -0.5 * (np.linalg.solve(self.root, (x - self.mean).T) ** 2).sum(0) - self.norm


def bridge(own: np.ndarray, other: np.ndarray, effective: float) -> tuple[float, float]:
    """Meng and Wong's (1996) iterated optimal bridge; the error as by Frühwirth-Schnatter (2004).

    Args:
        own: log p less log q at draws of the posterior, shape ``[T, C]``, a column a chain.
        other: the same at draws of q, shape ``[N]``.
        effective: how many independent draws those of the posterior are worth.
    """
    part = effective / (effective + len(other))
    log_own, log_other = math.log(part), math.log1p(-part)
    value = float(np.median(own))
    for _ in range(MOST_TURNS):
        above = _log_mean(other - np.logaddexp(log_own + other, log_other + value))
        below = _log_mean(-np.logaddexp(log_own + own, log_other + value))
        value, before = above - below, value
        if abs(value - before) < CLOSE:
            break
    above = np.exp(other - np.logaddexp(log_own + other, log_other + value))
    below = np.exp(value - np.logaddexp(log_own + own, log_other + value))
    first = above.std() / above.mean() / math.sqrt(len(above))
    return value, math.hypot(first, _error_of_chains(below))


def harmonic(own: np.ndarray, log_q: np.ndarray, other_log_q: np.ndarray) -> tuple[float, float]:
    """The learned harmonic mean (McEwen et al. 2021): 1 / evidence is the posterior's mean of q / p.

    q is cut to where its density is high, which holds `INNER` of its mass, so that no term is large.

    Args:
        own: log p less log q at draws of the posterior, shape ``[T, C]``; `log_q`: there.
        other_log_q: at draws of q, shape ``[N]``.
    """
    inside = log_q >= np.quantile(other_log_q, 1.0 - INNER)
    terms = np.where(inside, -own, -np.inf)
    top = float(terms.max())
    scaled = np.exp(terms - top)
    of_cut = math.sqrt((1.0 - INNER) / INNER / len(other_log_q))
    return math.log(INNER) - top - math.log(scaled.mean()), math.hypot(_error_of_chains(scaled), of_cut)


def _log_mean(x: np.ndarray) -> float:
    return float(np.logaddexp.reduce(x, axis=None) - math.log(x.size))


def _error_of_chains(x: np.ndarray) -> float:
    """The relative standard error of a mean, shape ``[T, C]``: chains are independent, the draws of one are not."""
    means = x.mean(axis=0)
    return float(means.std(ddof=1) / means.mean() / math.sqrt(len(means)))
