"""One name for each component: draws whose elements along a plate are put in order."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.errors import ArgumentError
from vi_reparam.guides.refined import Refined
from vi_reparam.posterior.modes import vectors
from vi_reparam.posterior.refine import of_vectors
from vi_reparam.posterior.sites import check_count
from vi_reparam.posterior.verdict import Drift, Figures, Refinement, Surest, Verdict, judge

if TYPE_CHECKING:
    from vi_reparam.posterior.posterior import Posterior

PARTS = {"drift": Drift, "surest": Surest, "refined": Refinement}


def relabel(posterior: Posterior, plate: str, by: str | None, num_draws: int, seed: Any) -> Posterior:
    """As `Posterior.relabel`."""
    num_draws, sites = check_count("num_draws", num_draws), posterior.scorer.sites.latents
    axes = {name: dim for name, site in sites.items() for dim, label in site.plates.items() if label == plate}
    if not axes:
        known = sorted({label for site in sites.values() for label in site.plates.values()})
        raise ArgumentError(f"relabel({plate!r}): no latent is in such a plate; there are: {', '.join(known)}"[:300])
    size = next(sites[name].shape[dim] for name, dim in axes.items())
    orders = [name for name in axes if sites[name].size == size]
    chosen = by if by is not None else orders[0] if len(orders) == 1 else None
    if chosen not in orders:
        told = f"by={by!r}" if by is not None else "without by="
        raise ArgumentError(
            f"relabel({plate!r}) {told}: name the latent to sort by, with one number for each element; there are: "
            f"{', '.join(orders) or 'none'}"[:300]
        )
    target = posterior.guided.for_family(Refined()).base_guide
    for part in target.layout(*posterior.scorer.data.call).parts:
        shape = part.site.shape
        if part.site.kind == "simplex" and part.site.name not in axes and shape[-1] == size:
            axes[part.site.name] = len(shape) - 1  # the components' weights
    ops, draws = posterior.backend.ops, posterior.draws(num_draws, seed)
    values = {name: np.asarray(ops.to_numpy(draws[name])) for name in sites}
    order = np.argsort(values[chosen].reshape(num_draws, size), axis=1)
    for name, dim in axes.items():
        form = [num_draws, *(size if i == dim else 1 for i in range(len(sites[name].shape)))]
        values[name] = np.take_along_axis(values[name], order.reshape(form), axis=dim + 1)
    moved = vectors(posterior, {name: ops.asarray(value) for name, value in values.items()}, target)
    about = {"plate": plate, "by": chosen, "figures": asdict(posterior.verdict.figures)}
    return of_vectors(posterior, target, moved, {"relabelled": about})


def verdict_of(record: dict[str, Any]) -> Verdict:
    """Of relabelled draws: that of the posterior that they are draws of."""
    stored = dict(record["figures"])
    for name, kind in PARTS.items():
        stored[name] = kind(**stored[name]) if stored[name] is not None else None
    told: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in stored.items()}
    return judge(Figures(**told))
