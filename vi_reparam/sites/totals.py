"""Log densities of a program's sites, added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vi_reparam.backend.ops import Ops
from vi_reparam.backend.tracer import Record

Array = Any


def scaled(ops: Ops, record: Record, term: Array) -> Array:
    """A site's term, broadcast to its batch shape, masked by its handlers and scaled by its plates."""
    xp = ops.xp
    term = xp.broadcast_to(term, xp.broadcast_shapes(tuple(term.shape), tuple(record.distribution.batch_shape)))
    if record.mask is not None and record.mask is not True:
        term = xp.where(ops.asarray(record.mask), term, xp.zeros_like(term))
    return term if record.scale is None else record.scale * term


def total_log_prob(ops: Ops, records: Mapping[str, Record] | Iterable[Record]) -> Array:
    """The sum of the log densities of all random variables and factors. A scalar."""
    found = records.values() if isinstance(records, Mapping) else records
    total = ops.xp.zeros((), dtype=ops.float_dtype())
    for record in found:
        if record.kind == "sample":
            total = total + ops.xp.sum(scaled(ops, record, ops.asarray(record.log_prob())))
    return total
