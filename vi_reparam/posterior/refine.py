"""From a guide's draws to draws of the posterior, by Hamiltonian Monte Carlo in the guide's coordinates."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from vi_reparam.guides.refined import Refined
from vi_reparam.posterior import arviz_lines
from vi_reparam.posterior.sites import check_count
from vi_reparam.posterior.walk import TURNS, Walk

if TYPE_CHECKING:
    from vi_reparam.posterior.posterior import Posterior

WARMUP = 8
"""Looks at which the step size and the scales are adapted; what is drawn before the last is thrown away."""

FEWEST, MOST = 3, 24
"""Looks at which draws are kept."""

RHAT = 1.01
MOST_CHAINS = 64


class Chains(NamedTuple):
    """What chains kept.

    Attributes:
        at: their coordinates, shape ``[T, C, D]``; `drawn`: the vectors there, of the same shape.
        figures: how they mixed: `rhat`, `effective_draws`, `acceptance` and `jumps`.
    """

    at: np.ndarray
    drawn: np.ndarray
    figures: dict[str, float]


def walked(walk: Walk, num_draws: int, *, progress: bool, name: str) -> Chains:
    """At least so many draws of chains that go on until R-hat is below `RHAT`, or for `MOST` looks."""
    wanted = max(FEWEST, math.ceil(num_draws / (walk.num_chains * TURNS)))
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    figures: dict[str, float] = {}
    with tqdm(total=WARMUP + wanted, disable=not progress, desc=name) as bar:
        for look in range(WARMUP + max(MOST, wanted)):
            found, at, drawn = walk.look(adapt=look < WARMUP)
            bar.update()
            if look in (1, 3, 5):
                walk.rescale(found)
            if look < WARMUP:
                continue
            kept.append((at, drawn))
            if len(kept) >= wanted:
                rhat, effective = mixing(np.concatenate([vectors for _, vectors in kept]).transpose(1, 0, 2))
                mean, to_numpy = walk.ops.xp.mean, walk.ops.to_numpy
                figures = {
                    "rhat": rhat,
                    "effective_draws": effective,
                    "acceptance": float(to_numpy(mean(found["acceptance"]))),
                    "jumps": float(to_numpy(mean(found["taken"]))),
                }
                if rhat < RHAT:
                    break
    return Chains(*(np.concatenate(x) for x in zip(*kept, strict=True)), figures=figures)


def refine(posterior: Posterior, num_draws: int, seed: Any, *, progress: bool) -> Posterior:
    """As `Posterior.refine`."""
    num_draws = check_count("num_draws", num_draws)
    begun = time.perf_counter()
    walk = Walk(posterior, seed, MOST_CHAINS)
    chains = walked(walk, num_draws, progress=progress, name=f"refine {posterior.name}")
    flat, first = chains.drawn.reshape(-1, walk.size), walk.first
    sd = np.maximum(flat.std(0), np.finfo(float).tiny)
    figures = {
        "from": str(posterior.record.get("family")),
        "num_chains": walk.num_chains,
        "num_draws": len(flat),
        "mean_moved": float(np.max(np.abs(flat.mean(0) - first.mean(0)) / sd)),
        "sd_moved": float(np.max(np.abs(np.log(np.maximum(first.std(0), np.finfo(float).tiny) / sd)))),
        "seconds": time.perf_counter() - begun,
        **chains.figures,
    }
    return of_vectors(posterior, walk.target, flat, {"rivals": [], "refined": figures})


def of_vectors(posterior: Posterior, target: Any, vectors: np.ndarray, record: dict[str, Any]) -> Posterior:
    """A posterior that draws from these vectors, shape ``[N, D]``, of the layout of `target`, a `RefinedGuide`."""
    ops, call = posterior.backend.ops, posterior.scorer.data.call
    guided = posterior.guided.for_family(Refined())
    names = set(posterior.params) & set(target.latents.structure(*call).params)
    own = {**{n: posterior.params[n] for n in names}, **target.named({"vectors": ops.asarray(vectors)})}
    record = {**posterior.record, "family": repr(Refined()), **record}
    fields = {"args": posterior.args, "kwargs": posterior.kwargs, "losses": posterior.losses, "record": record}
    return type(posterior)(guided, own, seed=posterior.seed, **fields)


def mixing(draws: np.ndarray) -> tuple[float, float]:
    """The largest R-hat and the smallest number of effective draws; draws of shape ``[chains, draws, D]``."""
    arviz = arviz_lines.import_arviz()
    data = arviz.convert_to_dataset({"x": draws})
    return float(np.max(arviz.rhat(data)["x"].values)), float(np.min(arviz.ess(data)["x"].values))
