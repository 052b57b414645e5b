"""Gradients through the draw itself: z = g(eps, theta), or implicitly, dz/dtheta = -(dF/dtheta) / q."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.draw import Draw
from vi_reparam.estimators.base import Estimator
from vi_reparam.families.base import Family
from vi_reparam.samplers.primitive import Constant, ImplicitGradient


class Pathwise(Estimator):
    """The reparameterization gradient (Kingma and Welling 2014), for location-scale families."""

    kind = "pathwise"

    def draw(self, ops: Ops, key: Any, family: Family, shape: Shape, *params: Array, value: Held = None) -> Draw:
        self.require(family)
        return family.build(Constant(), ops, key, shape, *params, value=value)


class Implicit(Estimator):
    """Implicit reparameterization (Figurnov et al. 2018): gamma family, von Mises, truncated normal."""

    kind = "implicit"

    def draw(self, ops: Ops, key: Any, family: Family, shape: Shape, *params: Array, value: Held = None) -> Draw:
        self.require(family)
        return family.build(ImplicitGradient(), ops, key, shape, *params, value=value)
