"""Which coordinates of a vector belong to each element of a plate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vi_reparam.errors import SiteError

if TYPE_CHECKING:
    from vi_reparam.programs.layout import Part


def elements_of(parts: Iterable[Part], plate: str) -> tuple[tuple[int, ...], ...]:
    """The coordinates of each element of a plate.

    Args:
        parts: of the vector; of unconstrained shapes, whose batch dimensions are the site's.
        plate: its name.

    Raises:
        SiteError: if a site is not in it.
    """
    rows: list[list[int]] = []
    for part in parts:
        site = part.site
        dim = next((own.dim for own in site.plates if own.name == plate), None)
        if dim is None:
            raise SiteError(
                f"Blocks({plate!r}): site {site.name!r} is not in that plate, but in {[p.name for p in site.plates]}; "
                "name one that is around every site of the guide, or take another base"
            )
        axis = len(site.shape) - site.event_dim + dim
        outer, num, inner = math.prod(part.shape[:axis]), part.shape[axis], math.prod(part.shape[axis + 1 :])
        rows = rows or [[] for _ in range(num)]
        for i, row in enumerate(rows):
            row.extend(part.offset + (o * num + i) * inner + k for o in range(outer) for k in range(inner))
    return tuple(tuple(row) for row in rows)
