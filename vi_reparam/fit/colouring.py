"""Few products with a matrix of second derivatives in place of one a column, and few numbers in its factor.

Columns that share no row are added up to one direction (Curtis, Powell and Reid 1974); the columns of latents that
most others know of are looked at alone. The others are ordered so that those that know of each other are near
(Cuthill and McKee 1969), which makes the matrix an arrow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from vi_reparam.posterior.parts import by_parts
from vi_reparam.programs.curvature import Curvature

STEPS = (0.1, 1e-3)
"""Of differences that show which entries are zero, in unconstrained units; the second where the first end nowhere."""

NUM_LOOKED, AT_ONCE = 2, 512
"""Places where they must be, and slopes that are looked at together."""

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
"""Of the numbers of entries a column, above which a column is looked at alone."""

BLOCKS = (8, 16, 32)
"""Fewest rows of a block that are tried."""

FACTORS, BLOCK = 30, 2_000
"""Numbers of a factorization that take as long as one of a run of the model, and such numbers for a block more."""


def pattern(slopes: Callable[[np.ndarray], np.ndarray], places: np.ndarray) -> np.ndarray:
    """Which second derivatives are not zero. Shape ``[D, D]``.

    Args:
        slopes: first derivatives at vectors, both of shape ``[N, D]``.
        places: of which the first ones where they are finite are looked at, shape ``[N, D]``.
    """
    size = places.shape[1]
    known, looked = np.eye(size, dtype=bool), np.zeros(size, dtype=int)
    for step in STEPS:
        ways = step * np.eye(size)
        for place in places:
            rows = np.concatenate([place + ways, place - ways])
            (found,) = by_parts(lambda part: (slopes(part),), rows, min(AT_ONCE, len(rows)))
            fine = np.isfinite(found[:size]).all(1) & np.isfinite(found[size:]).all(1)
            known[fine] |= (found[:size] != found[size:])[fine]
            looked += fine
            if looked.min() >= NUM_LOOKED:
                return known | known.T
    known[looked < NUM_LOOKED] = True
    return known | known.T


def of_pattern(known: np.ndarray, scalars: int = 1) -> Curvature:
    """What costs least, of a symmetric pattern.

    Args:
        scalars: numbers in a run of the model.
    """
    size, degrees = len(known), known.sum(0)
    tried = [_full(size)]
    for most in sorted({int(d) for d in np.quantile(degrees, QUANTILES)}):
        alone = np.flatnonzero(degrees > most)
        tried += _arrows(known, np.flatnonzero(degrees <= most), alone)
    return min(tried, key=lambda found: cost_of(found, scalars))


def cost_of(found: Curvature, scalars: int) -> int:
    """Of a look at all second derivatives and their factor, in numbers of a run of the model."""
    num, size, border = found.sizes
    products, length = found.seeds.shape
    factor = num * size * (2.5 * size**2 + 2.0 * products * size + 2.0 * border * size + border**2) + border**3
    return int(products * max(scalars, length) + factor / FACTORS + BLOCK * num)


def _full(size: int) -> Curvature:
    return Curvature(np.eye(size), np.arange(float(size)), np.zeros((0, 1, 2)))


def _arrows(known: np.ndarray, rest: np.ndarray, alone: np.ndarray) -> list[Curvature]:
    """Arrows whose border is given, of the smallest blocks and of one."""
    inner = known[np.ix_(rest, rest)]
    order = reverse_cuthill_mckee(csr_array(inner), symmetric_mode=True)
    rest, inner = rest[order], inner[np.ix_(order, order)]
    colours = _coloured(inner)
    num = int(colours.max()) + 1
    seeds = np.zeros((num + len(alone), len(known)))
    seeds[colours, rest] = 1.0
    seeds[num + np.arange(len(alone)), alone] = 1.0
    at = np.nonzero(inner)
    width = int(np.abs(at[0] - at[1]).max())
    return [
        _arrow(inner, rest, alone, seeds, size)
        for size in sorted({*(max(width, least) for least in BLOCKS if least < len(rest)), len(rest)})
        if size <= len(rest)
    ]


def _arrow(inner: np.ndarray, rest: np.ndarray, alone: np.ndarray, seeds: np.ndarray, size: int) -> Curvature:
    """In blocks of `size` rows."""
    num = -(-len(rest) // size)
    lacking = num * size - len(rest)
    rows = np.concatenate([rest, np.full(lacking, seeds.shape[1]), alone])
    near = np.zeros((num, size, 2 * size))
    for k in range(num):
        own = inner[k * size : (k + 1) * size]
        first = max(k - 1, 0) * size
        block = own[:, first : (k + 1) * size]
        start = 0 if k else size
        near[k, : len(own), start : start + block.shape[1]] = block
    return Curvature(seeds, rows.astype(float), near)


def _coloured(inner: np.ndarray) -> np.ndarray:
    """The direction of each column."""
    near = inner.astype(np.float32)
    clash = near.T @ near > 0.0
    colours = np.full(len(inner), -1)
    for i in range(len(inner)):
        taken = set(colours[clash[i]].tolist())
        colours[i] = next(colour for colour in range(len(inner)) if colour not in taken)
    return colours
