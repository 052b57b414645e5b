"""A scored draw, and the form of the sites it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vi_reparam.backend.host import Reader
from vi_reparam.backend.ops import Array
from vi_reparam.backend.tracer import Record
from vi_reparam.checks import check_memory
from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.sites.wrappers import innermost


class Scored(NamedTuple):
    """One scored draw.

    Attributes:
        latents: the model's latent sites, by name.
        deterministics: its deterministic sites.
        log_likelihood: log density of each observed site, element by element, unscaled.
        log_prior: computes the same of each latent site.
        log_p: log joint density, a scalar.
        log_q: log density of the guide (auxiliary sites included), a scalar.
    """

    latents: dict[str, Array]
    deterministics: dict[str, Array]
    log_likelihood: dict[str, Array]
    log_prior: Callable[[], dict[str, Array]]
    log_p: Array
    log_q: Array


@dataclass(frozen=True)
class Site:
    """The form of a site.

    Attributes:
        shape: its value's shape.
        dtype: its value's dtype, as a name.
        plates: names by dimension, counted from the left: of its plates, and of ``infer={"event_dims": ...}``.
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
    """The sites of a model and its guide.

    Attributes:
        latents: the model's latent sites.
        observed: its observed sites, factors left out.
        deterministics: its deterministic sites.
        plate_sizes: the plates' full sizes.
        scalars: in one run of both, a measure of the memory one draw takes.
        deltas: latents that the guide draws from a Delta: points, unless they are made of what is auxiliary.
    """

    latents: dict[str, Site]
    observed: dict[str, Site]
    deterministics: dict[str, Site]
    plate_sizes: dict[str, int]
    scalars: int
    deltas: tuple[str, ...]

    @property
    def num_latents(self) -> int:
        """Scalars of the latents."""
        return sum(site.size for site in self.latents.values())


def check_count(name: str, value: Any, numbers: int = 0) -> int:
    """A count of draws, at least 1.

    Args:
        numbers: that each of them holds.

    Raises:
        ArgumentError: it is not a positive int, or they would not fit into memory.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ArgumentError(f"{name} is {value!r}; give a positive int")
    check_memory(f"{name}={int(value):,}", int(value) * numbers, "take fewer, with a seed for each part")
    return int(value)


def describe(reader: Reader, records: Mapping[str, Record], drawn: Mapping[str, Record]) -> Sites:
    """The form of a model's sites, run with the guide's latents, and of its guide's (`drawn`), checked.

    Raises:
        SiteError: if the two do not have the same latents, in the same shapes.
    """
    latents = {name: form(r) for name, r in records.items() if r.is_latent}
    draws = {name: r for name, r in drawn.items() if r.is_latent}
    _check_pair(latents, draws)
    both = [*records.values(), *drawn.values()]
    return Sites(
        latents=latents,
        observed={name: form(r) for name, r in records.items() if r.is_data},
        deterministics={name: form(r) for name, r in records.items() if r.kind == "deterministic"},
        plate_sizes={name: r.plates[0].size for name, r in records.items() if r.kind == "plate"},
        scalars=sum(math.prod(np.shape(r.value)) for r in both if r.kind in ("sample", "deterministic")),
        deltas=tuple(n for n in latents if type(innermost(reader, draws[n].distribution)).__name__ == "Delta"),
    )


def _check_pair(latents: Mapping[str, Site], drawn: Mapping[str, Record]) -> None:
    missing = [name for name in latents if name not in drawn]
    if missing:
        raise SiteError(f"the guide does not draw the model's {', '.join(missing)}; add a site of that name to it")
    extra = [name for name, r in drawn.items() if name not in latents and not r.is_auxiliary]
    if extra:
        raise SiteError(f"the guide draws {', '.join(extra)}, not in the model; mark it infer={{'is_auxiliary': True}}")
    for name, site in latents.items():
        given = tuple(np.shape(drawn[name].value))
        if given != site.shape:
            raise SiteError(
                f"site {name!r} has shape {given} in the guide and {site.shape} in the model; make them agree"
            )


def form(record: Record) -> Site:
    """The form of one site of a run."""
    value = record.value if hasattr(record.value, "dtype") else np.asarray(record.value)
    # of a latent what the model wants, to compare with what the guide gave
    shape = tuple(record.distribution.shape() if record.is_latent else value.shape)
    event_dim = record.distribution.event_dim if record.kind == "sample" else 0
    vectorized = sorted((plate for plate in record.plates if plate.dim is not None), key=lambda plate: plate.dim or 0)
    places = [len(shape) - event_dim + (plate.dim or 0) for plate in vectorized]
    fit = all(dim >= 0 and shape[dim] == p.subsample_size for dim, p in zip(places, vectorized, strict=True))
    if record.kind == "deterministic" and not fit:  # it may have event dimensions of its own, which nothing tells
        places = list(range(len(vectorized)))
    found = {
        dim: plate.name
        for dim, plate in zip(places, vectorized, strict=True)
        if 0 <= dim < len(shape) and shape[dim] == plate.subsample_size
    }
    first = len(shape) - event_dim
    found |= dict(zip(range(first, len(shape)), record.event_dims, strict=False))
    return Site(shape=shape, dtype=str(value.dtype).removeprefix("torch."), plates=found)
