"""What all particles leave behind, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.objectives.plates import PlateDims
from vi_reparam.objectives.run import Place
from vi_reparam.sites.draw import Sampled


@dataclasses.dataclass(frozen=True)
class Particles:
    """What all particles leave behind; arrays have a leading dimension of particles.

    Attributes:
        costs: by place.
        scores: the score terms, by site.
        own: for optimal baselines, by site.
        weak: the weak derivatives' terms, by site.
        values: the estimated draws, by site.
        plate_dims: the plates of every cost and draw.
        draws: of one particle, for what all have in common.
        state: the values at mutable sites after the step.
        averages: the decaying averages that the guide holds itself, by site.
        params: of every particle run, by side and name.
    """

    costs: dict[Place, Array]
    scores: dict[str, Array]
    own: dict[str, Any]
    weak: dict[str, Array]
    values: dict[str, Array]
    plate_dims: dict[Place, PlateDims]
    draws: dict[str, Sampled]
    state: dict[str, Any]
    averages: dict[str, Any]
    params: list[dict[Place, Any]]


def total(ops: Ops, terms: Sequence[Array]) -> Array:
    """The sum of each particle's terms. Shape ``[particles]``."""
    return sum(term if term.ndim == 1 else ops.xp.sum(term, axis=tuple(range(1, term.ndim))) for term in terms)


def stacked(ops: Ops, particles: list[Any]) -> Any:
    """The particles' results, each array with a leading dimension of particles.

    What only some of the particles have, because the program branched, counts as zero in the others.
    """
    if isinstance(particles[0], tuple):
        return tuple(stacked(ops, list(parts)) for parts in zip(*particles, strict=True))
    if not isinstance(particles[0], dict):
        return ops.xp.stack(particles)
    names = {name: part for held in particles for name, part in held.items()}
    absent = {n: p for n, p in names.items() if any(n not in held for held in particles)}
    absent = {n: ops.tree_map(ops.xp.zeros_like, part) for n, part in absent.items()}
    return {name: stacked(ops, [held.get(name, absent.get(name)) for held in particles]) for name in names}
