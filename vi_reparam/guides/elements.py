"""Which coordinates of a vector belong to each element of a plate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from vi_reparam.errors import SiteError


class Part(Protocol):
    """Where a site lies in the vector, as a backend has it."""

    @property
    def site(self) -> Any: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def offset(self) -> int: ...


def elements_of(parts: Iterable[Part], plate: str) -> tuple[tuple[int, ...], ...]:
    """The coordinates of each element of a plate.

    Args:
        parts: of the vector; of unconstrained shapes, whose batch dimensions are the site's.
        plate: its name.

    Raises:
        SiteError: if a site is not in it.
    """
    rows = []
    for part in parts:
        site = part.site
        dim = next((own.dim for own in site.plates if own.name == plate), None)
        if dim is None:
            raise SiteError(
                f"Blocks({plate!r}): site {site.name!r} is not in that plate, but in {[p.name for p in site.plates]}; "
                "name one that is around every site of the guide, or take another base"
            )
        axis = len(site.shape) - site.event_dim + dim
        places = part.offset + np.arange(np.prod(part.shape, dtype=int)).reshape(part.shape)
        rows.append(np.moveaxis(places, axis, 0).reshape(part.shape[axis], -1))
    return tuple(tuple(row) for row in np.concatenate(rows, axis=1).tolist())
