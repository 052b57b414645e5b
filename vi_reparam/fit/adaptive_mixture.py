"""Fits `AdaptiveMixture`: all latents by adaptive multiple importance sampling (Cornuet, Marin, Mira and Robert 2012).

All draws of all rounds are weighted under the mixture of all rounds' proposals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.errors import NonFiniteError
from vi_reparam.fit import weighted_mixture
from vi_reparam.fit.sampled import Fit, why_not_of
from vi_reparam.fit.weighted_mixture import Mixture
from vi_reparam.guides.adaptive_mixture import MOST_COORDINATES, AdaptiveMixture
from vi_reparam.guides.gaussian import FullRank
from vi_reparam.posterior.modes import vectors
from vi_reparam.posterior.parts import by_parts
from vi_reparam.posterior.weights import Weights

NUM_DRAWS = 4_096
"""Of a round; `NUM_START` and `NUM_NEAR`, about the origin: of what the first proposal is made of."""

NUM_START, NUM_NEAR = 1_000, 128
LEAST_ROUNDS, MOST_ROUNDS = 3, 10
ENOUGH, KHAT = 1.0, 0.5
"""Effective draws, in rounds, and k-hat, at which no further round is needed."""

KEPT = 0.15
"""Part of each later proposal that is the first one."""

NUM_FITTED, MOST_COMPONENTS = (2_000, 6_000), (9, 20)
"""Draws, by their weights, that a mixture is fitted to, and its components: of a proposal, and of what is kept."""

AT_ONCE = 4_000_000
"""Numbers that the model's runs may hold at once."""


def why_not(guided: Any, data: Data) -> str:
    """As `why_not_of`."""
    return why_not_of(guided.for_family(FullRank()).base_guide, data, AdaptiveMixture.__name__, MOST_COORDINATES)


def fitted(guided: Any, data: Data, seed: int, begin: Callable[[], Any]) -> Fit:
    """Fit, from the draws of another posterior of the same model and data, and from what a search finds.

    Args:
        begin: gives that posterior.

    Raises:
        NonFiniteError: if the draws of the start have no covariance.
    """
    rng = np.random.default_rng(abs(seed))
    guide = guided.for_family(FullRank()).base_guide
    start = begin()
    score = _scored(guide, data, start.scorer.sites.scalars)
    first = _first(guide, start, data, seed, rng)
    proposals = [first]
    z, heights = np.zeros((0, first.center.shape[1])), np.zeros(0)
    densities = np.zeros((0, 0))  # of each draw under each proposal
    while True:
        new = weighted_mixture.propose(proposals[-1], NUM_DRAWS, rng)
        old, z = z, np.concatenate([z, new])
        heights = np.concatenate([heights, score(new)])
        latest = weighted_mixture.proposed_log_prob(proposals[-1], old)[:, None]
        rows = np.stack([weighted_mixture.proposed_log_prob(known, new) for known in proposals], axis=1)
        densities = np.concatenate([np.concatenate([densities, latest], axis=1), rows])
        rounds = len(proposals)
        log_q = weighted_mixture.log_sums(densities) - math.log(rounds)
        weights = Weights(heights, log_q)
        if not np.isfinite(weights.smoothed[0]).any():
            break
        normalized = weights.normalized()
        effective = 1.0 / (normalized**2).sum()
        done = rounds >= LEAST_ROUNDS and weights.khat < KHAT and effective >= ENOUGH * NUM_DRAWS
        if done or rounds == MOST_ROUNDS:
            break
        least = 20.0 * z.shape[1] + 100.0
        proposals.append(_beside(_mixture(z, weighted_mixture.tempered(weights.log, least), rng, 0), first))
    made = _mixture(z, normalized, rng, 1)
    value, error = weights.log_evidence()
    evidence = {"family": "importance sampling", "khat": float(weights.khat), "log_evidence": value, "error": error}
    size = (len(made.log_weight), z.shape[1])
    params = {
        "center": made.center,
        "root": made.root,
        "log_weight": made.log_weight,
        "tail": np.zeros(()),
        "loc": np.zeros(size),
        "log_scale": np.zeros(size),
        "lower": np.zeros((*size, size[1])),
    }
    return Fit(AdaptiveMixture(), params, len(z), rounds, NUM_DRAWS, evidence)


