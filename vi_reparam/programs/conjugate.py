"""Gamma and beta priors times what the data say: the same family, its parameters added to."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.ops import Array, Key, Ops
from vi_reparam.estimators.pathwise import Implicit
from vi_reparam.families.base import Family
from vi_reparam.families.dirichlet import BETA
from vi_reparam.families.gamma import GAMMA, INVERSE_GAMMA
from vi_reparam.gaussians.bases import lift
from vi_reparam.programs.layout import Part
from vi_reparam.programs.priors import Factor

LEAST = 1e-3
"""What the data add to a parameter, at the least, where a fit starts."""


class Row(abc.ABC):
    """A family of two parameters, to which what the data say is added; x is the unconstrained coordinate of a value.

    Attributes:
        family: of the core.
    """

    family: Family

    @abc.abstractmethod
    def flat(self, logs: tuple[Array, ...]) -> Array:
        """x, from the logarithms that a draw of the family has."""

    @abc.abstractmethod
    def logs(self, xp: Any, x: Array) -> tuple[Array, ...]:
        """Those logarithms, the value's own first, of x."""

    @abc.abstractmethod
    def added(self, xp: Any, x: Array, rise: Array, curvature: Array) -> tuple[Array, Array]:
        """What is added to each parameter by a log likelihood with this slope and this negative curvature at x."""


class GammaRow(Row):
    """x is the logarithm."""

    family = GAMMA

    def flat(self, logs: tuple[Array, ...]) -> Array:
        return logs[0]

    def logs(self, xp: Any, x: Array) -> tuple[Array, ...]:
        return (x,)

    def added(self, xp: Any, x: Array, rise: Array, curvature: Array) -> tuple[Array, Array]:
        return curvature + rise, curvature * xp.exp(-x)


class InverseGammaRow(GammaRow):
    """x is the logarithm."""

    family = INVERSE_GAMMA

    def added(self, xp: Any, x: Array, rise: Array, curvature: Array) -> tuple[Array, Array]:
        return curvature - rise, curvature * xp.exp(x)


class BetaRow(Row):
    """x is the logit."""

    family = BETA

    def flat(self, logs: tuple[Array, ...]) -> Array:
        return logs[0] - logs[1]

    def logs(self, xp: Any, x: Array) -> tuple[Array, ...]:
        zero = xp.zeros_like(x)
        return -xp.logaddexp(zero, -x), -xp.logaddexp(zero, x)

    def added(self, xp: Any, x: Array, rise: Array, curvature: Array) -> tuple[Array, Array]:
        chance = xp.exp(self.logs(xp, x)[0])
        return curvature / (1.0 - chance) + rise, curvature / chance - rise


_GAMMA = GammaRow()
ROWS: dict[str, Row] = {"gamma": _GAMMA, "chi2": _GAMMA, "inverse_gamma": InverseGammaRow(), "beta": BetaRow()}
"""By the core's name of the prior's family."""


class Conjugate(NamedTuple):
    """A prior that has a row, or its product with a factor.

    Attributes:
        row: of the family.
        first: its parameters; `second`: both of the site's shape.
    """

    row: Row
    first: Array
    second: Array

    def times(self, ops: Ops, factor: Factor) -> Conjugate:
        """With what the data add: to the first parameter exp(log_precision), to the second exp(-loc)."""
        xp = ops.xp
        return self._replace(first=self.first + xp.exp(factor.log_precision), second=self.second + xp.exp(-factor.loc))

    def draw(self, ops: Ops, key: Key) -> Array:
        """x, with the implicit gradient in both parameters."""
        drawn = Implicit().draw(ops, key, self.row.family, tuple(self.first.shape), self.first, self.second)
        assert drawn.logs is not None
        return self.row.flat(drawn.logs)

    def log_prob(self, ops: Ops, x: Array) -> Array:
        """Log density of all x together, a scalar."""
        logs = self.row.logs(ops.xp, x)
        found = self.row.family.log_prob(ops.xp.exp(logs[0]), self.first, self.second, logs=logs)
        return ops.xp.sum(found + sum(logs))  # the slope of the value in x is the product of what these are of


def row_of(backend: Backend, distribution: Any) -> Row | None:
    """The row of a prior; None where it has none."""
    read = _read(backend, distribution)
    return None if read is None else read[0]


def conjugate_of(backend: Backend, distribution: Any, part: Part) -> Conjugate:
    """The prior of a site that has a row, at the values drawn before it."""
    read, ops = _read(backend, distribution), backend.ops
    assert read is not None
    row, *pair = read
    first, second = (ops.xp.broadcast_to(lift(ops, x, len(part.shape)), part.shape) for x in pair)
    return Conjugate(row, first, second)


def _read(backend: Backend, distribution: Any) -> tuple[Row, Array, Array] | None:
    while (wrapping := backend.host.unwrap(distribution)) is not None:
        if wrapping.kind == "transformed":
            return None
        distribution = wrapping.inner
    if type(distribution).__name__ == "Exponential":
        rate = backend.ops.asarray(distribution.rate)
        return _GAMMA, backend.ops.xp.ones_like(rate), rate
    reading = backend.host.read(distribution)
    if reading is None or reading[0].name not in ROWS:
        return None
    family, params = reading
    first, second = params if len(params) == 2 else (0.5 * params[0], 0.0 * params[0] + 0.5)
    return ROWS[family.name], first, second
