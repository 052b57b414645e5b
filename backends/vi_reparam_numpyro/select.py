"""What `Auto` chooses: measured on the model itself where two candidates are close."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from vi_reparam.estimators import Auto, Estimator
from vi_reparam_numpyro.arguments import Arguments
from vi_reparam_numpyro.run import run

Array = Any

WORTH_MEASURING = 1_000
"""Numbers drawn below which a step costs less than deciding how to draw them."""

REPLICATES = 6
CLOSE = ("implicit", "rejection")


def choose(
    guided: Any, objective: Any, arguments: Arguments, args: Any, kwargs: Any
) -> tuple[dict[str, Estimator], dict[str, float]]:
    """Estimators for the sites that `Auto` holds and where `Implicit` and `Rejection` both apply.

    Returns:
        The choice by site, empty where the fixed order decides, and each candidate's variance x
        time relative to the first's.
    """
    from vi_reparam_numpyro.compare import measure

    open_sites: dict[str, list[Estimator]] = {}
    size = 0

    def look() -> Array:
        nonlocal size
        result = run(random.key(0), {}, guided.model, guided.guide, args, kwargs)
        for name, sampled in result.draws.items():
            asked = guided.estimators.get(name) or guided.estimators.get("*")
            candidates = [e for e in Auto().candidates(sampled.family) if e.kind in CLOSE]
            if isinstance(asked, Auto) and len(candidates) > 1:
                open_sites[name] = candidates
                size += int(np.prod(jnp.shape(sampled.draw.value)))
        return jnp.zeros(())

    jax.eval_shape(look)
    if size < WORTH_MEASURING:
        return {}, {}
    params = guided.start_at(arguments, random.key(0))
    held = {n: v for n, v in params.items() if not n.startswith("vr.")}
    state = {n: v for n, v in params.items() if n.startswith("vr.")}
    prices: dict[str, float] = {}
    choices: dict[str, dict[str, Estimator]] = {}
    base: np.ndarray | None = None
    for position in range(len(CLOSE)):
        mapping = {name: candidates[position] for name, candidates in open_sites.items()}
        label = " / ".join(sorted({repr(e) for e in mapping.values()}))
        variant = guided.with_estimators({**guided.estimators, **mapping})
        moments, seconds = measure(
            variant, held, state, objective.num_particles, REPLICATES, random.key(0), args, kwargs
        )
        base = moments.variance if base is None else base
        moved = base > 0.0
        # The median over parameters: a few wild coordinates must not decide for all.
        ratio = float(np.median(moments.variance[moved] / base[moved])) if moved.any() else 1.0
        prices[label], choices[label] = ratio * seconds, mapping
    first = next(iter(prices.values()))
    best = min(prices, key=lambda label: prices[label] if np.isfinite(prices[label]) else np.inf)
    return choices[best], {label: price / first for label, price in prices.items()}
