"""Log densities of whole runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.host import Reader
from vi_reparam.backend.ops import Array
from vi_reparam.backend.registry import ops_of
from vi_reparam.backend.tracer import Record
from vi_reparam.families.base import broadcast_shapes
from vi_reparam.sites.density import precise_log_prob


def masked(record: Record, term: Array) -> Array:
    """A site's term, broadcast to its batch shape and masked by its handlers."""
    xp = ops_of(term).xp
    shape = broadcast_shapes(tuple(term.shape), tuple(record.distribution.batch_shape))
    if record.mask is not None:
        mask = record.mask if hasattr(record.mask, "shape") else xp.asarray(record.mask)
        shape = broadcast_shapes(shape, tuple(mask.shape))
        zero = xp.zeros((), dtype=term.dtype)
        term = xp.where(xp.broadcast_to(mask, shape), xp.broadcast_to(term, shape), zero)
    return xp.broadcast_to(term, shape)


def mask_of(reader: Reader, record: Record) -> Any:
    """Where handlers and the distribution itself let a site's log density count; None for everywhere."""
    mask, inner = record.mask, record.distribution
    while (wrapping := reader.unwrap(inner)) is not None and wrapping.kind in ("masked", "expanded"):
        if wrapping.kind == "masked":
            mask = wrapping.detail if mask is None else mask & wrapping.detail
        inner = wrapping.inner
    return mask


def masked_as(reader: Reader, guide: Mapping[str, Record], model: Mapping[str, Record]) -> dict[str, Record]:
    """A guide's sites: where the model gives a latent no density, it has no entropy either."""
    found = dict(guide)
    for name, record in model.items():
        if record.is_latent and name in guide and (mask := mask_of(reader, record)) is not None:
            found[name] = replace(guide[name], mask=mask)
    return found


def scaled(record: Record, term: Array) -> Array:
    """A site's term, broadcast to its batch shape, masked by its handlers and scaled by its plates."""
    term = masked(record, term)
    plain = record.scale is None or (isinstance(record.scale, int | float) and record.scale == 1)
    return term if plain else record.scale * term


def total_log_prob(
    backend: Backend, records: Mapping[str, Record], guide_records: Mapping[str, Record] | None = None
) -> Array:
    """Sum of the log densities of a run, factors, masks and scales included: a scalar, in nats.

    Args:
        records: of the guide or the model.
        guide_records: of the guide, where `records` are the model's under its draws: these remember their precise
            logarithms, which a draw in single precision has lost.
    """
    ops = backend.ops
    total = ops.xp.zeros((), dtype=ops.float_dtype())
    for name, record in records.items():
        if record.kind == "sample":
            total = total + ops.xp.sum(scaled(record, _log_prob(backend, record, (guide_records or {}).get(name))))
    return total


def _log_prob(backend: Backend, record: Record, guide_record: Record | None) -> Array:
    drawn = None
    if guide_record is not None and record.is_latent and hasattr(guide_record.distribution, "estimator"):
        drawn = guide_record.distribution.drawn(guide_record.value)
    if drawn is None:
        term = record.log_prob()
    else:
        term = precise_log_prob(backend.host, record.distribution, record.value, drawn.family, drawn.draw.logs)
    return term if hasattr(term, "dtype") else backend.ops.asarray(term)
