"""What is the same in every run of a program: which costs depend on which draw, whether its plates are true."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from vi_reparam.backend.data import leaf_form
from vi_reparam.backend.engine import DrawInfo
from vi_reparam.backend.ops import Args, Array, Key, Kwargs
from vi_reparam.errors import GradientError
from vi_reparam.objectives.run import Params, Place, Run, Runner
from vi_reparam.programs.rows import NOT_AT_ONCE
from vi_reparam.sites.draw import Sampled
from vi_reparam.sites.recorder import Recorder

Costs = Mapping[Place, Array]

CHECK_SEED = 20170613

REDRAWS = 8
"""Other runs from which a plate's check takes its moves: a step at the median is missed once in 2^8 cases."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """What is the same in every run of one program.

    Attributes:
        places: of all costs.
        dependents: for each draw that is not pathwise, the costs that depend on it.
        plates: those that were checked, by which costs stay apart.
        in_lanes: whether many particles can run as one.
        draws: of the guide, estimated, by site.
    """

    places: frozenset[Place]
    dependents: dict[str, frozenset[Place]]
    plates: frozenset[str]
    in_lanes: bool
    draws: dict[str, DrawInfo]


def form_of(ops: Any, args: Args, kwargs: Kwargs) -> Any:
    """Equal for arguments of equal shapes and equal other values."""

    def leaves(tree: Any) -> tuple[Any, ...]:
        return tuple(_form(leaf) for leaf in ops.tree_leaves(tree))

    return tuple(map(leaves, args)), tuple((name, leaves(kwargs[name])) for name in sorted(kwargs))


def _form(leaf: Any) -> Any:
    return tuple(leaf.shape) if getattr(leaf, "dtype", None) is not None else leaf_form(leaf)


def dependents(runner: Runner, key: Key, scored: Mapping[str, Sampled]) -> dict[str, frozenset[Place]]:
    """The costs that depend on each of the draws in `scored`."""
    xp = runner.backend.ops.xp
    values = {name: sampled.draw.value for name, sampled in scored.items()}
    shifts = {name: xp.zeros(tuple(value.shape), dtype=value.dtype) for name, value in values.items()}

    def costs(shifts: Mapping[str, Array]) -> dict[Place, Array]:
        return runner(key, recorder=Recorder(shifts=shifts)).costs

    found = runner.backend.tracer.depends(costs, shifts)
    return {name: frozenset(place for place, names in found.items() if name in names) for name in scored}


def reads_values(runner: Runner, key: Key) -> bool:
    """Whether many runs cannot be one: the program reads a drawn value in Python, or uses what cannot run in lanes."""
    try:
        runner.backend.ops.many(lambda own_key: tuple(runner(own_key).costs.values()), key, 2)
    except NOT_AT_ONCE:
        return True
    return False


def check_plates(runner: Runner, base: Run) -> frozenset[str]:
    """Refuse a plate whose elements are not independent given what is outside it.

    Moving the draws of one half of a plate's elements must not move the costs of the other half:
    Rao-Blackwellization by plates would drop that part of the gradient and say nothing. They move
    to the lowest and to the highest of their draws in other runs, so that a cost that changes in a
    step is seen. The halves are taken by each binary digit of the index, both ways, so that every
    pair of elements is parted once.

    Args:
        runner: at concrete parameters.
        base: a run of the program, of which the structure alone is looked at.

    Returns:
        The plates that could not be checked, because a cost was not finite.

    Raises:
        GradientError: naming the plate, the latent and the cost.
    """
    ops, scored, params = runner.backend.ops, base.scored, runner.params
    xp = ops.xp

    def costs(number: int, params: Params | None, held: dict[str, Array], moved: dict[str, Array]) -> Any:
        key = ops.fold_in(ops.key(CHECK_SEED), number)
        result = runner.at(params)(key, recorder=Recorder(held=held, moved=moved))
        return result.costs, {name: result.draws[name].draw.value for name in scored}

    costs = ops.compiled(costs)  # one program serves every plate and half
    values = {name: sampled.draw.value for name, sampled in scored.items()}
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    unmoved = {name: xp.zeros(shape, dtype=xp.bool) for name, shape in shapes.items()}
    zeros = {name: xp.zeros(shapes[name], dtype=value.dtype) for name, value in values.items()}
    before, own = costs(1, params, zeros, unmoved)
    others = [costs(2 + number, params, zeros, unmoved)[1] for number in range(REDRAWS)]
    where = {name: base.plate_dims["guide", name] for name in scored}
    ends = {n: _elsewhere(xp, scored[n], own[n], [o[n] for o in others], len(where[n].batch_shape)) for n in scored}
    doubtful: set[str] = set()
    for plate in sorted(base.plates_of_scored()):
        inside = [name for name in scored if plate in where[name].names]
        sizes = {where[name].batch_shape[where[name].dims[plate]] for name in inside}
        if len(sizes) != 1 or (size := sizes.pop()) < 2:
            continue
        num_moves = 2 if any(ends[name][0] is not ends[name][1] for name in inside) else 1
        for half, move in itertools.product(_halves(xp, size), range(num_moves)):
            moved = dict(unmoved)
            for name in inside:
                axis = where[name].dims[plate] - (len(shapes[name]) - len(where[name].batch_shape))
                moved[name] = _along(xp, half, axis, shapes[name])
            after, _ = costs(1, params, {name: ends[name][move] for name in scored}, moved)
            if not _still(ops, base, before, after, plate, inside, ~half):
                doubtful.add(plate)
                break
    return frozenset(doubtful)


def _halves(xp: Any, size: int) -> Iterator[Array]:
    """Halves of the indices, so that of any two elements each is once in a half without the other."""
    index = xp.arange(size)
    for digit in range((size - 1).bit_length()):
        half = (index >> digit) % 2 == 1
        yield half
        yield ~half


def _along(xp: Any, mask: Array, axis: int, shape: tuple[int, ...]) -> Array:
    """A mask of this shape that is that of an axis everywhere."""
    ranks = [1] * len(shape)
    ranks[axis] = shape[axis]
    return xp.broadcast_to(xp.reshape(mask, tuple(ranks)), shape)


def _elsewhere(xp: Any, sampled: Sampled, value: Array, others: list[Array], batch_rank: int) -> tuple[Array, Array]:
    """The two places that a draw moves to.

    Surely elsewhere if it is discrete and its family is known. Else the lowest and the highest of the other runs'
    draws, a vector by its first entry.
    """
    if sampled.family.name == "bernoulli":
        return (1 - value,) * 2
    if sampled.family.name == "poisson":
        return (value + 1,) * 2
    rank = len(value.shape)
    first = (slice(None),) * batch_rank + (slice(1),) * (rank - batch_rank)
    lowest = highest = others[0]
    for other in others[1:]:
        lowest = xp.where(other[first] < lowest[first], other, lowest)
        highest = xp.where(other[first] > highest[first], other, highest)
    return lowest, highest


def _still(ops: Any, base: Run, before: Costs, after: Costs, plate: str, latents: list[str], still: Array) -> bool:
    """Whether the costs of the elements held still could be seen not to move.

    Raises:
        GradientError: if one moves.
    """
    xp, certain = ops.xp, True
    for place, cost in before.items():
        where = base.plate_dims[place]
        if plate not in where.names:
            continue
        shape = tuple(cost.shape)
        rest = _along(xp, still, where.dims[plate], shape)
        change = xp.abs(after[place] - cost)
        if not bool(xp.all(xp.isfinite(change) | ~rest)):
            warnings.warn(
                f"plate {plate!r} could not be checked: the {place[0]} cost at {place[1]!r} is not finite; score terms "
                "take the sum over its elements, which is right but noisier",
                stacklevel=2,
            )
            certain = False
            continue
        # the order of an element's own sum may change: rounding is no dependence
        rounding = 1e3 * xp.finfo(cost.dtype).eps * (1.0 + xp.abs(cost))
        if bool(xp.any(rest & (change > rounding))):
            raise GradientError(
                f"plate {plate!r} is false: the {place[0]} cost at {place[1]!r} of one of its elements depends on the "
                f"draw of {' or '.join(map(repr, latents))} of another, so its score terms would miss part of their "
                "cost; take that site out of the plate, or mark the dimension with .to_event() instead of a plate"
            )
    return certain
