"""f grad log q: for anything, at a price in variance."""

from __future__ import annotations

from typing import Any, Literal

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.checks import check_choice
from vi_reparam.draw import Draw
from vi_reparam.estimators.base import Estimator
from vi_reparam.families.base import Family
from vi_reparam.samplers.primitive import Constant

Baseline = Literal["leave_one_out", "decaying_average", "optimal"] | None
BASELINES: tuple[Baseline, ...] = ("leave_one_out", "decaying_average", "optimal", None)


class ScoreFunction(Estimator):
    """The score-function (REINFORCE) gradient (Williams 1992), with a baseline.

    Args:
        baseline: ``"leave_one_out"``, ``"decaying_average"``, ``"optimal"`` (for each parameter
            the ratio Cov(f grad log q, grad log q) / Var(grad log q), estimated from the other
            particles; Ranganath et al. 2014) or None. The default is leave-one-out where there
            are two or more particles, with one particle a decaying average where a guide holds
            its state, else none; naming one that cannot be had raises.

    Raises:
        ArgumentError: for an unknown baseline.
    """

    kind = "score_function"
    has_score_term = True

    def __init__(self, *, baseline: Baseline | str = "auto") -> None:
        if baseline != "auto":
            check_choice("baseline", baseline, BASELINES, "ScoreFunction")
        self.baseline = baseline

    def options(self) -> dict[str, Any]:
        return {} if self.baseline == "auto" else {"baseline": self.baseline}

    def draw(self, ops: Ops, key: Any, family: Family, shape: Shape, *params: Array, value: Held = None) -> Draw:
        self.require(family)
        stop = ops.stop_gradient
        drawn = family.build(Constant(), ops, key, shape, *(stop(p) for p in params), value=value)
        held = stop(drawn.value)
        logs = None if drawn.logs is None else tuple(stop(log) for log in drawn.logs)
        log_prob = ops.xp.broadcast_to(family.log_prob(held, *_without_edges(ops, family, params), logs=logs), shape)
        log_prob = stop(drawn.log_prob) + (log_prob - stop(log_prob))
        return Draw(value=held, log_prob=log_prob, score_term=log_prob, logs=logs)


def _without_edges(ops: Ops, family: Family, params: tuple[Array, ...]) -> tuple[Array, ...]:
    """The parameters, with an infinite derivative in those that bound the support.

    The mean of f grad log q lacks what the moving edge adds, so a gradient in an edge must not
    come out as a plausible number; edges that are not differentiated are left alone.
    """
    xp, stop = ops.xp, ops.stop_gradient
    held = list(params)
    for index in family.edge_parameters:
        edge = params[index]
        finite = xp.where(xp.isfinite(edge), edge, xp.zeros_like(edge))
        held[index] = edge + xp.sqrt(finite - stop(finite))
    return tuple(held)
