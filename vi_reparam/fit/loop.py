"""The steps of one fit from one start: a progress bar, a clock, convergence, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from vi_reparam.backend.data import Data
from vi_reparam.backend.engine import Program
from vi_reparam.backend.ops import Array
from vi_reparam.errors import NonFiniteError
from vi_reparam.fit.convergence import BLOCK, Convergence

Course = Convergence | None
Save = Callable[[Any, int], None]

CHUNK = 1024
"""The most steps between two looks at the clock; the first comes after one, which may take long."""

SHOWN = 32
"""Steps of one batch each between two changes of the bar's words."""

LOOK_EVERY = 0.5
"""Seconds between two looks, about."""

SAVE_EVERY = 10.0
"""Seconds between two checkpoints."""


@dataclass(frozen=True)
class Restart:
    """A fit from one start, at its end.

    Attributes:
        params: constrained values.
        losses: of its steps.
        course: when it ended by itself; None for one with a number of steps.
        execution: how its steps were taken.
        interrupted: whether Ctrl-C ended it.
    """

    params: Mapping[str, Array]
    losses: np.ndarray
    course: Course
    execution: str
    interrupted: bool = False

    @property
    def bound(self) -> float:
        """The ELBO at its end, in nats."""
        return -float(np.mean(self.losses[-max(1, len(self.losses) // 10) :])) if len(self.losses) else -np.inf


def run_steps(
    program: Program,
    state: Any,
    losses: Any,
    done: int,
    *,
    name: str,
    course: Course,
    progress: bool,
    save: Save,
    interrupted: Callable[[], bool],
    fed: Iterator[Data] | None = None,
) -> tuple[Any, int, bool]:
    """Go on from step `done` to the end.

    Args:
        losses: one for each step of the whole fit; those to come are filled in.
        course: decides when the fit ends by itself; None for one with a number of steps.
        save: writes a checkpoint of (state, steps done).
        interrupted: whether Ctrl-C was pressed.
        fed: the data of each step to come; None for the same data at all.

    Returns:
        The state, the steps done, and whether Ctrl-C ended them.

    Raises:
        KeyboardInterrupt: for Ctrl-C before any step is done, or pressed twice.
        NonFiniteError: for a NaN or an infinity, with its step and site.
    """
    total, chunk, saved = len(losses), 1, time.perf_counter()
    bar = tqdm(total=total, initial=done, disable=not progress, desc=f"fit {name}: compiling")
    with bar:
        while done < total and not (course is not None and course.finished):
            begun = time.perf_counter()
            limit = min(chunk, total - done)
            if course is not None:
                limit = min(limit, BLOCK - done % BLOCK)
            if fed is not None:
                limit, state = 1, program.feed(state, next(fed))
            try:
                state, values, finite = program.advance(state, limit)
            except KeyboardInterrupt:  # one that was not only noted: the state is that before these steps
                if not done:
                    raise
                save(state, done)
                return state, done, True
            losses[done : done + len(values)] = values
            done += len(values)
            if not finite:
                raise not_finite(program, state, losses[:done], name)
            bar.update(len(values))
            if course is not None and (done % BLOCK == 0 or done == total):
                state = _look(program, state, course, losses[done - ((done - 1) % BLOCK + 1) : done])
            if fed is None or done % SHOWN == 1:
                note = "" if course is None else f", {course}"
                bar.set_description(f"fit {name}", refresh=False)
                bar.set_postfix_str(f"ELBO {-np.mean(losses[max(0, done - 100) : done]):.4g}{note}", refresh=False)
            seconds = time.perf_counter() - begun
            chunk = int(np.clip(len(values) * LOOK_EVERY / max(seconds, 1e-4), 1, CHUNK))
            ended = done == total or (course is not None and course.finished)
            if ended or interrupted() or time.perf_counter() - saved > SAVE_EVERY:
                save(state, done)
                saved = time.perf_counter()
            if interrupted() and not ended:
                return state, done, True
    return state, done, False


def _look(program: Program, state: Any, course: Convergence, losses: np.ndarray) -> Any:
    """Take note of a block of steps, and go on from the mean of the iterates where a rate is left."""
    state, mean, square = program.moments(state)
    left = course.add(losses.tolist(), mean, square)
    return state if left is None else program.move(state, left, 0.0 if course.finished else course.rate)


def not_finite(program: Program, state: Any, losses: np.ndarray, name: str) -> NonFiniteError:
    """The error that names what is not finite in the step after `state`; the losses are those up to that step."""
    sites = program.non_finite(state)
    listed = "; ".join(f"site {site!r}: {what}" for site, what in sites.items()) or "the cause did not recur"
    step = len(losses) - 1
    mend = "try a smaller learning rate, float64, or" if step else "see that data lie within their supports, and"
    return NonFiniteError(
        f"fit of {name[:40]} stopped at step {step}: {listed[:120]}. The last finite parameters are in error.params; "
        f"{mend} look at that site's density",
        step=step,
        sites=sites,
        params=program.params(state),
        losses=losses,
    )
