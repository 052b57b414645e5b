"""Modes that say the same: each other's copy by the order of some elements, or by signs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.backend.data import Data

if TYPE_CHECKING:
    from vi_reparam.programs.searcher import Place

SAME_MASS = 0.5
"""Nats, beside the errors, between the masses of copies: a search ends near a mode, not at it."""

CLOSE = 0.3
"""Standard deviations between values that are the same, and from which on a sign can be told."""


def copies(guide: Any, data: Data, modes: Sequence[Place]) -> dict[str, list[str]]:
    """Sites by which modes are copies of the best one: ``order`` of elements, or ``sign``; none where none is a copy.

    Args:
        guide: a `JointGuide` of the model, which knows how its latents are laid out.
    """
    ops = guide.backend.ops
    layout = guide.layout(*data.call)
    centers = [np.asarray(ops.to_numpy(mode.frame.center), np.float64) for mode in modes]
    spreads = [np.sqrt((np.asarray(ops.to_numpy(mode.frame.root), np.float64) ** 2).sum(1)) for mode in modes]
    simplexes = {part.site.name for part in layout.parts if part.site.kind == "simplex"}
    values = [
        {n: np.asarray(ops.to_numpy(x), np.float64).ravel() for n, (x, _) in layout.unpack(ops.asarray(c)).items()}
        if simplexes
        else {}
        for c in centers
    ]
    found: dict[str, list[str]] = {}
    for center, spread, value, mode in list(zip(centers, spreads, values, modes, strict=True))[1:]:
        if abs(mode.bound - modes[0].bound) > SAME_MASS + 2.0 * (mode.error + modes[0].error):
            continue
        ways = {}
        for part in layout.parts:
            own = slice(part.offset, part.offset + part.size)
            name, wide = part.site.name, np.maximum(spread[own], spreads[0][own])
            pair = (centers[0][own], center[own])
            if name in simplexes:
                pair, wide = (values[0][name], value[name]), np.full(len(value[name]), 0.25)
            ways[name] = _way(*pair, wide)
        if None in ways.values() or set(ways.values()) == {""}:
            continue
        for name, way in ways.items():
            if way and name not in found.setdefault(way, []):
                found[way].append(name)
    return found


def _way(one: np.ndarray, other: np.ndarray, wide: np.ndarray) -> str | None:
    """How one place becomes another: "" as it is, by "sign" or by "order"; None where it does not."""
    if (np.abs(one - other) < CLOSE * wide).all():
        return ""
    if len(one) > 1 and (np.abs(np.sort(one) - np.sort(other)) < CLOSE * wide.max()).all():
        return "order"
    turned = np.abs(one + other) < CLOSE * wide
    return "sign" if (turned | (np.abs(one - other) < CLOSE * wide)).all() else None


def advice(found: dict[str, Sequence[str]]) -> str:
    """What to do about them; empty where there are none."""
    told = []
    if found.get("order"):
        names = ", ".join(map(repr, found["order"]))[:80]
        told.append(
            f"modes differ by the order of the elements of {names} alone (label switching), and means over all orders "
            "say little: order them in the model, or use posterior.relabel(plate)"
        )
    if found.get("sign"):
        names = ", ".join(map(repr, found["sign"]))[:80]
        told.append(
            f"modes differ by the sign of {names} alone, and means over both say little: fix a sign in the model"
        )
    return "; ".join(told)[:280]
