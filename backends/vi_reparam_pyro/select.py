"""What `Auto` chooses: measured on the model itself where two candidates are close."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vi_reparam.estimators import Auto, Estimator
from vi_reparam_pyro.host.params import isolated, using
from vi_reparam_pyro.ops.ops import mix
from vi_reparam_pyro.run import runner_of

WORTH_MEASURING = 1_000
"""Numbers drawn below which a step costs less than deciding how to draw them."""

REPLICATES = 6
CLOSE = ("implicit", "rejection")


def choose(guided: Any, objective: Any, args: Any, kwargs: Any) -> tuple[dict[str, Estimator], dict[str, float]]:
    """Estimators for the sites that `Auto` holds and where `Implicit` and `Rejection` both apply.

    Returns:
        The choice by site, empty where the fixed order decides, and each candidate's variance x
        time relative to the first's.
    """
    from vi_reparam_pyro.compare import measure

    params = guided.start(*args, **kwargs)
    with torch.no_grad(), isolated(), using(params):
        draws = runner_of(guided.model, guided.guide, args, kwargs, objective.entropy)(mix(0)).draws
    open_sites: dict[str, list[Estimator]] = {}
    for name, sampled in draws.items():
        asked = guided.estimators.get(name) or guided.estimators.get("*")
        candidates = [e for e in Auto().candidates(sampled.family) if e.kind in CLOSE]
        if isinstance(asked, Auto) and len(candidates) > 1:
            open_sites[name] = candidates
    if sum(draws[name].draw.value.numel() for name in open_sites) < WORTH_MEASURING:
        return {}, {}
    prices: dict[str, float] = {}
    choices: dict[str, dict[str, Estimator]] = {}
    base: np.ndarray | None = None
    for position in range(len(CLOSE)):
        mapping = {name: candidates[position] for name, candidates in open_sites.items()}
        label = " / ".join(sorted({repr(e) for e in mapping.values()}))
        variant = guided.with_estimators({**guided.estimators, **mapping})
        moments, seconds = measure(variant, params, objective.num_particles, REPLICATES, mix(0), args, kwargs)
        base = moments.variance if base is None else base
        moved = base > 0.0
        # The median over parameters: a few wild coordinates must not decide for all.
        ratio = float(np.median(moments.variance[moved] / base[moved])) if moved.any() else 1.0
        prices[label], choices[label] = ratio * seconds, mapping
    first = next(iter(prices.values()))
    best = min(prices, key=lambda label: prices[label] if np.isfinite(prices[label]) else np.inf)
    return choices[best], {label: price / first for label, price in prices.items()}
