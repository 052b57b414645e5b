"""A path of the guide, and its log-weight from exactly the kernels that were simulated.

The path starts at x_0 ~ N(0, V_0) and takes K steps B(x_{k+1} | x_k, ...). Against it stand the
exact noising kernels F(x_k | x_{k+1}) from the last point back, so that

    log w = log p(x_K) + sum_k log F(x_k | x_{k+1}) - log N(x_0) - sum_k log B(x_{k+1} | ...)

has E[exp(log w)] = Z at any number of steps. A bound made of continuous-time drift costs has not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.checks import check_choice
from vi_reparam.errors import ArgumentError
from vi_reparam.gaussians.bases import lift
from vi_reparam.numerics.special import LOG_2PI
from vi_reparam.sde.schedules import Schedule
from vi_reparam.sde.solver import Adams, in_form, rows, tables
from vi_reparam.sde.tau import Tau
from vi_reparam.sde.transition import noising

GRADIENTS = ("path", "reparameterization", "log_variance")


@dataclass(frozen=True)
class Path:
    """What is left of a path.

    Attributes:
        end: x_K in the base's standardized coordinates, shape ``[..., D]``.
        log_q: log N(x_0) + sum log B - sum log F, as a density of `end`; shape ``[...]``.
    """

    end: Array
    log_q: Array


@dataclass(frozen=True)
class Drifts:
    """A drift in the two roles that a gradient may need.

    Attributes:
        live: ``predict(x, row, shared)``: the data that the drift expects, differentiated.
        frozen: the same with its parameters as constants.
        shared: ``shared(x, row)``: what both use, computed once; a constant of differentiation.
    """

    live: Callable[[Array, Any, Any], Array]
    frozen: Callable[[Array, Any, Any], Array]
    shared: Callable[[Array, Any], Any]


def simulate(
    ops: Ops,
    drifts: Drifts,
    start: Array,
    noise: Array,
    sd: Array,
    *,
    schedule: Schedule,
    grid: Sequence[float],
    adams: Adams,
    tau: Tau,
    own: Any = None,
    gradient: str = "path",
    checkpoint: bool = True,
) -> Path:
    """Simulate a path and score it.

    Args:
        drifts: the drift.
        start: standard normal noise, shape ``[..., D]``.
        noise: standard normal noise, shape ``[K, ..., D]``.
        sd: the kernels' standard deviations, shape ``[K, D]``.
        grid: lambdas, increasing, K + 1 of them.
        own: the drift's own rows, leading axis over ``grid[:-1]``.
        gradient: ``"path"`` (log q is differentiated through the path only), ``"reparameterization"``
            (through the parameters too), or ``"log_variance"`` (the path is a constant).
        checkpoint: recompute each step in the backward pass instead of keeping it.

    Raises:
        ArgumentError: for a gradient that does not exist, or a corrector, which has no kernel.
    """
    check_choice("gradient", gradient, GRADIENTS)
    if adams.corrector:
        raise ArgumentError(f"{adams!r}: a corrected step has no tractable kernel; use corrector=0 for a path's weight")
    xp, stop, dtype = ops.xp, ops.stop_gradient, start.dtype
    found = tables(schedule, grid, adams, tau)
    back = [noising(schedule, low, high) for low, high in itertools.pairwise(grid)]
    xs = {
        "keep": xp.asarray(found.keep, dtype=dtype),
        "weights": xp.asarray(found.predictor, dtype=dtype),
        "back": xp.asarray([b.keep for b in back], dtype=dtype),
        "back_sd": xp.asarray([b.variance**0.5 for b in back], dtype=dtype),
        "sd": sd,
        "noise": noise,
        "row": rows(ops, schedule, grid[:-1], dtype, own),
    }
    size = start.shape[-1]
    first = schedule.total(grid[0])
    last = schedule.total(grid[-1])
    x = first * start
    # constants of all kernels at once, so that float32 keeps its digits for the rest
    constant = -0.5 * size * (LOG_2PI + 2.0 * math.log(first) - 2.0 * math.log(last))
    constant = constant + size * sum(0.5 * math.log(b.variance) for b in back)
    empty = tuple((0.0 * x, 0.0 * x) for _ in range(adams.order - 1))

    def mean(x: Array, history: Any, row: Any, which: int) -> Array:
        total = row["keep"] * x
        for j, pair in enumerate(history):
            total = total + row["weights"][j] * pair[which]
        return total

    def body(state: Any, row: Any) -> Any:
        x, history, log_q = state
        shared = drifts.shared(x, row["row"])
        live = frozen = in_form(adams.form, x, drifts.live(x, row["row"], shared), row["row"])
        if gradient == "path":
            frozen = in_form(adams.form, x, drifts.frozen(x, row["row"], shared), row["row"])
        history = ((live, frozen), *history)
        middle, wide = mean(x, history, row, 0), lift(ops, row["sd"], x.ndim)
        new = middle + wide * row["noise"]
        if gradient == "path":
            middle, wide = mean(x, history, row, 1), stop(wide)
        elif gradient == "log_variance":
            new = stop(new)
        scaled = row["noise"] if gradient == "reparameterization" else (new - middle) / wide
        behind = (x - row["back"] * new) / row["back_sd"]
        log_q = log_q + xp.sum(0.5 * behind * behind - 0.5 * scaled * scaled - xp.log(wide), axis=-1)
        return (new, history[: adams.order - 1], log_q), row["keep"]

    log_q = constant - 0.5 * xp.sum(start * start, axis=-1)
    (x, _, log_q), _ = ops.scan(body, (x, empty, log_q), xs, checkpoint=checkpoint)
    return Path(x / last, log_q)
