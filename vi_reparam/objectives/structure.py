"""What is the same in every run of a program: which costs depend on which draw, whether its plates are true."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vi_reparam.errors import GradientError
from vi_reparam.objectives.run import Params, Place, Run, Runner
from vi_reparam.sites.draw import Sampled
from vi_reparam.sites.recorder import Recorder

Array = Any
Key = Any

CHECK_SEED = 20170613


@dataclasses.dataclass(frozen=True)
class Structure:
    """What is the same in every run of one program.

    Attributes:
        places: of all costs.
        dependents: for each draw that is not pathwise, the costs that depend on it.
        plates: those that were checked, by which costs stay apart.
        in_lanes: whether many particles can run as one.
    """

    places: frozenset[Place]
    dependents: dict[str, frozenset[Place]]
    plates: frozenset[str]
    in_lanes: bool


def form_of(ops: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Equal for arguments of equal shapes and equal other values."""

    def leaves(tree: Any) -> tuple[Any, ...]:
        return tuple(_form(leaf) for leaf in ops.tree_leaves(tree))

    return tuple(map(leaves, args)), tuple((name, leaves(kwargs[name])) for name in sorted(kwargs))


def _form(leaf: Any) -> Any:
    shape = getattr(leaf, "shape", None)
    if shape is not None:
        return tuple(shape)
    try:
        hash(leaf)
    except TypeError:
        return id(leaf)
    return type(leaf), leaf


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
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
        return True
    return False


def check_plates(runner: Runner, base: Run) -> frozenset[str]:
    """Refuse a plate whose elements are not independent given what is outside it.

    Moving the draws of one half of a plate's elements to those of another run must not move the
    costs of the other half: Rao-Blackwellization by plates would drop that part of the gradient
    and say nothing. The halves are taken by each binary digit of the index, both ways, so that
    every pair of elements is parted once.

    Args:
        runner: at concrete parameters.
        base: a run of the program, of which the structure alone is looked at.

    Returns:
        The plates that could not be checked, because a cost was not finite.

    Raises:
        GradientError: naming the plate, the latent and the cost.
    """
    ops, scored, params = runner.backend.ops, base.scored, runner.params

    def costs(number: int, params: Params | None, held: dict[str, Array], moved: dict[str, Array]) -> Any:
        key = ops.fold_in(ops.key(CHECK_SEED), number)
        result = runner.at(params)(key, recorder=Recorder(held=held, moved=moved))
        return result.costs, {name: result.draws[name].draw.value for name in scored}

    costs = ops.compiled(costs)  # one program serves every plate and half
    values = {name: sampled.draw.value for name, sampled in scored.items()}
    still = {name: ops.asarray(np.zeros(tuple(value.shape), bool)) for name, value in values.items()}
    zeros = {name: ops.xp.zeros(tuple(value.shape), dtype=value.dtype) for name, value in values.items()}
    before, own = costs(1, params, zeros, still)
    _, others = costs(2, params, zeros, still)
    held = {name: _elsewhere(scored[name], own[name], others[name]) for name in scored}
    doubtful: set[str] = set()
    for plate in sorted(base.plates_of_scored()):
        dims = {n: base.plate_dims["guide", n] for n in scored if plate in base.plate_dims["guide", n].names}
        sizes = {where.batch_shape[where.dims[plate]] for where in dims.values()}
        if len(sizes) != 1 or (size := sizes.pop()) < 2:
            continue
        for half in _halves(size):
            moved = dict(still)
            for name, where in dims.items():
                shape = tuple(values[name].shape)
                axis = where.dims[plate] - (len(shape) - len(where.batch_shape))
                moved[name] = ops.asarray(_along(half, axis, shape))
            after, _ = costs(1, params, held, moved)
            change = {place: (ops.to_numpy(before[place]), ops.to_numpy(after[place])) for place in before}
            if not _still(base, change, plate, list(dims), ~half):
                doubtful.add(plate)
                break
    return frozenset(doubtful)


def _halves(size: int) -> Iterator[np.ndarray]:
    """Halves of the indices, so that of any two elements each is once in a half without the other."""
    index = np.arange(size)
    for digit in range((size - 1).bit_length()):
        half = (index >> digit) % 2 == 1
        yield half
        yield ~half


def _along(half: np.ndarray, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of this shape that is true where an axis is in the half."""
    ranks = [1] * len(shape)
    ranks[axis] = len(half)
    return np.broadcast_to(half.reshape(ranks), shape).copy()


def _elsewhere(sampled: Sampled, value: Array, other: Array) -> Array:
    """Where a draw moves: surely elsewhere if it is discrete and its family is known, else to another run's draw."""
    if sampled.family.name == "bernoulli":
        return 1 - value
    return value + 1 if sampled.family.name == "poisson" else other


def _still(
    base: Run, change: Mapping[Place, tuple[np.ndarray, np.ndarray]], plate: str, latents: list[str], still: np.ndarray
) -> bool:
    """Whether the costs of the elements held still could be seen not to move.

    Raises:
        GradientError: if one moves.
    """
    certain = True
    for place, (before, after) in change.items():
        where = base.plate_dims[place]
        if plate not in where.names:
            continue
        with np.errstate(invalid="ignore"):
            rest = np.compress(still, np.abs(after - before), axis=where.dims[plate])
        if not np.isfinite(rest).all():
            warnings.warn(
                f"plate {plate!r} could not be checked: the {place[0]} cost at {place[1]!r} is not finite; score terms "
                "take the sum over its elements, which is right but noisier",
                stacklevel=2,
            )
            certain = False
            continue
        # the order of a sum may change with its terms: rounding is no dependence
        largest = np.abs(before[np.isfinite(before)]).max(initial=0.0)
        if rest.max(initial=0.0) > 1e3 * np.finfo(before.dtype).eps * (1.0 + largest):
            raise GradientError(
                f"plate {plate!r} is false: the {place[0]} cost at {place[1]!r} of one of its elements depends on the "
                f"draw of {' or '.join(map(repr, latents))} of another, so its score terms would miss part of their "
                "cost; take that site out of the plate, or mark the dimension with .to_event() instead of a plate"
            )
    return certain
