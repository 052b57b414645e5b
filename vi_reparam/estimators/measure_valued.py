"""The weak derivative of the density, as a coupled pair of draws."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.draw import Branch, Draw
from vi_reparam.estimators.base import Estimator
from vi_reparam.families.base import Family


class MeasureValued(Estimator):
    """Measure-valued derivatives (Mohamed et al. 2020, section 6): normal, gamma (rate), Poisson, Bernoulli.

    Each parameter costs two further evaluations of the downstream cost. A family's parameters
    that it does not serve (gamma's concentration) must not be differentiated; the backends
    refuse that.
    """

    kind = "measure_valued"
    has_score_term = True

    def draw(self, ops: Ops, key: Any, family: Family, shape: Shape, *params: Array, value: Held = None) -> Draw:
        self.require(family)
        xp, stop = ops.xp, ops.stop_gradient
        z, pairs = family.weak_derivatives(ops, key, shape, *(stop(p) for p in params), value=value)
        branches = []
        for pair in pairs:
            theta = xp.broadcast_to(params[pair.parameter], shape)
            weight = stop(pair.coefficient) * (theta - stop(theta))
            branches += [Branch(stop(pair.plus), weight), Branch(stop(pair.minus), -weight)]
        z = stop(z)
        return Draw(z, xp.broadcast_to(family.log_prob(z, *params), shape), branches=tuple(branches))
