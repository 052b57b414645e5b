"""A site's term of the log joint, as its plates and handlers let it count."""

from __future__ import annotations

from typing import Any

import numpy as np

from vi_reparam.backend.registry import ops_of
from vi_reparam.backend.tracer import Record
from vi_reparam.sites.wrappers import masked

Array = Any


def scaled(record: Record, term: Array) -> Array:
    """A site's term, broadcast to its batch shape, masked by handlers and scaled by plates.

    Args:
        record: of the site.
        term: its log density or entropy, of a shape that broadcasts to the batch shape.
    """
    given = tuple(term.shape)
    shape = np.broadcast_shapes(given, tuple(record.distribution.batch_shape))
    if shape != given:
        term = ops_of(term).xp.broadcast_to(term, shape)
    if record.mask is not None:
        term = masked(record.mask, term)
    if record.scale is None or (isinstance(record.scale, int | float) and record.scale == 1):
        return term
    return record.scale * term
