"""A user's own rejection sampler as a family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vi_reparam.draw import Draw
from vi_reparam.families.base import Family
from vi_reparam.ops import Ops
from vi_reparam.samplers.base import RejectionSampler

if TYPE_CHECKING:
    from vi_reparam.estimators.base import Primitive

Array = Any


class Own(Family):
    """What a `RejectionSampler` samples, with its parameters in the sampler's order.

    Args:
        sampler: the sampler; its value is the draw.
        num_params: how many parameters its methods take.
    """

    def __init__(self, sampler: RejectionSampler, num_params: int) -> None:
        self.sampler = sampler
        self.name = type(sampler).__name__  # type: ignore[misc]
        self.parameters = tuple(f"params[{i}]" for i in range(num_params))  # type: ignore[misc]
        self.parameter_event_dims = (0,) * num_params  # type: ignore[misc]
        self.event_dim = sampler.event_dim  # type: ignore[misc]
        implicit = {"implicit"} if sampler.has_implicit else set()
        self.kinds = frozenset({"rejection", "score_function"} | implicit)  # type: ignore[misc]

    def build(
        self,
        primitive: Primitive,
        ops: Ops,
        key: Any,
        shape: tuple[int, ...],
        *params: Array,
        value: Array | None = None,
    ) -> Draw:
        drawn, score_term, noise = primitive(ops, key, self.sampler, shape, *params, value=value)
        return Draw(value=drawn, log_prob=self.log_prob(drawn, *params), score_term=score_term, noise=noise)

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        return self.sampler.log_target(value, *params)
