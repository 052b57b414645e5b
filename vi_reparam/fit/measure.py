"""The moments of a gradient, from independent replicates of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.backend.engine import Engine, Task
from vi_reparam.backend.ops import Array


class Moments:
    """Running mean, variance and fourth moment of replicates, shifted by a pilot.

    Args:
        pilot: about the mean, shape ``[parameters]``: sums of powers of small differences keep
            their digits.
    """

    def __init__(self, pilot: np.ndarray) -> None:
        self.pilot = np.asarray(pilot, np.float64)
        self.sums = np.zeros((4, self.pilot.size))
        self.count = 0

    def add(self, replicates: np.ndarray) -> None:
        """Add replicates, shape ``[number, parameters]``."""
        moves = np.asarray(replicates, np.float64) - self.pilot
        self.sums += np.stack([(moves**k).sum(0) for k in range(1, 5)])
        self.count += len(moves)

    @property
    def mean(self) -> np.ndarray:
        return self.pilot + self.sums[0] / self.count

    @property
    def variance(self) -> np.ndarray:
        m1, m2 = self.sums[0] / self.count, self.sums[1] / self.count
        return np.maximum(m2 - m1 * m1, 0.0) * self.count / max(self.count - 1, 1)

    @property
    def error(self) -> np.ndarray:
        """Standard error of `mean`."""
        return np.sqrt(self.variance / self.count)

    @property
    def variance_error(self) -> np.ndarray:
        """Standard error of `variance`, from the fourth central moment."""
        m1, m2, m3, m4 = self.sums / self.count
        central = m4 - 4.0 * m1 * m3 + 6.0 * m1**2 * m2 - 3.0 * m1**4
        return np.sqrt(np.maximum(central - self.variance**2, 0.0) / self.count)


def measure(
    engine: Engine, task: Task, data: Data, params: Mapping[str, Array], key: Any, num: int
) -> tuple[Moments, float]:
    """Moments of a task's gradient at given parameters, and seconds a gradient, from `num` replicates or a few more.

    Equal keys give equal noise to every estimator.
    """
    if any(drawn.estimator.has_score_term for drawn in engine.draws(task, data, params).values()):
        task.objective.structure(task.model, task.guide, *data.call, params)  # else plates would not be kept apart
    moments, seconds = None, 0.0
    for batch, took in engine.gradients(task, data, params, key, num):
        if moments is None:
            moments = Moments(np.asarray(batch, np.float64).mean(0))
        moments.add(batch)
        seconds += took
    assert moments is not None
    return moments, seconds / moments.count


def leaves_of(params: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of parameters by name, in the order of a gradient's columns; parameters may be trees of arrays.

    Mutable sites, which no gradient is taken by, are left out.
    """
    leaves: dict[str, Array] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value):
                visit(f"{name}[{key!r}]", value[key])
        elif isinstance(value, list | tuple):
            for index, part in enumerate(value):
                visit(f"{name}[{index}]", part)
        elif value is not None:
            leaves[name] = value

    for name in sorted(params):
        if not name.startswith("vr."):
            visit(name, params[name])
    return leaves


def coordinates(params: Mapping[str, Array]) -> list[str]:
    """A name for each column of a gradient."""
    names = []
    for name, value in leaves_of(params).items():
        names += [name + (f"[{','.join(map(str, i))}]" if i else "") for i in np.ndindex(*np.shape(value))]
    return names
