"""Separate modes: those that a posterior's draws miss, and the weights of a mixture over those that they reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vi_reparam.posterior import copies
from vi_reparam.posterior.picks import with_log_weight
from vi_reparam.posterior.weights import Weights

if TYPE_CHECKING:
    from vi_reparam.posterior.posterior import Posterior
    from vi_reparam.programs.searcher import Place

NUM_PLACED = 1_000
"""Draws that are told to the places which they are near."""

SCARCE = 0.2
"""A mode is missed where the draws hold less than this part of its share."""

NUM_WEIGHTS = 8_000
NUM_UPDATES = 200
WEIGHT_SEED = 2  # not that of the figures


class Missed(NamedTuple):
    """Of the modes that no draw is near.

    Attributes:
        behind: by how many nats each is below the mass of the others, or the draws' own ELBO.
        moved: by how much they would move a mean, in the draws' sds, and the logarithm of an sd. A rare mode moves the
            latter if it is far.
    """

    behind: list[float]
    moved: tuple[float, float]


def missed_modes(posterior: Posterior, places: Sequence[Place], guide: Any) -> Missed:
    """Which places no draw is near, and what they would change.

    Each draw belongs to the place whose Gaussian, times its mass, is the highest there.

    Args:
        places: as the search found them; of each, the mass is its bound less two standard errors.
        guide: a `JointGuide` of the model, which knows how its latents are laid out.
    """
    if len(places) < 2:
        return Missed([], (0.0, 0.0))
    ops = posterior.backend.ops
    draws = vectors(posterior, _some_draws(posterior, NUM_PLACED), guide)
    heights, masses = [], np.array([place.bound - 2.0 * place.error for place in places])
    for place, mass in zip(places, masses, strict=True):
        root = ops.to_numpy(place.frame.root)
        x = np.linalg.solve(root, (draws - ops.to_numpy(place.frame.center)).T)
        heights.append(mass - 0.5 * (x**2).sum(0) - np.log(root.diagonal()).sum())
    held = np.bincount(np.argmax(heights, axis=0), minlength=len(places)) / len(draws)
    known, whole = float(posterior.log_weights.mean()), float(np.logaddexp.reduce(masses))
    whole = max(known, whole) if math.isfinite(known) else whole
    is_missed = held < SCARCE * np.exp(masses - whole)
    if is_missed.all() or not is_missed.any():
        return Missed([], (0.0, 0.0))
    there = float(np.logaddexp.reduce(masses[~is_missed]))  # Gaussians hold less than the mass of a bent place
    there = max(known, there) if math.isfinite(known) else there
    behind = [there - float(mass) for mass in masses[is_missed]]
    centers = np.array([ops.to_numpy(place.frame.center) for place in places])[is_missed]
    return Missed(behind, moved_by(centers - draws.mean(0), np.array(behind), draws.std(0)))


def _some_draws(posterior: Posterior, num: int) -> Mapping[str, Any]:
    """Those behind the figures, where these were kept whole: no other program is compiled. Else new ones."""
    ops, sites, heads = posterior.backend.ops, posterior.scorer.sites.latents, posterior._first[1]
    known = next(iter(posterior._drawn), heads)
    if all(math.prod(known[n].shape[1:]) == site.size and len(known[n]) >= num for n, site in sites.items()):
        return {n: ops.asarray(ops.to_numpy(known[n])[:num].reshape(num, *s.shape)) for n, s in sites.items()}
    return posterior.draws(num)


def moved_by(ways: np.ndarray, behind: np.ndarray, spread: np.ndarray) -> tuple[float, float]:
    """By how much modes that lie these ways off move a mean, in sds, and the logarithm of an sd, at the most.

    Args:
        ways: shape ``[K, D]``; `behind`: nats by which each holds less mass, shape ``[K]``.
        spread: sds without them, shape ``[D]``.
    """
    mass = np.exp(-behind)
    share, far = mass / (1.0 + mass.sum()), ways / np.maximum(spread, np.finfo(float).tiny)
    mean = share @ far
    return float(np.abs(mean).max()), float(0.5 * np.log1p(np.maximum(share @ far**2 - mean**2, 0.0)).max())


def vectors(posterior: Posterior, values: Mapping[str, Any], guide: Any) -> np.ndarray:
    """Draws by site as vectors of unconstrained coordinates. Shape ``[N, D]``."""
    ops, data = posterior.backend.ops, posterior.scorer.data

    def pack(args: Any, kwargs: Any, values: dict[str, Any]) -> Any:
        return ops.vmap(guide.layout(args, kwargs).pack)(values)

    own = {name: value for name, value in values.items() if name in posterior.scorer.sites.latents}
    found = posterior.backend.engine.call(pack, data, own, name=(guide, "pack"))
    return np.asarray(ops.to_numpy(found), dtype=np.float64)


def fit_weights(posterior: Posterior) -> None:
    """Give a mixture the weights of the highest likelihood of the posterior, by importance sampling and EM.

    As in the population Monte Carlo of Cappé et al. (2008), for the weights alone. Nothing for other guides.
    """
    guide: Any = getattr(posterior.guided, "base_guide", None)
    name = f"{getattr(guide, 'prefix', '')}_log_weight"
    if name not in posterior.params:
        return
    ops, params = posterior.backend.ops, posterior.params
    values, log_weights = posterior.scorer.run(with_log_weight, NUM_WEIGHTS, posterior.backend.engine.key(WEIGHT_SEED))
    log_weights = np.asarray(ops.to_numpy(log_weights), dtype=np.float64)
    weights = Weights(log_weights, np.zeros_like(log_weights))
    if not weights.are_usable:
        return
    draws = ops.asarray(vectors(posterior, values, guide))

    def score(args: Any, kwargs: Any, params: Any, draws: Any) -> Any:
        return guide.component_log_probs(params, draws)

    own = {n: v for n, v in params.items() if n.startswith(guide.prefix)}
    found = posterior.backend.engine.call(score, posterior.scorer.data, own, draws, name=(guide, "components"))
    each, importance = np.asarray(ops.to_numpy(found), dtype=np.float64), weights.normalized()
    log_weight = np.asarray(ops.to_numpy(params[name]), dtype=np.float64)
    for _ in range(NUM_UPDATES):
        joint = log_weight + each
        belongs = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
        log_weight = np.log(np.maximum(importance @ belongs, math.ulp(0.0)))
    posterior.set_param(name, ops.asarray(log_weight - np.logaddexp.reduce(log_weight)))


def figures_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a verdict takes from a fit's record of modes."""
    return {
        "rivals": tuple(record.get("rivals") or ()),
        "far": tuple(record.get("far") or (0.0, 0.0)),
        "crowded": int(record.get("crowded") or 0),
        "copies": copies.advice(record.get("copies") or {}),
    }
