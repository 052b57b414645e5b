"""The default: what measurement prefers among the unbiased estimators that apply."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.draw import Draw
from vi_reparam.estimators.base import Estimator
from vi_reparam.estimators.measure_valued import MeasureValued
from vi_reparam.estimators.pathwise import Implicit, Pathwise
from vi_reparam.estimators.rejection import Rejection
from vi_reparam.estimators.score_function import ScoreFunction
from vi_reparam.families.base import Family

ORDER: tuple[Estimator, ...] = (Pathwise(), Implicit(), Rejection(), ScoreFunction(), MeasureValued())
"""By variance x time, as measured (`benchmarks/results/estimators.json`); weak derivatives come
last because their cost grows with the number of parameters."""


class Auto(Estimator):
    """The smallest variance x time among the unbiased estimators that apply.

    At a site alone `ORDER` decides. A long fit measures variances on the model itself, once, before its first step,
    where two candidates are close (gamma-like sites: `Implicit` and `Rejection`).
    """

    kind = "auto"

    def applies_to(self, family: Family) -> bool:
        return True

    def choose(self, family: Family) -> Estimator:
        """The estimator that stands in for this one at a site of `family`."""
        return self.candidates(family)[0]

    def candidates(self, family: Family) -> list[Estimator]:
        """All that apply, in the measured order."""
        return [estimator for estimator in ORDER if estimator.applies_to(family)]

    def draw(self, ops: Ops, key: Any, family: Family, shape: Shape, *params: Array, value: Held = None) -> Draw:
        return self.choose(family).draw(ops, key, family, shape, *params, value=value)
