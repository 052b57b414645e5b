"""Leave-one-out predictive densities by importance sampling from a guide's draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.backend.ops import Array
from vi_reparam.errors import ArgumentError
from vi_reparam.posterior import psis
from vi_reparam.posterior.sites import Scored
from vi_reparam.posterior.verdict import KHAT_USABLE
from vi_reparam.posterior.weights import Weights

if TYPE_CHECKING:
    from vi_reparam.posterior.posterior import Posterior

NUM_DRAWS, LEAST_DRAWS = 4_000, 500
MOST_NUMBERS = 100_000_000
"""Draws times data that are held at once."""


@dataclass(frozen=True)
class Loo:
    """How well a model predicts each datum from all others.

    Attributes:
        pointwise: log predictive densities, in nats, shape ``[num_data]``, of the observed sites by sorted name.
        khat: Pareto shapes of each datum's weights, of the same shape.
        num_effective: p_loo, the effective number of parameters.
        is_weighted: whether the draws were corrected by log p / log q; else they count as the posterior's.
    """

    pointwise: np.ndarray
    khat: np.ndarray
    num_effective: float
    is_weighted: bool

    @property
    def elpd(self) -> tuple[float, float]:
        """Their sum and its standard error over data like these."""
        return float(self.pointwise.sum()), math.sqrt(len(self.pointwise)) * float(self.pointwise.std(ddof=1))


def loo(posterior: Posterior, num_draws: int | None, seed: Any, *, order: Callable[[dict], list]) -> Loo:
    """Pareto-smoothed importance sampling leave-one-out (Vehtari, Gelman and Gabry 2017).

    A draw of the guide has the weight p / q for the posterior, and p / q / likelihood of the datum for that without the
    datum. Draws that were refined, or whose own weights are no good (k-hat of 0.7 or above), count as the posterior's.

    Args:
        num_draws: how many; unless given 4,000, or fewer where there are many data.
        order: the arrays of the log likelihood in the order wanted, from a dict of them by observed site.

    Raises:
        ArgumentError: for a model without observed sites.
    """
    sites = posterior.scorer.sites.observed
    num_data = sum(site.size for site in sites.values())
    if num_data < 2:
        raise ArgumentError(f"{posterior.name}: leave-one-out needs two observed values at least; it has {num_data}")
    num = num_draws or int(np.clip(MOST_NUMBERS / num_data, LEAST_DRAWS, NUM_DRAWS))
    log_p, log_q, given = posterior.scorer.run(likelihoods, num, posterior.backend.engine.key(seed))
    to_numpy = posterior.backend.ops.to_numpy
    flat = [np.asarray(to_numpy(x), dtype=np.float64).reshape(num, -1) for x in order(given)]
    terms = np.concatenate(flat, axis=1)
    is_weighted = "refined" not in posterior.record and posterior.khat < KHAT_USABLE
    base, smoothed = np.zeros(num), np.zeros(num)
    if is_weighted:
        p, q = (np.asarray(to_numpy(x), dtype=np.float64) for x in (log_p, log_q))
        weights = Weights(p, q)
        base, smoothed = weights.log, weights.smoothed[0]
    whole = _weighted(smoothed[:, None], terms)
    shapes, pointwise = np.empty(terms.shape[1]), np.empty(terms.shape[1])
    for i in range(terms.shape[1]):
        own, shapes[i] = psis.pareto_smooth(base - terms[:, i])
        pointwise[i] = _weighted(own[:, None], terms[:, i : i + 1])[0]
    return Loo(pointwise, shapes, float(whole.sum() - pointwise.sum()), is_weighted)


def likelihoods(scored: Scored) -> tuple[Array, Array, dict[str, Array]]:
    """log p, log q, and the log likelihood by observed site; the same object always, so that it compiles once."""
    return scored.log_p, scored.log_q, scored.log_likelihood


def _weighted(log_weights: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Logs of the weighted means of the terms' exponentials, by column."""
    return np.logaddexp.reduce(log_weights + terms, axis=0) - np.logaddexp.reduce(log_weights, axis=0)
