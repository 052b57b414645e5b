"""What stands around a distribution: masks, expansions, reinterpreted dimensions, transforms, estimators."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.host import Reader
from vi_reparam.backend.ops import Array
from vi_reparam.backend.registry import ops_of


def innermost(reader: Reader, distribution: Any) -> Any:
    """The distribution inside all wrappers."""
    while (wrapping := reader.unwrap(distribution)) is not None:
        distribution = wrapping.inner
    return distribution


def sum_rightmost(x: Array, num: int) -> Array:
    """The sum over the last `num` dimensions."""
    if num == 0:
        return x
    return (x if num == 1 else x.reshape((*x.shape[:-num], -1))).sum(-1)


def masked(mask: Any, term: Array) -> Array:
    """The term where the mask holds, zero elsewhere; the mask may be a Python bool."""
    xp = ops_of(term).xp
    if isinstance(mask, bool):
        return term if mask else xp.zeros_like(term)
    return xp.where(mask, term, xp.zeros((), dtype=term.dtype))
