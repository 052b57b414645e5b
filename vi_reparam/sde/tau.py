"""Tau schedules: how much noise each step injects. All of them share the same marginals."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any

from vi_reparam.errors import ArgumentError


class Tau(abc.ABC):
    """tau as a function of lambda, constant within a step. 0 is the flow (no noise), 1 the reverse SDE."""

    @abc.abstractmethod
    def at(self, low: float, high: float) -> float:
        """tau of the step from lambda = `low` to `high`."""


@dataclass(frozen=True)
class Constant(Tau):
    """The same tau at every step.

    Raises:
        ArgumentError: unless it is a number of at least 0.
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        _check(self, self.tau)

    def at(self, low: float, high: float) -> float:
        return self.tau


@dataclass(frozen=True)
class Window(Tau):
    """`tau` where the step's middle lies in [low, high] of lambda, else 0 (SA-Solver, appendix E).

    Raises:
        ArgumentError: unless tau is at least 0 and low < high.
    """

    tau: float = 1.0
    low: float = -2.0
    high: float = 3.0

    def __post_init__(self) -> None:
        _check(self, self.tau, low=self.low, high=self.high)

    def at(self, low: float, high: float) -> float:
        return self.tau if self.low <= 0.5 * (low + high) <= self.high else 0.0


@dataclass(frozen=True)
class Ramp(Tau):
    """Linear in lambda from `first` at `low` to `last` at `high`, and constant outside.

    Raises:
        ArgumentError: unless both are at least 0 and low < high.
    """

    first: float = 1.0
    last: float = 0.0
    low: float = -2.5
    high: float = 4.0

    def __post_init__(self) -> None:
        _check(self, self.first, self.last, low=self.low, high=self.high)

    def at(self, low: float, high: float) -> float:
        part = (0.5 * (low + high) - self.low) / (self.high - self.low)
        return self.first + (self.last - self.first) * min(max(part, 0.0), 1.0)


def as_tau(value: Any) -> Tau:
    """A number or a schedule, as a schedule.

    Raises:
        ArgumentError: if it is neither, or a number below 0.
    """
    if isinstance(value, Tau):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Constant(float(value))
    raise ArgumentError(f"tau={value!r}: expected a number of at least 0 or a schedule such as Window(1.0, -2.0, 3.0)")


def _check(owner: Tau, *values: float, low: float = 0.0, high: float = 1.0) -> None:
    if not all(isinstance(value, int | float) and math.isfinite(value) and value >= 0.0 for value in values):
        raise ArgumentError(f"{owner!r}: expected a finite tau of at least 0")
    if not low < high:
        raise ArgumentError(f"{owner!r}: expected low < high")
