"""Log weights of a posterior that was fitted to batches: its draws meet all rows in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Array
from vi_reparam.errors import ArgumentError
from vi_reparam.posterior.picks import with_densities
from vi_reparam.posterior.weights import Weights
from vi_reparam.sites.totals import scaled

if TYPE_CHECKING:
    from vi_reparam.posterior.posterior import Posterior

BUDGET = 4_000_000
"""Terms of the log likelihood that are computed at once."""


def require_all_rows(posterior: Posterior, what: str) -> None:
    """Refuse what would take the first batch for all data.

    Raises:
        ArgumentError: saying so.
    """
    if posterior.record.get("batches"):
        raise ArgumentError(
            f"{what}: this posterior was fitted to batches, and holds the first one alone; fit from memory, with a "
            "plate of a subsample_size, if the data fit in"
        )


def score(posterior: Posterior, num_draws: int, seed: Any, epsilon: float) -> tuple[Weights, dict[str, np.ndarray]]:
    """Log densities of so many draws on all rows, and the first values of each site.

    Raises:
        ArgumentError: if the batches are not at hand any more.
    """
    stream, scorer, engine = posterior.stream, posterior.scorer, posterior.backend.engine
    latents, log_p, log_q, heads = scorer.run(with_densities, num_draws, engine.key(seed))
    heads = {name: np.asarray(value) for name, value in heads.items()}
    log_p, log_q = (np.asarray(x, dtype=np.float64) for x in (log_p, log_q))
    if stream is None:
        raise ArgumentError(
            "a posterior of batches that was loaded has the figures of its file, and no others: its batches are not "
            "at hand"
        )
    log_p = log_p - _inside(posterior, scorer.data, latents)
    for data in stream.passed():
        log_p = log_p + _inside(posterior, data, latents)
    return Weights(log_p, log_q, epsilon), heads


def _inside(posterior: Posterior, data: Data, latents: dict[str, Array]) -> np.ndarray:
    """The log density of what is in the rows' plate, at each draw. Shape ``[num_draws]``."""
    plate, pair, ops = posterior.record["batches"]["plate"], posterior.scorer.pair, posterior.backend.ops
    at_once, scored = posterior.scorer.at_once, posterior.scorer.sites.latents

    def terms(args: Any, kwargs: Any, params: Any, latents: Any) -> Array:
        def one(values: Any) -> Array:
            found = pair.run_model(ops.key(0), args, kwargs, params, values=values)
            inside = [r for r in found.values() if r.kind == "sample" and any(p.name == plate for p in r.plates)]
            return sum(ops.xp.sum(scaled(r, r.log_prob())) for r in inside)

        if at_once:
            return ops.vmap(one)(latents)
        num = len(next(iter(latents.values())))
        return ops.xp.stack([ops.asarray(one({n: x[i] for n, x in latents.items()})) for i in range(num)])

    num, size = len(next(iter(latents.values()))), posterior.record["batches"]["size"]
    part = max(1, min(num, BUDGET // size))
    found = []
    for first in range(0, num, part):
        own = {name: latents[name][min(first, num - part) : min(first, num - part) + part] for name in scored}
        values = posterior.backend.engine.call(terms, data, posterior.scorer.params, own, name=(pair, plate, "rows"))
        found.append(np.asarray(ops.to_numpy(values), dtype=np.float64)[max(0, first - (num - part)) :])
    return np.concatenate(found)
