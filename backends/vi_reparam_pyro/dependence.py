"""What each cost depends on, and whether the plates are what they say."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from pyro.ops.provenance import get_provenance, track_provenance

from vi_reparam.errors import GradientError
from vi_reparam.objectives.plates import plates_of
from vi_reparam.sites.draw import Sampled
from vi_reparam.sites.recorder import Recorder as Listener
from vi_reparam_pyro.lanes.vmap import vectorized
from vi_reparam_pyro.ops.ops import mix
from vi_reparam_pyro.run import Place, Run, Runner

Array = Any

CHECK_KEY = 20170613


def dependents(runner: Runner, key: int, scored: frozenset[str]) -> dict[str, frozenset[Place]]:
    """The costs that depend on each of the draws in `scored`.

    Two marks are followed, and a cost that bears either depends: Pyro's provenance, which
    discrete values carry too, and the autograd graph, which a custom function does not lose.
    """
    with torch.no_grad():
        values = {name: sampled.draw.value for name, sampled in runner(key).draws.items() if name in scored}
    tags = {n: torch.zeros_like(v, requires_grad=v.is_floating_point()) for n, v in values.items()}
    shifts = {name: track_provenance(tag, frozenset({name})) for name, tag in tags.items()}
    with torch.enable_grad():
        found = runner(key, listener=Listener(shifts=shifts))
    reached = {place: _reached(cost, tags) for place, cost in found.costs.items()}
    tagged = {place: get_provenance(cost) for place, cost in found.costs.items()}
    return {name: frozenset(p for p in found.costs if name in tagged[p] or name in reached[p]) for name in scored}


def _reached(cost: Array, tags: dict[str, Array]) -> set[str]:
    """The tags in the autograd graph of a cost."""
    leaves = {id(tag): name for name, tag in tags.items()}
    todo, seen, found = [cost.grad_fn], set(), set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in leaves:
            found.add(leaves[id(leaf)])
        todo += [parent for parent, _ in node.next_functions]
    return found


def reads_values(runner: Runner, key: int) -> bool:
    """Whether the program cannot run in lanes: it reads a drawn value in Python, or uses what vmap lacks."""
    try:
        vectorized(lambda: tuple(runner(key).costs.values()), 2, key)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
        return True
    return False


def check_plates(runner: Runner) -> frozenset[str]:
    """Refuse a plate whose elements are not independent given what is outside it.

    Moving the draws of one half of a plate's elements to those of another run must not move the
    costs of the other half: Rao-Blackwellization by plates would drop that part of the gradient
    and say nothing. The halves are taken by each binary digit of the index, both ways, so that
    every pair of elements is parted once.

    Returns:
        The plates that could not be checked, because a cost was not finite.

    Raises:
        GradientError: naming the plate, the latent and the cost.
    """
    key = mix(CHECK_KEY)
    doubtful: set[str] = set()
    with torch.no_grad():
        base = runner(key)
        other = runner(mix(key)).draws
        scored = {name: s for name, s in base.draws.items() if not s.draw.is_pathwise}
        plates = {p for name in scored for p in plates_of(base.frames["guide", name])}
        for plate in sorted(plates):
            inside = [n for n in scored if plate in plates_of(base.frames["guide", n])]
            sizes = {base.frames["guide", n].batch_shape[base.frames["guide", n].dims[plate]] for n in inside}
            if len(sizes) != 1 or (size := sizes.pop()) < 2:
                continue
            held = {name: _elsewhere(scored[name], other[name].draw.value) for name in inside}
            # the same values again: what the guide's own draws cost must be compared by one formula
            same = runner(key, listener=Listener(held={n: scored[n].draw.value for n in inside}))
            for half in _halves(size, next(iter(base.costs.values())).device):
                moved = {name: _lane_mask(base, name, plate, half) for name in inside}
                after = runner(key, listener=Listener(held=held, moved=moved))
                if not _independent(same, after, plate, inside, ~half):
                    doubtful.add(plate)
                    break
    return frozenset(doubtful)


def _halves(size: int, device: Any) -> Iterator[Array]:
    """Halves of the indices, so that of any two elements each is once in a half without the other."""
    index = torch.arange(size, device=device)
    for digit in range((size - 1).bit_length()):
        half = (index >> digit) % 2 == 1
        yield half
        yield ~half


def _lane_mask(base: Run, name: str, plate: str, half: Array) -> Array:
    value, frames = base.draws[name].draw.value, base.frames["guide", name]
    shape = [1] * value.ndim
    shape[frames.dims[plate] - (value.ndim - len(frames.batch_shape))] = len(half)
    return half.reshape(shape)


def _elsewhere(sampled: Sampled, other: Array) -> Array:
    """Where a draw moves: surely elsewhere if it is discrete and its family is known, else to another run's draw."""
    value = sampled.draw.value
    if sampled.family.name == "bernoulli":
        return 1.0 - value
    return value + 1.0 if sampled.family.name == "poisson" else other


def _independent(before: Run, after: Run, plate: str, latents: list[str], still: Array) -> bool:
    """Whether the costs of the elements held still could be seen not to move; raises if one moves."""
    certain = True
    for place, cost in before.costs.items():
        frames = before.frames[place]
        if plate not in plates_of(frames):
            continue
        axis = cost.ndim + frames.dims[plate]
        rest = (after.costs[place] - cost).abs().index_select(axis, still.nonzero()[:, 0])
        if not bool(torch.isfinite(rest).all()):
            warnings.warn(
                f"plate {plate!r} could not be checked: the {place[0]} cost at {place[1]!r} is not finite; score terms "
                "take the sum over its elements, which is right but noisier",
                stacklevel=2,
            )
            certain = False
            continue
        # the order of a sum may change with its terms: rounding is no dependence
        allowed = 1e3 * torch.finfo(cost.dtype).eps * (1.0 + cost.abs().max())
        if rest.numel() and bool(rest.max() > allowed):
            raise GradientError(
                f"plate {plate!r} is false: the {place[0]} cost at {place[1]!r} of one of its elements depends on the "
                f"draw of {' or '.join(map(repr, latents))} of another, so its score terms would miss part of their "
                "cost; take that site out of the plate, or mark the dimension with .to_event() instead of a plate"
            )
    return certain