def _mixture(z: np.ndarray, weights: np.ndarray, rng: np.random.Generator, kept: int) -> Mixture:
    """The mixture that is fitted to draws with these weights, of as many components as are worth it."""
    num = NUM_FITTED[kept]
    return weighted_mixture.best_of(
        z[rng.choice(len(z), size=num, p=weights)], np.full(num, 1.0 / num), rng, MOST_COMPONENTS[kept]
    )


def _scored(guide: Any, data: Data, scalars: int) -> Any:
    """log p of the model at vectors of all latents, -inf where it is NaN."""
    ops = guide.backend.ops
    count = min(max(1, AT_ONCE // max(scalars, 1)), NUM_DRAWS)

    def score(args: Any, kwargs: Any, z: Any) -> Any:
        return ops.vmap(guide.log_joint(guide.layout(args, kwargs), {}, args, kwargs))(z)

    def run(part: np.ndarray) -> tuple[np.ndarray, ...]:
        found = guide.backend.engine.call(score, data, ops.asarray(part), name=(guide, "heights", count))
        return (np.asarray(ops.to_numpy(found), np.float64),)

    def heights(z: np.ndarray) -> np.ndarray:
        (found,) = by_parts(run, z, count)
        return np.where(np.isfinite(found), found, -np.inf)

    return heights


def _first(guide: Any, start: Any, data: Data, seed: int, rng: np.random.Generator) -> Mixture:
    """The start's draws, the modes of the search, and the prior as far as it is known: a third of the draws each."""
    ops = guide.backend.ops

    def on_host(frame: Any) -> tuple[np.ndarray, np.ndarray]:
        center, root = (np.asarray(ops.to_numpy(x), np.float64) for x in (frame.center, frame.root))
        return center, root

    places = guide.searcher.run(data, guide.backend.engine.key(seed))
    if start.guided.family == FullRank():  # known without a draw
        known = on_host(guide.location(start.params))
    else:
        known = _gaussian(vectors(start, start.draws(NUM_START, seed=seed), guide))
    prior = np.asarray(guide.searcher.prior, np.float64)
    before = np.concatenate([prior, rng.uniform(-2.0, 2.0, size=(NUM_NEAR, prior.shape[1]))])
    bounds = np.array([place.bound for place in places])
    own = np.exp(np.maximum(bounds - bounds.max(initial=-np.inf), math.log(0.05)))
    parts = [(math.log(1.0 / 3.0), *known), (math.log(1.0 / 3.0), *_gaussian(before))]
    for place, share in zip(places, own / max(own.sum(), 1e-300), strict=True):
        parts.append((math.log(share / 3.0), *on_host(place.frame)))
    log_weight, centers, roots = (np.array(column) for column in zip(*parts, strict=True))
    return Mixture(log_weight - np.logaddexp.reduce(log_weight), centers, roots)


def _gaussian(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and root of a covariance of draws, without the furthest of each coordinate."""
    z = z[np.isfinite(z).all(1)]
    low, high = np.quantile(z, [0.01, 0.99], axis=0)
    z = np.clip(z, low, high)
    covariance = np.atleast_2d(np.cov(z.T))
    covariance = covariance + 1e-6 * np.diag(np.diag(covariance))
    try:
        return np.median(z, axis=0), np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError as error:
        text = "AdaptiveMixture(): the draws that it starts from have no covariance: use vr.Mixture()"
        raise NonFiniteError(text, step=0, sites={}, params={}, losses=np.zeros(0)) from error


def _beside(made: Mixture, first: Mixture) -> Mixture:
    return Mixture(
        np.append(made.log_weight + math.log1p(-KEPT), first.log_weight + math.log(KEPT)),
        np.concatenate([made.center, first.center]),
        np.concatenate([made.root, first.root]),
    )
