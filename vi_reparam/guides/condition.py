"""What the local latents of a plate are conditioned on: a row of features for each of its elements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vi_reparam.backend.data import bound_arguments
from vi_reparam.backend.ops import Array, Ops
from vi_reparam.backend.tracer import PlateInfo
from vi_reparam.errors import ArgumentError, SiteError

Condition = str | Callable[..., Array]


FEATURE_LIMIT = 3.0
"""Features saturate here, in standard deviations: the rare values of a nearly constant feature lie far out."""


def saturated(ops: Ops, rows: Array) -> Array:
    """Standardized features, none of them far from the others."""
    return rows / ops.xp.sqrt(1.0 + rows * rows * FEATURE_LIMIT**-2)


def check_condition(what: str, condition: Any) -> None:
    """Refuse what can name no features.

    Raises:
        ArgumentError: naming the option.
    """
    if condition is not None and not isinstance(condition, str) and not callable(condition):
        raise ArgumentError(
            f"{what}(condition={condition!r}): expected the name of one of the model's arguments, or a function of "
            "them, that gives an array with a row for each element of the plate"
        )


def features_of(condition: Condition, model: Any, args: Any, kwargs: Any) -> Array:
    """The array that a condition speaks of, as the user gave it.

    Raises:
        ArgumentError: if the model is called without it.
    """
    if not isinstance(condition, str):
        return condition(*args, **kwargs)
    given = bound_arguments(model, args, kwargs)
    if given.get(condition) is None:
        raise ArgumentError(
            f"condition={condition!r}: the model was called without that argument; its arguments here are {list(given)}"
        )
    return given[condition]


def plate_of(plates: Sequence[Iterable[PlateInfo]], num_rows: int) -> PlateInfo:
    """The plate whose elements the rows of features belong to, of those around each site of the guide.

    Raises:
        SiteError: unless exactly one plate of that size is around all of the sites.
    """
    shared = {p.name: p for p in plates[0]} if plates else {}
    for own in plates[1:]:
        names = {p.name for p in own}
        shared = {name: p for name, p in shared.items() if name in names}
    found = [p for p in shared.values() if p.size == num_rows]
    if len(found) != 1:
        sizes = {name: p.size for name, p in shared.items()}
        raise SiteError(
            f"condition has {num_rows} rows, and the plates around all of this guide's sites are {sizes}: expected "
            "exactly one of that size; leave the other sites to another guide by vr.Sites({...})"
        )
    return found[0]
