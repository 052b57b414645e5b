"""A draw of all latents of a guide as one vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vi_reparam.backend.ops import Array, Key, Ops
from vi_reparam.errors import SiteError

Noise = Callable[[Key, tuple[int, ...]], Any]
"""Noise of draws with some leading dimensions, from a key: a tree of arrays."""

SITE = "vr_joint"
"""The auxiliary site of the vector that latents are cut from; `SiteSelection.label` goes before it."""


@dataclass(frozen=True)
class Vector:
    """A draw of the vector, or of one for each element of a plate.

    Attributes:
        value: shape ``[D]``, or ``[*plate, D]``.
        log_q: such that log p - log_q is the log weight, shape ``[]`` or ``[*plate]``.
        score_term: as in `vi_reparam.Draw`.
        frozen: whether log_q leaves out the gradient by the guide's parameters.
    """

    value: Array
    log_q: Array
    score_term: Array | None = None
    frozen: bool = False


def drawer(
    ops: Ops,
    size: int,
    noise: Noise,
    draw: Callable[[Any, Array | None], Vector],
    features: Array | None,
    batch_shape: tuple[int, ...],
) -> Callable[[Key], Vector]:
    """What makes a draw of size D from a key.

    Args:
        noise: of draws with some leading dimensions, drawn before any vmap.
        draw: a `Vector` from the noise of one draw and its row of features, if any.
        features: a row for each element of a plate, each of which has a vector of its own. Shape ``[B, F]``.
        batch_shape: of that plate, B elements in all.
    """
    if features is None:
        return lambda key: draw(noise(key, ()), None)

    def rows(key: Key) -> Vector:
        frozen: list[bool] = []

        def one(own: Any, row: Array) -> tuple[Array, Array]:
            made = draw(own, row)
            frozen.append(made.frozen)
            return made.value, made.log_q

        value, log_q = ops.vmap(one)(noise(key, (features.shape[0],)), features)
        value = ops.xp.reshape(value, (*batch_shape, size))
        return Vector(value, ops.xp.reshape(log_q, batch_shape), frozen=frozen[0])

    return rows


def lost_path(site: str) -> SiteError:
    """What is raised where a value is to be scored that is no draw of the guide itself."""
    return SiteError(
        f"site {site!r}: only a draw of this guide can be scored, together with the path behind it; a value "
        "that was replayed or substituted has lost its path"
    )
