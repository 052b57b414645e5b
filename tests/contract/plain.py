"""The rejection loop in its plainest form, the same in both backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vi_reparam.backend.ops import Ops

Array = Any


def plain_rejection_loop(
    ops: Ops,
    attempt: Callable[..., tuple[Array, Array]],
    key: Any,
    shape: tuple[int, ...],
    params: tuple[Array, ...],
    most: int,
) -> Array:
    """`Ops.rejection_loop` in its plainest form: every round proposes for all lanes."""
    xp = ops.xp
    key, first = ops.split(key, 2)
    noise, done = attempt(first, shape, *params)

    def of(mask: Array, noise: Array) -> Array:
        return xp.reshape(mask, (*shape, *(1 for _ in noise.shape[len(shape) :])))

    def unfinished(state: Any) -> Array:
        return (state[0] < most) & ~xp.all(state[3])

    def round_(state: Any) -> Any:
        count, key, noise, done = state
        key, fresh_key = ops.split(key, 2)
        fresh, taken = attempt(fresh_key, shape, *params)
        taken = taken & ~done
        return count + 1, key, xp.where(of(taken, noise), fresh, noise), done | taken

    _, _, noise, done = ops.while_loop(unfinished, round_, (1, key, noise, done))
    return xp.where(of(done, noise), noise, float("nan"))
