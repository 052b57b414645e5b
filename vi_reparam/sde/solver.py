"""The stochastic Adams solver: exact exponential steps, predictions interpolated, orders 1 to 4."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.checks import check_choice
from vi_reparam.errors import ArgumentError
from vi_reparam.sde.parameterizations import from_data
from vi_reparam.sde.schedules import Schedule
from vi_reparam.sde.tau import Tau
from vi_reparam.sde.transition import FORMS, exact_step

Row = dict[str, Any]
Predict = Callable[[Array, Row], Array]
"""``predict(x, row)``: the data x0 that the drift expects at x. A row holds ``lam``, ``alpha``, ``sigma`` of its
point on the grid, and under ``"own"`` what the drift precomputed for it."""

MAX_ORDER = 4


@dataclass(frozen=True)
class Adams:
    """Which steps are taken (SA-Solver, Xue et al. 2023, algorithm 1).

    Args:
        order: of the predictor, 1 to 4: how many predictions it interpolates.
        corrector: of the corrector, which also uses the prediction at the predicted point and the
            same noise; 0 for none. It costs no further prediction a step, and has no tractable
            kernel: it serves sampling, not training.
        form: what is interpolated, ``"data"`` or ``"noise"``.

    Raises:
        ArgumentError: for orders outside that range, or a form that does not exist.
    """

    order: int = 1
    corrector: int = 0
    form: str = "data"

    def __post_init__(self) -> None:
        for name, value, least in (("order", self.order, 1), ("corrector", self.corrector, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_ORDER:
                raise ArgumentError(f"Adams({name}={value!r}): expected an integer from {least} to {MAX_ORDER}")
        check_choice("form", self.form, FORMS, "Adams")


@dataclass(frozen=True)
class Tables:
    """The coefficients of all steps, one row a step, short histories padded by zeros.

    Attributes:
        keep: factors of x.
        predictor: weights of the predictions, the newest first.
        corrector: the same, the prediction at the step's end before them; empty for none.
        variance: of the injected noise.
    """

    keep: list[float]
    predictor: list[list[float]]
    corrector: list[list[float]]
    variance: list[float]


def tables(schedule: Schedule, grid: Sequence[float], adams: Adams, tau: Tau, *, past: Sequence[float] = ()) -> Tables:
    """Coefficients of the steps along a grid of lambdas.

    Args:
        past: lambdas before the grid at which predictions are known, the newest first; without
            them the first steps are of lower order.
    """
    out = Tables([], [], [], [])
    known = list(past)
    for low, high in itertools.pairwise(grid):
        known = [low, *known][:MAX_ORDER]
        step = exact_step(schedule, low, high, tau.at(low, high), form=adams.form, nodes=known[: adams.order])
        out.keep.append(step.keep)
        out.variance.append(step.variance)
        out.predictor.append(_padded(step.weights, adams.order))
        if adams.corrector:
            nodes = [high, *known][: adams.corrector]
            after = exact_step(schedule, low, high, tau.at(low, high), form=adams.form, nodes=nodes)
            out.corrector.append(_padded(after.weights, adams.corrector))
    return out


def rows(ops: Ops, schedule: Schedule, lambdas: Sequence[float], dtype: Any, own: Any = None) -> Row:
    """Arrays of what a drift must know of each point, leading axis over the points."""
    xp = ops.xp
    found = {
        "lam": xp.asarray(list(lambdas), dtype=dtype),
        "alpha": xp.asarray([schedule.alpha(lam) for lam in lambdas], dtype=dtype),
        "sigma": xp.asarray([schedule.sigma(lam) for lam in lambdas], dtype=dtype),
    }
    return found if own is None else {**found, "own": own}


def sample(
    ops: Ops,
    predict: Predict,
    start: Array,
    noise: Array,
    *,
    schedule: Schedule,
    grid: Sequence[float],
    adams: Adams,
    tau: Tau,
    own: Any = None,
    past: Sequence[tuple[float, Array]] = (),
) -> Array:
    """Follow the solver from noise to data: x at ``grid[-1]``, shape of `start`.

    Args:
        predict: the drift.
        start: x at ``grid[0]``, shape ``[..., D]``.
        noise: standard normal, shape ``[steps, ..., D]``.
        grid: lambdas, increasing.
        own: the drift's own rows, leading axis over ``grid``.
        past: (lambda, predicted data) before the grid, the newest first; a start of full order.
    """
    xp = ops.xp
    found = tables(schedule, grid, adams, tau, past=[lam for lam, _ in past])
    points = rows(ops, schedule, grid, start.dtype, own)
    here, there = _take(points, slice(None, -1)), _take(points, slice(1, None))
    xs = {
        "keep": xp.asarray(found.keep, dtype=start.dtype),
        "predictor": xp.asarray(found.predictor, dtype=start.dtype),
        "sd": xp.asarray([v**0.5 for v in found.variance], dtype=start.dtype),
        "noise": noise,
        "row": there if adams.corrector else here,
    }
    width = max(adams.order, adams.corrector - 1, 1)
    if past and adams.form != "data":
        raise ArgumentError("past predictions are of the data: use form='data'")
    history = [data for _, data in past]
    history += [0.0 * start for _ in range(width - len(history))]

    def predictor(x: Array, history: Any, row: Any) -> Array:
        return row["keep"] * x + _combine(row["predictor"], history) + row["sd"] * row["noise"]

    def plain(state: Any, row: Any) -> Any:
        x, history = state
        new = in_form(adams.form, x, predict(x, row["row"]), row["row"])
        history = (new, *history)[:width]
        return (predictor(x, history, row), history), row["sd"]

    def corrected(state: Any, row: Any) -> Any:
        x, history = state
        guess = predictor(x, history, row)
        new = in_form(adams.form, guess, predict(guess, row["row"]), row["row"])
        history = (new, *history)
        x = row["keep"] * x + _combine(row["corrector"], history) + row["sd"] * row["noise"]
        return (x, history[:width]), row["sd"]

    if not adams.corrector:
        return ops.scan(plain, (start, tuple(history[:width])), xs)[0][0]
    xs["corrector"] = xp.asarray(found.corrector, dtype=start.dtype)
    first = _take(points, 0)
    now = in_form(adams.form, start, predict(start, first), first)
    return ops.scan(corrected, (start, (now, *history)[:width]), xs)[0][0]


def in_form(form: str, x: Array, data: Array, row: Row) -> Array:
    """What the solver interpolates, from the predicted data."""
    return data if form == "data" else from_data("noise", x, data, row["alpha"], row["sigma"])


def _combine(weights: Array, history: Sequence[Array]) -> Array:
    total = weights[0] * history[0]
    for j in range(1, min(weights.shape[0], len(history))):
        total = total + weights[j] * history[j]
    return total


def _padded(weights: Sequence[float], width: int) -> list[float]:
    return [*weights, *(0.0 for _ in range(width - len(weights)))]


def _take(points: Any, index: slice | int) -> Any:
    if isinstance(points, dict):
        return {name: _take(value, index) for name, value in points.items()}
    if isinstance(points, tuple | list):
        return tuple(_take(value, index) for value in points)
    return points[index]
