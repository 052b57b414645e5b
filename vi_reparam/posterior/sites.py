"""A scored draw, and the form of the sites it holds."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from vi_reparam.errors import ArgumentError

Array = Any


class Scored(NamedTuple):
    """One scored draw.

    Attributes:
        latents: the model's latent sites, by name.
        deterministics: its deterministic sites.
        log_likelihood: log density of each observed site, element by element, unscaled.
        log_p: log joint density, a scalar.
        log_q: log density of the guide (auxiliary sites included), a scalar.
    """

    latents: dict[str, Array]
    deterministics: dict[str, Array]
    log_likelihood: dict[str, Array]
    log_p: Array
    log_q: Array


@dataclass(frozen=True)
class Site:
    """The form of a site.

    Attributes:
        shape: its value's shape.
        dtype: its value's dtype, as a name.
        plates: its plates' names by dimension, counted from the left.
    """

    shape: tuple[int, ...]
    dtype: str
    plates: dict[int, str]

    @property
    def size(self) -> int:
        """Scalars in its value."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Sites:
    """What the traces of a model and its guide hold.

    Attributes:
        latents: the model's latent sites.
        observed: its observed sites, factors left out.
        deterministics: its deterministic sites.
        plate_sizes: the plates' full sizes.
        scalars: scalars in both traces, a measure of the memory one draw takes.
        is_point: whether the guide is a point estimate: deltas, and nothing auxiliary under them.
    """

    latents: dict[str, Site]
    observed: dict[str, Site]
    deterministics: dict[str, Site]
    plate_sizes: dict[str, int]
    scalars: int
    is_point: bool


def check_count(name: str, value: Any) -> int:
    """A count of draws, at least 1.

    Raises:
        ArgumentError: it is not a positive int.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ArgumentError(f"{name} is {value!r}; give a positive int")
    return int(value)


def bound_arguments(model: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    """A call's arguments by the names of the model's signature, numbered where it has none."""
    try:
        return dict(inspect.signature(model).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return {**{f"arg_{i}": arg for i, arg in enumerate(args)}, **kwargs}
