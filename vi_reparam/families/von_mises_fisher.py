"""Von Mises-Fisher on the unit sphere."""

from __future__ import annotations

import math
from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.backend.registry import ops_of
from vi_reparam.draw import Draw
from vi_reparam.families.base import Family, broadcast_shapes
from vi_reparam.numerics import bessel
from vi_reparam.samplers.primitive import Primitive
from vi_reparam.samplers.von_mises_fisher import PolarLogit


def _log_area(dim: int) -> float:
    """Logarithm of the area of the sphere of tangent directions."""
    a = 0.5 * (dim - 1)
    return math.log(2.0) + a * math.log(math.pi) - math.lgamma(a)


def _reflect(ops: Ops, direction: Array, x: Array) -> Array:
    """A rotation that takes the first axis to `direction`; its own inverse, up to what it does to tangents.

    A Householder reflection to whichever of direction and -direction is farther from the first
    axis, so that it is smooth in every direction but those on the equator, where it changes over.
    """
    xp = ops.xp
    first = direction[..., :1]
    sign = ops.stop_gradient(xp.where(first < 0.0, 0.0 * first - 1.0, 0.0 * first + 1.0))
    zero = 0.0 * ops.stop_gradient(direction)
    normal = sign * direction + xp.concat([zero[..., :1] + 1.0, zero[..., 1:]], axis=-1)
    scale = 2.0 * xp.sum(normal * x, axis=-1, keepdims=True) / xp.sum(normal * normal, axis=-1, keepdims=True)
    return -sign * (x - scale * normal)


class VonMisesFisher(Family):
    """VonMisesFisher(direction, concentration) on the unit sphere; `direction` is a unit vector.

    Entropy and log density are in closed form up to the one-dimensional normalizer of `bessel`.
    """

    name = "von_mises_fisher"
    parameters = ("direction", "concentration")
    parameter_event_dims = (1, 0)
    event_dim = 1
    kinds = frozenset({"implicit", "rejection", "score_function"})

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        xp, stop = ops.xp, ops.stop_gradient
        dim = params[0].shape[-1]
        sampler = PolarLogit(dim)
        direction = xp.broadcast_to(params[0], (*shape, dim))
        kappa = xp.broadcast_to(params[1], shape)
        key, tangent_key = ops.split(key, 2)
        given = None
        if value is None:
            tangent = ops.normal(tangent_key, (*shape, dim - 1), kappa.dtype)
        else:
            value, held = stop(value), stop(direction)
            near, far = (xp.sum((value - s * held) ** 2, axis=-1) for s in (1.0, -1.0))
            given = xp.log(near) - xp.log(far)
            tangent = _reflect(ops, held, value)[..., 1:]
        ell, score_term, noise = primitive(ops, key, sampler, shape, kappa, value=given)
        square = sampler._square(ell)
        cosine, sine = 1.0 - 2.0 * square, 2.0 * xp.exp(-0.5 * xp.abs(ell)) / (1.0 + xp.exp(-xp.abs(ell)))
        tangent = stop(tangent / xp.sqrt(xp.sum(tangent * tangent, axis=-1, keepdims=True)))
        local = xp.concat([cosine[..., None], sine[..., None] * tangent], axis=-1)
        log_prob = -2.0 * kappa * square - sampler.log_normalizer(kappa) - _log_area(dim)
        return Draw(_reflect(ops, direction, local), log_prob, score_term, noise=noise)

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        value, direction, kappa = self.ranked(value, *params)
        xp = ops_of(value, direction, kappa).xp
        dim = direction.shape[-1]
        # 1 - cos t as half the squared chord, which keeps its digits next to the direction.
        deficit = 0.5 * xp.sum((value - direction) ** 2, axis=-1)
        return -kappa * deficit - bessel.normalizer(kappa, dim)[0] - _log_area(dim)

    def entropy(self, *params: Array) -> Array:
        direction, kappa = params
        dim = direction.shape[-1]
        log_mass, mean = bessel.normalizer(kappa, dim)
        entropy = kappa * mean + log_mass + _log_area(dim)
        return ops_of(kappa).xp.broadcast_to(entropy, broadcast_shapes(direction.shape[:-1], kappa.shape))


VON_MISES_FISHER = VonMisesFisher()
