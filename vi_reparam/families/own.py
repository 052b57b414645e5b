"""A family out of nothing but a rejection sampler of your own."""

from __future__ import annotations

import inspect
from typing import Any

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.backend.registry import ops_of
from vi_reparam.draw import Draw
from vi_reparam.errors import ArgumentError
from vi_reparam.families.base import Family
from vi_reparam.samplers.base import RejectionSampler
from vi_reparam.samplers.primitive import Primitive


def _names(sampler: RejectionSampler) -> tuple[str, ...]:
    """The names of the parameters in the signature of `transform`, after the noise."""
    arguments = list(inspect.signature(sampler.transform).parameters.values())[1:]
    if any(argument.kind is argument.VAR_POSITIONAL for argument in arguments):
        raise ArgumentError(
            f"{type(sampler).__name__}.transform takes *params: name them, as in "
            "SamplerFamily(sampler, parameters=('scale',))"
        )
    return tuple(argument.name for argument in arguments)


class SamplerFamily(Family):
    """The distribution of a `RejectionSampler`, with scalar parameters in the sampler's order.

    `Rejection` and `ScoreFunction` serve it at once, `Implicit` where the sampler has `attach`.

    Args:
        sampler: an instance; its loop, correction and densities are used as they are.
        parameters: their names, or how many there are; read from the signature of `transform` if
            left out.

    Raises:
        ArgumentError: if the names are left out and cannot be read.
    """

    def __init__(self, sampler: RejectionSampler, parameters: tuple[str, ...] | int | None = None) -> None:
        if isinstance(parameters, int):
            parameters = tuple(f"params[{i}]" for i in range(parameters))
        self.sampler = sampler
        self.name = type(sampler).__name__
        self.parameters = _names(sampler) if parameters is None else tuple(parameters)
        self.parameter_event_dims = (0,) * len(self.parameters)
        self.event_dim = sampler.event_dim
        self.kinds = frozenset({"rejection", "score_function"} | ({"implicit"} if sampler.has_implicit else set()))

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        params = tuple(ops.xp.broadcast_to(p, shape) for p in params)
        drawn, score_term, noise = primitive(ops, key, self.sampler, shape, *params, value=value)
        log_prob = self.sampler.log_target(drawn, *params)
        return Draw(value=drawn, log_prob=log_prob, score_term=score_term, noise=noise)

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        xp = ops_of(value, *params).xp
        value, *ranked = self.ranked(value, *params)
        if self.event_dim == 0:
            value, *aligned = xp.broadcast_arrays(value, *ranked)
            return self.sampler.log_target(value, *aligned)
        lanes = value[(..., *(0 for _ in range(self.event_dim)))]
        _, *aligned = xp.broadcast_arrays(lanes, *ranked)
        shape = (*aligned[0].shape, *value.shape[value.ndim - self.event_dim :])
        return self.sampler.log_target(xp.broadcast_to(value, shape), *aligned)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SamplerFamily) and (self.sampler, self.parameters) == (other.sampler, other.parameters)

    def __hash__(self) -> int:
        return hash((SamplerFamily, self.sampler, self.parameters))
