"""Von Mises on the circle."""

from __future__ import annotations

import math
from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.draw import Draw
from vi_reparam.families.base import Family, same_rank
from vi_reparam.numerics import bessel
from vi_reparam.samplers.primitive import Primitive
from vi_reparam.samplers.von_mises import VonMisesDeviation

_SAMPLER = VonMisesDeviation()


def _wrap(ops: Ops, angle: Array) -> Array:
    """The angle in [-pi, pi), with the gradient of a shift."""
    turns = ops.stop_gradient(ops.xp.floor((angle + math.pi) / (2.0 * math.pi)))
    wrapped = angle - 2.0 * math.pi * turns
    held = ops.stop_gradient(wrapped)
    inside = ops.xp.where(held >= math.pi, 0.0 * held - math.pi, ops.xp.clip(held, -math.pi, None))
    return inside + (wrapped - held)


class VonMises(Family):
    """VonMises(loc, concentration) on [-pi, pi).

    Gradients are those of costs that are continuous on the circle: a cost that jumps between pi
    and -pi has a boundary term in loc that no pathwise derivative sees.
    """

    name = "von_mises"
    parameters = ("loc", "concentration")
    parameter_event_dims = (0, 0)
    kinds = frozenset({"implicit", "rejection", "score_function"})

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        loc, kappa = (ops.xp.broadcast_to(p, shape) for p in params)
        given = None if value is None else _wrap(ops, ops.stop_gradient(value - loc))
        deviation, score_term, noise = primitive(ops, key, _SAMPLER, shape, kappa, value=given)
        return Draw(_wrap(ops, loc + deviation), _SAMPLER.log_target(deviation, kappa), score_term, noise=noise)

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        value, loc, kappa = self.ranked(value, *params)
        return _SAMPLER.log_target(value - loc, kappa)

    def entropy(self, *params: Array) -> Array:
        loc, kappa = same_rank(params, self.parameter_event_dims)
        log_mass, mean = bessel.normalizer(kappa, 2)
        return 0.0 * loc + (kappa * mean + log_mass + math.log(2.0))


VON_MISES = VonMises()
