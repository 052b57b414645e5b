"""Plates by name: a tensor of log densities, and the plates that its dimensions are."""

from __future__ import annotations

from typing import NamedTuple

from vi_reparam.backend.ops import Array
from vi_reparam.backend.registry import ops_of
from vi_reparam.backend.tracer import Record


class PlateDims(NamedTuple):
    """The plates around a site, and where they stand in its batch.

    Attributes:
        dims: plate name -> dimension, negative, counted from the right of the batch shape.
        batch_shape: of the site.
    """

    dims: dict[str, int]
    batch_shape: tuple[int, ...]

    @classmethod
    def of(cls, record: Record) -> PlateDims:
        """The plates around a sample."""
        # a plate that is a Python loop has no dimension
        dims = {plate.name: plate.dim for plate in record.plates if plate.dim is not None}
        return cls(dims, tuple(record.distribution.batch_shape))

    @property
    def names(self) -> frozenset[str]:
        """Names of the plates that are dimensions of the site."""
        return frozenset(name for name, dim in self.dims.items() if -dim <= len(self.batch_shape))


def sum_to(cost: Array, source: PlateDims, target: PlateDims, plates: frozenset[str]) -> Array:
    """Sum a cost over every dimension that is not one of `plates` of the target.

    Args:
        cost: shape ``lead + source.batch_shape``; `lead` is kept.
        plates: names of the target's plates that may be kept.

    Returns:
        Shape ``lead + batch`` with as many batch dimensions as the target, each of the plate's
        size or 1, aligned with the target's.
    """
    xp = ops_of(cost).xp
    rank = len(source.batch_shape)
    lead = cost.ndim - rank
    kept = {name: dim for name, dim in source.dims.items() if name in plates and name in target.dims and -dim <= rank}
    drop = tuple(lead + rank + dim for dim in range(-rank, 0) if dim not in kept.values())
    summed = xp.sum(cost, axis=drop) if drop else cost
    # What is left is ordered by the source's dimensions; put it in the target's order.
    by_source = sorted(kept, key=lambda name: source.dims[name])
    by_target = sorted(kept, key=lambda name: target.dims[name])
    axes = tuple(range(lead)) + tuple(lead + by_source.index(name) for name in by_target)
    summed = xp.permute_dims(summed, axes)
    shape = [1] * len(target.batch_shape)
    for name in by_target:
        shape[target.dims[name]] = source.batch_shape[source.dims[name]]
    return xp.reshape(summed, cost.shape[:lead] + tuple(shape))
