"""How a family asks an estimator for the draw of its rejection sampler, and the three ways to answer."""

from __future__ import annotations

import abc
from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.samplers.base import RejectionSampler, accepted_noise
from vi_reparam.samplers.gamma import LogGamma


class Primitive(abc.ABC):
    """How one rejection sampler inside a family is drawn: the part in which estimators differ.

    Attributes:
        boost: shape augmentations of the gamma draws.
        density: whether the draw's log_prob is wanted; where it is not, a family may leave it None.
    """

    boost: int = 1
    density: bool = True

    @abc.abstractmethod
    def __call__(
        self, ops: Ops, key: Any, sampler: RejectionSampler, shape: Shape, *params: Array, value: Held = None
    ) -> tuple[Array, Array | None, Any]:
        """A value of the sampler (`value` itself if given), its score term or None, its noise."""


def _constant(
    ops: Ops, key: Any, sampler: RejectionSampler, shape: Shape, value: Array | None, *params: Array
) -> tuple[Array, Any]:
    stop = ops.stop_gradient
    if value is not None:
        return stop(value), None
    params = tuple(stop(ops.xp.broadcast_to(p, shape)) for p in params)
    noise = accepted_noise(ops, key, sampler, shape, *params)
    return stop(sampler.transform(noise, *params)), noise


class Constant(Primitive):
    """No gradient at all."""

    def __call__(
        self, ops: Ops, key: Any, sampler: RejectionSampler, shape: Shape, *params: Array, value: Held = None
    ) -> tuple[Array, Array | None, Any]:
        value, noise = _constant(ops, key, sampler, shape, value, *params)
        return value, None, noise


class ImplicitGradient(Primitive):
    """The implicit gradient of the accepted value."""

    def __init__(self, *, density: bool = True) -> None:
        self.density = density

    def __call__(
        self, ops: Ops, key: Any, sampler: RejectionSampler, shape: Shape, *params: Array, value: Held = None
    ) -> tuple[Array, Array | None, Any]:
        value, noise = _constant(ops, key, sampler, shape, value, *params)
        params = tuple(ops.xp.broadcast_to(p, shape) for p in params)
        return sampler.attach(value, *params), None, noise


class AcceptedNoise(Primitive):
    """The gradient through the transform at fixed accepted noise, and its correction."""

    def __init__(self, boost: int) -> None:
        self.boost = boost

    def __call__(
        self, ops: Ops, key: Any, sampler: RejectionSampler, shape: Shape, *params: Array, value: Held = None
    ) -> tuple[Array, Array | None, Any]:
        params = tuple(ops.xp.broadcast_to(p, shape) for p in params)
        if value is None:
            noise = accepted_noise(ops, key, sampler, shape, *params)
        elif isinstance(sampler, LogGamma):
            noise = sampler.recover(ops, key, value, *params)
        else:
            constants = tuple(ops.stop_gradient(p) for p in params)
            noise = ops.stop_gradient(sampler.inverse(ops.stop_gradient(value), *constants))
        return sampler.transform(noise, *params), sampler.log_noise_density(noise, *params), noise
