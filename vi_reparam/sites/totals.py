"""Log densities of whole runs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.host import Host, Reader
from vi_reparam.backend.ops import Array
from vi_reparam.backend.registry import ops_of
from vi_reparam.backend.tracer import Record
from vi_reparam.families.base import broadcast_shapes
from vi_reparam.numerics.special import LOG_2PI
from vi_reparam.sites.density import precise_log_prob
from vi_reparam.sites.wrappers import innermost


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


def masked_as(host: Host, guide: Mapping[str, Record], model: Mapping[str, Record]) -> dict[str, Record]:
    """A guide's sites: where the model gives a latent no density, it has no entropy either.

    A guide that draws all latents as one vector has a density of the masked parts too. There it is divided by a
    standard normal in unconstrained coordinates, as if this were their density in the model: it integrates to one, and
    so changes neither the evidence nor what is known of the others.
    """
    found = dict(guide)
    joint = any(record.is_auxiliary for record in guide.values())
    for name, record in model.items():
        if not record.is_latent or name not in guide or (mask := mask_of(host, record)) is None:
            continue
        own = guide[name]
        if joint and type(innermost(host, own.distribution)).__name__ == "Delta":
            term = functools.partial(_divided, host, own, record, mask)
            found[name] = replace(own, log_prob=term)
        else:
            found[name] = replace(own, mask=mask)
    return found


def _divided(host: Host, own: Record, record: Record, mask: Any) -> Array:
    kept = own.log_prob()
    return where_masked(kept, mask, -stand_in(host, record, own.value))


def where_masked(term: Array, mask: Any, other: Array) -> Array:
    """A site's term where the mask holds, and the other elsewhere, both of its batch shape."""
    xp = ops_of(term).xp
    mask = mask if hasattr(mask, "shape") else xp.asarray(mask)
    shape = broadcast_shapes(broadcast_shapes(tuple(term.shape), tuple(other.shape)), tuple(mask.shape))
    return xp.where(xp.broadcast_to(mask, shape), xp.broadcast_to(term, shape), xp.broadcast_to(other, shape))


def stand_in(host: Host, record: Record, value: Array) -> Array:
    """Log density of a standard normal, in unconstrained coordinates, of a latent's value; of its batch shape."""
    xp, batch = ops_of(value).xp, len(record.distribution.batch_shape)
    flat = host.biject_to(host.support_of(record.distribution)).inv(value)
    terms = -0.5 * flat * flat - 0.5 * LOG_2PI
    events = tuple(range(batch, terms.ndim))
    return xp.sum(terms, axis=events) if events else terms


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
