"""Hamiltonian Monte Carlo of many chains at once, with one step size for all.

Leapfrog steps over trajectories of random length; the step size by dual averaging of the mean acceptance (Hoffman and
Gelman 2014). Between two trajectories a chain may take an independent proposal, by Metropolis and Hastings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from vi_reparam.backend.ops import Array, Ops

State = dict[str, Array]

LENGTH = 0.5 * math.pi
"""Of a trajectory, in standard deviations, on average: a quarter of a period of the standard normal."""

MOST_STEPS = 64
TARGET = 0.8
"""Acceptance that the step size is adapted to."""

LARGEST_MATRIX = 100
"""Coordinates up to which scales are a matrix."""

GAMMA, DELAY, DECAY = 0.05, 10.0, 0.75
"""Of dual averaging."""


class Chains(NamedTuple):
    """What the chains draw from; all functions are of rows, one a chain.

    Attributes:
        log_p: log densities, shape ``[C]``, of vectors of shape ``[C, D]``.
        slope: its gradients, shape ``[C, D]``.
        log_ratio: log p less the log density of the independent proposals; None for no such proposals.
    """

    log_p: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    log_ratio: Callable[[Array], Array] | None


class Noise(NamedTuple):
    """Of some iterations, the leading axis of all.

    Attributes:
        momentum: standard normal, shape ``[T, C, D]``.
        uniform: shape ``[T, C, 2]``, of the two acceptances; `length`: shape ``[T]``, of the trajectories.
        proposals: independent ones, shape ``[T, C, D]``; of none, shape ``[T, 0]``.
    """

    momentum: Array
    uniform: Array
    length: Array
    proposals: Array


def begin(ops: Ops, at: Array) -> State:
    """The state at these vectors, shape ``[C, D]``, before the step size is known.

    Its `scale`, of standard deviations (``[D]``) or a triangular matrix (``[D, D]``), may be replaced between two runs.
    """
    xp = ops.xp
    zero = xp.zeros_like(at[0, 0])
    size = at.shape[1]
    scale = xp.eye(size, dtype=at.dtype) if size <= LARGEST_MATRIX else xp.ones_like(at[0])
    return {"at": at, "scale": scale, **fresh(ops, zero - 1.0)}


def fresh(ops: Ops, log_step: Array) -> State:
    """The adaptation at its beginning, from this step size."""
    zero = ops.xp.zeros_like(log_step)
    return {
        "log_step": log_step,
        "anchor": log_step + math.log(10.0),
        "mean_step": log_step,
        "lack": zero,
        "count": zero,
    }


def run(ops: Ops, chains: Chains, state: State, noise: Noise, adapt: Array) -> tuple[State, dict[str, Array]]:
    """As many iterations as the noise is for.

    Args:
        adapt: whether to adapt the step size; else it is the mean one.

    Returns:
        The state, and for each iteration `at` (``[T, C, D]``), `acceptance` of its trajectories, and `taken`, the part
        of the chains that took the independent proposal.
    """

    def iterate(state: State, own: Noise) -> tuple[State, dict[str, Array]]:
        at, acceptance = _trajectory(ops, chains, state, own, adapt)
        at, taken = _propose(ops, chains, at, own)
        return {**_adapted(ops, state, acceptance, adapt), "at": at}, {
            "at": at,
            "acceptance": acceptance,
            "taken": taken,
        }

    return ops.scan(iterate, state, noise)


def _trajectory(ops: Ops, chains: Chains, state: State, own: Noise, adapt: Array) -> tuple[Array, Array]:
    xp = ops.xp
    step = xp.exp(xp.where(adapt, state["log_step"], state["mean_step"]))
    number = xp.clip(xp.ceil(2.0 * LENGTH * own.length / step), 1.0, float(MOST_STEPS))
    start, scale = state["at"], state["scale"]
    kinetic = 0.5 * xp.sum(own.momentum**2, axis=1)

    def leap(path: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        count, at, momentum, slope = path
        momentum = momentum + 0.5 * step * slope
        at = at + step * (momentum * scale[None] if scale.ndim == 1 else momentum @ scale.T)
        slope = rise(at)
        return count + 1.0, at, momentum + 0.5 * step * slope, slope

    def rise(at: Array) -> Array:
        slope = chains.slope(at)
        return slope * scale[None] if scale.ndim == 1 else slope @ scale

    begun = (xp.zeros_like(number), start, own.momentum, rise(start))
    _, end, momentum, _ = ops.while_loop(lambda path: path[0] < number, leap, begun)
    gain = chains.log_p(end) - chains.log_p(start) + kinetic - 0.5 * xp.sum(momentum**2, axis=1)
    gain = xp.where(xp.isfinite(gain), gain, xp.full_like(gain, -math.inf))
    accepted = xp.log(own.uniform[:, 0]) < gain
    odds = xp.exp(xp.where(gain < 0.0, gain, xp.zeros_like(gain)))
    return xp.where(accepted[:, None], end, start), xp.mean(odds)


def _propose(ops: Ops, chains: Chains, at: Array, own: Noise) -> tuple[Array, Array]:
    xp = ops.xp
    if chains.log_ratio is None:
        return at, xp.zeros_like(at[0, 0])
    gain = chains.log_ratio(own.proposals) - chains.log_ratio(at)
    taken = xp.isfinite(gain) & (xp.log(own.uniform[:, 1]) < gain)
    return xp.where(taken[:, None], own.proposals, at), xp.mean(xp.astype(taken, at.dtype))


def _adapted(ops: Ops, state: State, acceptance: Array, adapt: Array) -> State:
    """The state after a step of dual averaging."""
    xp = ops.xp
    count = state["count"] + 1.0
    lack = state["lack"] + (TARGET - acceptance - state["lack"]) / (count + DELAY)
    log_step = state["anchor"] - xp.sqrt(count) / GAMMA * lack
    part = count**-DECAY
    after = {
        "count": count,
        "lack": lack,
        "log_step": log_step,
        "mean_step": part * log_step + (1.0 - part) * state["mean_step"],
    }
    return {**state, **{name: xp.where(adapt, value, state[name]) for name, value in after.items()}}


def noise_of(ops: Any, key: Any, turns: int, shape: tuple[int, int], dtype: Any, *, proposals: Any = None) -> Noise:
    """Noise of so many iterations of chains of this shape; `proposals`, if any, are given."""
    first, second, third = ops.split(key, 3)
    if proposals is None:
        proposals = ops.xp.zeros((turns, 0), dtype=dtype)
    uniform = ops.uniform(second, (turns, shape[0], 2), dtype)
    return Noise(ops.normal(first, (turns, *shape), dtype), uniform, ops.uniform(third, (turns,), dtype), proposals)
