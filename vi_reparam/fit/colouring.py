"""Few products with a matrix of second derivatives in place of one a column, and few numbers in its factor.

Columns that share no row are added up to one direction (Curtis, Powell and Reid 1974); the columns of latents that
most others know of are looked at alone. The others are ordered so that those that know of each other are near
(Cuthill and McKee 1969), which makes the matrix an arrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee

from vi_reparam.posterior.parts import by_parts
from vi_reparam.programs.curvature import Curvature

STEPS = (0.1, 1e-3)
"""Of differences that show which entries are zero, in unconstrained units; the second where the first end nowhere."""

NUM_LOOKED, AT_ONCE = 2, 512
"""Places where they must be, and slopes that are looked at together."""

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
"""Of the numbers of entries a column, above which a column is looked at alone."""

BLOCKS = (8, 16, 32)
"""Fewest rows of a block that are tried, where blocks know of each other."""

MOST_APART, MOST_LINKED = 8, 1_024
"""Most rows of a block, where none knows of another, and where they do."""

FEWEST_SHARED, NEARLY_ALL, SAME = 64, 0.8, 1e-6
"""Latents whose pairs have one number in common, part of the pairs that have it, and how near they must be."""

FACTORS, BLOCK = 30, 2_000
"""Numbers of a factorization that take as long as one of a run of the model, and such numbers for a block more."""


class Pattern(NamedTuple):
    """What is known of second derivatives.

    Attributes:
        known: which of them are not zero, beside those of `shared`. Shape ``[D, D]``.
        shared: a vector whose outer product with itself their negative holds everywhere; or zeros. Shape ``[D]``.
    """

    known: np.ndarray
    shared: np.ndarray

    def of(self, places: list[int]) -> Pattern:
        """Of some coordinates."""
        return Pattern(self.known[np.ix_(places, places)], self.shared[places])


def pattern(slopes: Callable[[np.ndarray], np.ndarray], places: np.ndarray) -> Pattern:
    """Which second derivatives are not zero.

    Args:
        slopes: first derivatives at vectors, both of shape ``[N, D]``.
        places: of which the first ones where they are finite are looked at, shape ``[N, D]``.
    """
    size = places.shape[1]
    known, looked, shared = np.eye(size, dtype=bool), np.zeros(size, dtype=int), None
    for step in STEPS:
        ways = np.concatenate([np.zeros((1, size)), step * np.eye(size)])
        for place in places:
            (found,) = by_parts(lambda part: (slopes(part),), place + ways, min(AT_ONCE, len(ways)))
            fine = np.isfinite(found[1:]).all(1) & np.isfinite(found[0]).all()
            precision = (found[0] - found[1:]) / step
            if fine.all():
                before, shared = shared, _shared(precision)
                if before is not None and not np.allclose(before, shared, rtol=SAME):
                    shared = np.zeros(size)  # it moves
                if shared.any():
                    precision[np.abs(precision - np.outer(shared, shared)) < SAME * shared.max() ** 2] = 0.0
            known[fine] |= (precision != 0.0)[fine]
            looked += fine
            if looked.min() >= NUM_LOOKED:
                return Pattern(known | known.T, np.zeros(size) if shared is None else shared)
    known[looked < NUM_LOOKED] = True
    return Pattern(known | known.T, np.zeros(size))


def _shared(precision: np.ndarray) -> np.ndarray:
    """The square root of the number that nearly all pairs of many latents have in common, or zeros."""
    size = len(precision)
    off = precision[(precision > 0.0) & ~np.eye(size, dtype=bool)]
    if len(off) < FEWEST_SHARED**2:
        return np.zeros(size)
    values, counts = np.unique(off.astype(np.float32), return_counts=True)
    most = values[counts.argmax()]
    hit = np.abs(precision - most) < SAME * most
    members = hit.sum(0) > 0.5 * hit.sum(0).max()
    inside = hit[np.ix_(members, members)]
    if members.sum() < FEWEST_SHARED or inside.mean() < NEARLY_ALL:
        return np.zeros(size)
    return members * math.sqrt(float(np.median(precision[hit])))


def of_pattern(pattern: Pattern, scalars: int = 1) -> Curvature:
    """What costs least, of a symmetric pattern.

    Args:
        scalars: numbers in a run of the model.
    """
    known, shared = pattern
    size, degrees = len(known), known.sum(0)
    tried = [full(size)]
    for most in sorted({int(d) for d in np.quantile(degrees, QUANTILES)}):
        alone, rest = np.flatnonzero(degrees > most), np.flatnonzero(degrees <= most)
        tried += _arrows(known, rest, alone) if len(rest) else []
    found = min(tried, key=lambda found: cost_of(found, scalars))
    has_zeros = found.sizes[2] < size and shared.any()
    return found._replace(shared=shared[None]) if has_zeros else found


def cost_of(found: Curvature, scalars: int) -> int:
    """Of a look at all second derivatives and their factor, in numbers of a run of the model."""
    num, size, border = found.sizes
    products, length = found.seeds.shape
    factor = num * size * (2.5 * size**2 + 2.0 * products * size + 2.0 * border * size + border**2) + border**3
    return int(products * max(scalars, length) + factor / FACTORS + BLOCK * num * found.is_linked)


def full(size: int) -> Curvature:
    """Of a matrix without zeros."""
    return Curvature(np.eye(size), np.arange(float(size)), np.zeros((0, 1, 2)), np.zeros((0, size)))


def _arrows(known: np.ndarray, rest: np.ndarray, alone: np.ndarray) -> list[Curvature]:
    """Arrows whose border is given, of the smallest blocks and of one."""
    inner = known[np.ix_(rest, rest)]
    held = csr_array(inner)
    groups = connected_components(held, directed=False)[1]
    if np.bincount(groups).max() <= MOST_APART:
        return [_apart(groups, inner, rest, alone)]
    order = reverse_cuthill_mckee(held, symmetric_mode=True)
    rest, inner = rest[order], inner[np.ix_(order, order)]
    at = np.nonzero(inner)
    width = int(np.abs(at[0] - at[1]).max())
    sizes = {*(max(width, least) for least in BLOCKS if least < len(rest)), len(rest)}
    few = sorted(size for size in sizes if size <= min(len(rest), MOST_LINKED))
    if not few:
        return []
    seeds = _seeds(_coloured(inner), rest, alone, len(known))
    return [_arrow(inner, rest, alone, seeds, size) for size in few]


def _seeds(colours: np.ndarray, rest: np.ndarray, alone: np.ndarray, size: int) -> np.ndarray:
    """Directions: one a colour, and one for each that is looked at alone."""
    num = int(colours.max()) + 1
    seeds = np.zeros((num + len(alone), size))
    seeds[colours, rest] = 1.0
    seeds[num + np.arange(len(alone)), alone] = 1.0
    return seeds


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
    return Curvature(seeds, rows.astype(float), near, np.zeros((0, seeds.shape[1])))


def _apart(groups: np.ndarray, inner: np.ndarray, rest: np.ndarray, alone: np.ndarray) -> Curvature:
    """In blocks that know nothing of each other, a group each."""
    sizes = np.bincount(groups)
    places = np.full((len(sizes), sizes.max()), len(rest))  # of `rest`, its length where there is none
    for group, place in enumerate(np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])):
        places[group, : len(place)] = place
    near = np.pad(inner, (0, 1))[places[:, :, None], places[:, None, :]].astype(float)
    colours, size = np.empty(len(rest), dtype=int), len(rest) + len(alone)
    inside = places < len(rest)
    colours[places[inside]] = np.nonzero(inside)[1]
    seeds = _seeds(colours, rest, alone, size)
    rows = np.append(rest, size)[places].ravel()
    return Curvature(seeds, np.concatenate([rows, alone]).astype(float), near, np.zeros((0, seeds.shape[1])))


def _coloured(inner: np.ndarray) -> np.ndarray:
    """The direction of each column."""
    near = csr_array(inner.astype(np.int32))
    clash = (near.T @ near).tocsr()
    colours = np.full(len(inner), -1)
    for i in range(len(inner)):
        taken = set(colours[clash.indices[clash.indptr[i] : clash.indptr[i + 1]]].tolist())
        colours[i] = next(colour for colour in range(len(inner)) if colour not in taken)
    return colours
