"""What `Auto` chooses: measured on the model itself where two candidates are close, and a fit is long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.backend.engine import Engine, Task
from vi_reparam.estimators import Auto, Estimator
from vi_reparam.fit.measure import measure

WORTH_MEASURING = 30_000_000
"""Numbers drawn in a whole fit below which deciding how to draw them costs more than it gains: compiling two gradients
takes as long as some thousand steps of a few thousand numbers."""

REPLICATES = 6
CLOSE = ("implicit", "rejection")


def choose(
    engine: Engine, guided: Any, task: Task, data: Data, num_steps: int
) -> tuple[dict[str, Estimator], dict[str, float]]:
    """Estimators for the sites that `Auto` holds and where `Implicit` and `Rejection` both apply.

    Args:
        guided: whose guide is the task's.
        num_steps: of the fit, at the most.

    Returns:
        The choice by site, empty where the fixed order decides, and each candidate's variance relative to the
        first's. No clock is asked, which would make the choice another on a busy machine: a step takes about as long
        with either.
    """
    estimators: Mapping[str, Estimator] = guided.estimators
    open_sites: dict[str, list[Estimator]] = {}
    size = 0
    for name, drawn in engine.draws(task, data, None).items():
        asked = estimators.get(name) or estimators.get("*")
        candidates = [e for e in Auto().candidates(drawn.family) if e.kind in CLOSE]
        if isinstance(asked, Auto) and len(candidates) > 1:
            open_sites[name] = candidates
            size += drawn.size
    if size * task.objective.num_particles * num_steps < WORTH_MEASURING:
        return {}, {}
    key = engine.key(0)
    params = guided.start_at(data, key)
    variances: dict[str, float] = {}
    choices: dict[str, dict[str, Estimator]] = {}
    base: np.ndarray | None = None
    for position in range(len(CLOSE)):
        mapping = {name: candidates[position] for name, candidates in open_sites.items()}
        label = " / ".join(sorted({repr(e) for e in mapping.values()}))
        other = replace(task, guide=guided.with_estimators({**estimators, **mapping}).guide)
        moments, _ = measure(engine, other, data, params, key, REPLICATES)
        base = moments.variance if base is None else base
        moved = base > 0.0
        # The median over parameters: a few wild coordinates must not decide for all.
        ratio = float(np.median(moments.variance[moved] / base[moved])) if moved.any() else 1.0
        variances[label], choices[label] = ratio, mapping
    best = min(variances, key=lambda label: variances[label] if np.isfinite(variances[label]) else np.inf)
    return choices[best], variances
