"""The log evidence by a proposal of its own, to judge a guide whose own weights have a heavy tail."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.posterior.modes import vectors
from vi_reparam.posterior.parts import by_parts
from vi_reparam.posterior.verdict import KHAT_USABLE
from vi_reparam.posterior.weights import Weights

if TYPE_CHECKING:
    from vi_reparam.posterior.posterior import Posterior

LARGEST = 20
"""Coordinates above which a Student-t is too far from most posteriors."""

DF = 5
WIDE = 1.2
NUM_DRAWS, NUM_MATCHED = 16_000, 4_000
WIDE_SEED = 3
WIDE_TAILS = "NestedLaplace() with wide tails"
HALF = 0.5
"""Part of the draws that comes from far out, of a mixture with wide tails."""

AT_ONCE = 4_000_000
"""Numbers that the model's runs may hold at once."""


def by_student_t(posterior: Posterior, guide: Any) -> dict[str, Any] | None:
    """Importance sampling from a Student-t with the draws' mean and covariance, a little wider.

    None where there are too many latents, or the model reads values in Python.

    Args:
        guide: a `JointGuide` of the model, which knows how its latents are laid out.
    """
    scorer, ops = posterior.scorer, posterior.backend.ops
    size = guide.layout(*scorer.data.call).size
    if size > LARGEST or not scorer.at_once:
        return None
    drawn = vectors(posterior, posterior.draws(NUM_MATCHED, seed=4), guide)
    center, covariance = drawn.mean(0), np.atleast_2d(np.cov(drawn.T))
    if not (np.isfinite(covariance).all() and (drawn.std(0) > 0.0).all()):
        return None
    root = WIDE * np.linalg.cholesky(covariance + 1e-9 * np.diag(np.diag(covariance)))
    rng = np.random.default_rng(0)
    t = rng.normal(size=(NUM_DRAWS, size)) * np.sqrt(DF / rng.chisquare(DF, size=(NUM_DRAWS, 1)))
    norm = math.lgamma(0.5 * (DF + size)) - math.lgamma(0.5 * DF) - 0.5 * size * math.log(DF * math.pi)
    log_q = norm - np.log(root.diagonal()).sum() - 0.5 * (DF + size) * np.log1p((t**2).sum(1) / DF)

    def score(args: Any, kwargs: Any, params: Any, z: Any) -> Any:
        return ops.vmap(guide.log_joint(guide.layout(args, kwargs), params, args, kwargs))(z)

    parts = max(1, math.ceil(NUM_DRAWS * scorer.sites.scalars / AT_ONCE))
    count = math.ceil(NUM_DRAWS / parts)

    def run(part: np.ndarray) -> tuple[np.ndarray, ...]:
        name = (guide, "t", count)
        called = posterior.backend.engine.call(score, scorer.data, scorer.params, ops.asarray(part), name=name)
        return (ops.to_numpy(called),)

    (log_p,) = by_parts(run, center + t @ root.T, count)
    weights = Weights(np.where(np.isnan(log_p), -np.inf, log_p), log_q)
    value, error = weights.log_evidence()
    return {"family": "a Student-t", "khat": float(weights.khat), "log_evidence": value, "error": error}


def vouched(posterior: Posterior) -> Posterior:
    """The same; where its own weights are heavy, with what a sampler from further out says of the evidence."""
    if not posterior.khat < KHAT_USABLE:
        posterior.record["surest"] = posterior.record.get("sampled") or by_wide_tails(posterior)
    return posterior


def from_further_out(record: dict[str, Any], elbo: float) -> tuple[float, float] | None:
    """k-hat and the gap to the evidence by `by_wide_tails`, where a fit has them."""
    known = record.get("surest")
    if not known or known["family"] != WIDE_TAILS:
        return None
    return known["khat"], known["log_evidence"] + 2.0 * known["error"] - elbo


def by_wide_tails(posterior: Posterior) -> dict[str, Any] | None:
    """Importance sampling from the same `NestedLaplace`, half of whose globals come from far out.

    A few large weights of a guide that is nearly exact make its k-hat large: where it has hardly a draw, its density is
    below the posterior's. Here are draws enough (a defensive mixture; Hesterberg 1995). None for other guides.
    """
    name = next((name for name in posterior.params if name == "laplace_tail"), None)
    if name is None or not posterior.scorer.at_once:
        return None
    own = posterior.params[name]
    posterior.set_param(name, 0.0 * own + HALF)  # by the program that is compiled
    try:
        known = posterior.weights(posterior.default_num_weights, WIDE_SEED)
    finally:
        posterior.set_param(name, own)
    value, error = known.log_evidence()
    return {
        "family": WIDE_TAILS,
        "khat": float(known.khat),
        "log_evidence": value,
        "error": error,
    }
