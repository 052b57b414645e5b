"""Noise schedules: alpha and sigma of x_t = alpha_t x_0 + sigma_t eps, by lambda = log(alpha / sigma).

Everything here is Python floats in double precision: a schedule is a constant of the program.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

from vi_reparam.checks import check_integer
from vi_reparam.errors import ArgumentError


class Schedule(abc.ABC):
    """How much signal is left at a log signal-to-noise ratio, and how lambda runs over t in [0, 1].

    t = 0 is the noise where generation starts, t = 1 the data; lambda grows with t.
    """

    @abc.abstractmethod
    def log_snr(self, t: float) -> float:
        """Lambda = log(alpha / sigma) at time t in [0, 1]."""

    @abc.abstractmethod
    def alpha(self, lam: float) -> float:
        """The signal's factor."""

    @abc.abstractmethod
    def sigma(self, lam: float) -> float:
        """The noise's standard deviation."""

    def total(self, lam: float) -> float:
        """Standard deviation of x_t when the data are standard normal: sqrt(alpha^2 + sigma^2)."""
        return math.hypot(self.alpha(lam), self.sigma(lam))

    def grid(self, num_steps: int) -> tuple[float, ...]:
        """The `num_steps` + 1 values of lambda between which steps are taken, increasing.

        Raises:
            ArgumentError: if `num_steps` is not an integer of at least 1.
        """
        check_integer("num_steps", num_steps)
        return tuple(self.log_snr(k / num_steps) for k in range(num_steps + 1))


class VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1, so a standard normal stays one."""

    def alpha(self, lam: float) -> float:
        return _sigmoid(2.0 * lam) ** 0.5

    def sigma(self, lam: float) -> float:
        return _sigmoid(-2.0 * lam) ** 0.5


@dataclass(frozen=True)
class UniformLogSNR(VariancePreserving):
    """Variance-preserving, with steps of equal size in lambda. The default of `vr.SDE`.

    Args:
        low: lambda at the start.
        high: lambda at the end; the smallest noise that the steps resolve is about exp(-high).

    Raises:
        ArgumentError: unless low < high.
    """

    low: float = -2.5
    high: float = 4.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ArgumentError(f"{self!r}: expected low < high")

    def log_snr(self, t: float) -> float:
        return self.low + (self.high - self.low) * t


@dataclass(frozen=True)
class Linear(VariancePreserving):
    """Variance-preserving, with a noise rate that is linear in time (Song et al. 2021, eq. 33).

    Args:
        beta_min: the rate at the data; `beta_max`: the rate at the noise.
        last: time before the data at which the process stops (sigma is 0 at the data itself).

    Raises:
        ArgumentError: for rates that are not positive, or `last` outside (0, 1).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    last: float = 1e-3

    def __post_init__(self) -> None:
        if not (0.0 < self.beta_min <= self.beta_max and 0.0 < self.last < 1.0):
            raise ArgumentError(f"{self!r}: expected 0 < beta_min <= beta_max and 0 < last < 1")

    def log_snr(self, t: float) -> float:
        left = 1.0 + (self.last - 1.0) * t
        integral = 0.5 * (self.beta_max - self.beta_min) * left * left + self.beta_min * left  # -2 log alpha
        return -0.5 * math.log(math.expm1(integral))


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """Variance-preserving, alpha a cosine of time (Nichol and Dhariwal 2021, eq. 17).

    Args:
        offset: keeps the first steps next to the data from being too small.
        first: time left out at the noise, where alpha would be 0; `last`: as in `Linear`.

    Raises:
        ArgumentError: for an offset below 0, or times outside (0, 1).
    """

    offset: float = 0.008
    first: float = 5e-3
    last: float = 1e-3

    def __post_init__(self) -> None:
        if not (self.offset >= 0.0 and 0.0 < self.last < 1.0 - self.first < 1.0):
            raise ArgumentError(f"{self!r}: expected offset >= 0 and 0 < last < 1 - first < 1")

    def log_snr(self, t: float) -> float:
        left = 1.0 - self.first + (self.last - 1.0 + self.first) * t
        return -math.log(math.tan(0.5 * math.pi * (left + self.offset) / (1.0 + self.offset)))


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """alpha = 1 and sigma falls geometrically (Song et al. 2021, eq. 31).

    Args:
        sigma_max: at the noise; `sigma_min`: at the data.

    Raises:
        ArgumentError: unless 0 < sigma_min < sigma_max.
    """

    sigma_max: float = 12.0
    sigma_min: float = 0.018

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ArgumentError(f"{self!r}: expected 0 < sigma_min < sigma_max")

    def log_snr(self, t: float) -> float:
        return -((1.0 - t) * math.log(self.sigma_max) + t * math.log(self.sigma_min))

    def alpha(self, lam: float) -> float:
        return 1.0

    def sigma(self, lam: float) -> float:
        return math.exp(-lam)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0.0 else math.exp(x) / (1.0 + math.exp(x))
