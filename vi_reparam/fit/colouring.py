"""Few products with a matrix of second derivatives in place of one a column, where most of its entries are zero.

Columns that share no row are added up to one direction (Curtis, Powell and Reid 1974); the columns of latents that all
others know of are looked at alone, and give their rows as well, since the matrix is symmetric.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

STEP = 0.1
"""Of the differences that show which entries are zero, in unconstrained units."""

NUM_LOOKED = 2
"""Places where they must be."""

WORTH_IT = 0.7
"""Directions, as a part of all columns, above which all columns are looked at."""

QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
"""Of the numbers of entries a column, above which a column is looked at alone."""


class Colouring(NamedTuple):
    """Directions whose products give all second derivatives.

    Attributes:
        seeds: rows of zeros and ones, each column in one of them, shape ``[C, L]``.
        mask: one where the product of a column's direction is its entry; the others are zero, or follow by symmetry.
            Shape ``[L, L]``.
    """

    seeds: np.ndarray
    mask: np.ndarray


def pattern(slopes: Callable[[np.ndarray], np.ndarray], places: np.ndarray) -> np.ndarray:
    """Which second derivatives are not zero. Shape ``[D, D]``.

    Args:
        slopes: first derivatives at vectors, both of shape ``[N, D]``.
        places: of which the first finite ones are looked at, shape ``[N, D]``.
    """
    size = places.shape[1]
    known, looked = np.eye(size, dtype=bool), 0
    ways = STEP * np.eye(size)
    for place in places:
        found = slopes(np.concatenate([place + ways, place - ways]))
        if not np.isfinite(found).all():
            continue
        known |= found[:size] != found[size:]
        looked += 1
        if looked == NUM_LOOKED:
            return known | known.T
    return np.ones_like(known)


def of_pattern(known: np.ndarray) -> Colouring:
    """The fewest directions that are found, for a symmetric pattern."""
    size = len(known)
    degrees = known.sum(0)
    tried = [_coloured(known, degrees > most) for most in sorted({int(d) for d in np.quantile(degrees, QUANTILES)})]
    alone, own = min(tried, key=lambda found: found[1].max())
    num = int(own.max()) + 1
    if num > WORTH_IT * size:
        return Colouring(np.eye(size), np.ones((size, size)))
    seeds = (own[None] == np.arange(num)[:, None]).astype(float)
    return Colouring(seeds, np.where(alone[:, None], alone[None], known | alone[None]).astype(float))


def _coloured(known: np.ndarray, alone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns that are looked at alone, and the direction of each column."""
    rest = np.flatnonzero(~alone)
    inner = known[np.ix_(rest, rest)].astype(np.float32)
    clash = inner.T @ inner > 0.0
    own = np.full(len(known), -1)
    colours = np.full(len(rest), -1)
    for i in range(len(rest)):
        taken = set(colours[clash[i]].tolist())
        colours[i] = next(colour for colour in range(len(rest)) if colour not in taken)
    own[rest] = colours
    own[alone] = (colours.max() + 1 if len(rest) else 0) + np.arange(int(alone.sum()))
    return alone, own
