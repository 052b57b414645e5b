"""Weak derivatives: the difference of the costs at two other values of a draw, in place of a score term."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.ops import Array, Key
from vi_reparam.objectives import score
from vi_reparam.objectives.run import Run, Runner
from vi_reparam.objectives.structure import Structure
from vi_reparam.sites.recorder import Recorder


def weak_derivative(runner: Runner, key: Key, result: Run, name: str, structure: Structure) -> Array:
    """A draw's branches: each one's weight times the downstream cost at its value, summed.

    Args:
        key: of the run that gave `result`, so that all other noise is the same.
        name: of the draw's site.
    """
    ops = runner.backend.ops
    xp = ops.xp
    sampled, places = result.draws[name], frozenset(result.costs)
    target, value = result.plate_dims["guide", name], sampled.draw.value
    dependent = structure.dependents.get(name, places) & places
    # Lanes that share a cost outside a plate, as a sum over it, may not move at once.
    apart = frozenset(p for p in structure.plates if all(p in result.plate_dims[place].names for place in dependent))
    shape = tuple(sampled.draw.branches[0].weight.shape)
    groups, sizes = score.separate_lanes(shape, target, apart)
    numbers = xp.reshape(xp.arange(groups), (groups, *(1 for _ in shape)))
    masks = xp.broadcast_to(xp.reshape(xp.arange(groups), (1, *sizes)) == numbers, (groups, *shape))
    total: Any = 0.0
    for branch in sampled.draw.branches:

        def moved(mask: Array, branch: Any = branch) -> Array:
            """The downstream cost with these lanes at the branch's value; constant, of the weights' rank."""
            inside = xp.reshape(mask, tuple(mask.shape) + (1,) * (value.ndim - mask.ndim))
            other = ops.stop_gradient(xp.where(inside, branch.value, value))
            there = runner(key, recorder=Recorder(held={name: other}), frozen=True)
            costs = {place: cost[None] for place, cost in there.costs.items()}
            cost = score.downstream(ops, costs, there.plate_dims, dependent, target, structure.plates)[0]
            return xp.reshape(cost, tuple(cost.shape) + (1,) * (mask.ndim - cost.ndim))

        if groups == 1:
            found = moved(masks[0])[None]
        else:  # a compiler sees one of them
            found = ops.scan(lambda _, mask, moved=moved: ((), moved(mask)), (), masks)[1]
        total = total + xp.sum(branch.weight[None] * masks * ops.stop_gradient(found))
    return total
