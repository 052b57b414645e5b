"""Score terms and their baselines, over particles."""

from __future__ import annotations

import math
from typing import Any

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.errors import GradientError
from vi_reparam.estimators import Estimator, ScoreFunction
from vi_reparam.objectives.plates import PlateDims, sum_to

Scores = tuple[tuple[Array, Array], ...]
"""Pairs (theta - stop(theta), dlog q/dtheta), each with leading particles."""

DECAY = 0.9

BASELINE = "vr.baseline"
"""The mutable site that holds the decaying averages, where a framework has such sites."""


def downstream(
    ops: Ops,
    costs: dict[Any, Array],
    plate_dims: dict[Any, PlateDims],
    dependent: Any,
    target: PlateDims,
    plates: frozenset[str],
) -> Array:
    """The costs that depend on a draw, summed to its plates; a constant.

    Args:
        costs: by place, shape ``[particles, batch]``.
        dependent: places that depend on the draw.
        plate_dims: of every place; `target`: of the draw.
        plates: names of the plates that may be kept apart.
    """
    first = next(iter(costs.values()))
    total = ops.xp.zeros((first.shape[0], *(1 for _ in target.batch_shape)), dtype=first.dtype)
    for place in sorted(dependent):
        total = total + sum_to(ops.stop_gradient(costs[place]), plate_dims[place], target, plates)
    return total


def score_gradient(
    ops: Ops,
    site: str,
    estimator: Estimator,
    score: Array,
    own: Scores,
    cost: Array,
    averages: dict[str, Any],
    *,
    objective: Any,
) -> Array:
    """A term of value zero whose gradient is the score part, averaged over particles.

    Args:
        score: the score term, shape ``[particles, batch]``.
        own: for an optimal baseline.
        cost: from `downstream`.
        averages: the decaying averages by site; this site's is replaced.
        objective: for messages; has `num_particles`.

    Raises:
        GradientError: if the estimator's baseline cannot be had.
    """
    xp, stop, particles = ops.xp, ops.stop_gradient, objective.num_particles
    baseline = getattr(estimator, "baseline", None)
    if isinstance(estimator, ScoreFunction) and baseline == "optimal":
        return _optimal(ops, site, own, cost, objective)
    if baseline == "leave_one_out" and particles < 2:
        raise GradientError(
            f"site {site!r}: {estimator!r} needs two or more particles, and {objective!r} has one; "
            "use num_particles=2 or more, or baseline='decaying_average'"
        )
    if baseline == "decaying_average" and site not in averages:
        raise GradientError(
            f"site {site!r}: {estimator!r} needs the state that vr.estimate or vr.guide holds (and an SVI that "
            f"carries it), and {objective!r} found none; use baseline='leave_one_out' with more particles"
        )
    if particles > 1 and baseline in ("leave_one_out", "auto"):
        others = xp.sum(cost, axis=0, keepdims=True) - cost
        centred = cost - others / (particles - 1)
    elif site in averages and baseline in ("decaying_average", "auto"):
        centred, averages[site] = decay(ops, averages[site], cost)
    else:
        centred = cost
    return xp.sum((score - stop(score)) * stop(centred)) / particles


def _optimal(ops: Ops, site: str, own: Scores, cost: Array, objective: Any) -> Array:
    xp, stop, particles = ops.xp, ops.stop_gradient, objective.num_particles
    if particles < 3:
        raise GradientError(
            f"site {site!r}: ScoreFunction(baseline='optimal') estimates its baseline from the other particles "
            f"and needs three or more, and {objective!r} has {particles}"
        )
    total = 0.0
    for change, slope in own:
        f = xp.reshape(cost, (*cost.shape, *(1 for _ in range(slope.ndim - cost.ndim))))
        square = slope * slope
        top = xp.sum(square * f, axis=0, keepdims=True) - square * f
        bottom = xp.sum(square, axis=0, keepdims=True) - square
        baseline = top / xp.where(bottom > 0.0, bottom, 1.0)
        total = total + xp.sum(change * stop(slope * (f - baseline)))
    return total / particles


def decay(ops: Ops, average: dict[str, Array], cost: Array) -> tuple[Array, dict[str, Array]]:
    """The cost less its decaying average of earlier steps, and the average with this step in it."""
    xp = ops.xp
    seen = 1.0 - DECAY ** average["count"]
    baseline = xp.where(average["count"] > 0, average["mean"] / xp.where(seen > 0.0, seen, 1.0), 0.0)
    now = xp.broadcast_to(xp.mean(cost, axis=0), average["mean"].shape)
    mean = DECAY * average["mean"] + (1.0 - DECAY) * ops.stop_gradient(now)
    return cost - baseline[None], {"mean": mean, "count": average["count"] + 1.0}


def separate_lanes(shape: tuple[int, ...], target: PlateDims, plates: frozenset[str]) -> tuple[int, list[int]]:
    """How lanes of a draw may move together: elements of a plate at once, all others one by one.

    Args:
        shape: of the lanes.

    Returns:
        The number of groups, and the shape of the group's index: 1 along what moves together.
    """
    rank = len(target.batch_shape)
    together = {rank + target.dims[p] for p in plates & target.names}
    sizes = [1 if axis in together else size for axis, size in enumerate(shape)]
    return math.prod(sizes), sizes
