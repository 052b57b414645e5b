"""Rejection loops: one proposal for every lane, then only the few that were rejected go on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vi_reparam_numpyro.compaction import first_set

Array = Any
Attempt = Callable[..., tuple[Array, Array]]

WHOLE = 4_096
"""Lanes up to which a round runs on all of them: picking out the rejected would cost as much."""

SHARE = 16
"""One lane in so many has a place in the next round's buffer; where more were rejected, it is filled again."""


def retry(attempt: Attempt, key: Any, shape: tuple[int, ...], params: tuple[Array, ...], most: int) -> Array:
    """Noise of accepted proposals, as `vi_reparam.ops.Ops.retry` says.

    The first round draws for all lanes at once. A lane's later noise follows from (key, round,
    lane), not from its place in a buffer: what other lanes hold does not change its draw.
    """
    num = math.prod(shape)
    flat = tuple(jnp.reshape(p, (num,)) for p in params)
    first, again = jax.random.split(key)
    noise, taken = attempt(first, (num,), *flat)
    nan = jnp.asarray(jnp.nan, noise.dtype)
    if num:
        noise = _finish(
            attempt,
            _counted(again),
            1,
            most,
            jnp.arange(num, dtype=jnp.int32),
            flat,
            jnp.where(_of(taken, noise), noise, nan),
            ~taken,
        )
    return jnp.reshape(noise, (*shape, *noise.shape[1:]))


def _counted(key: Any) -> Any:
    """A threefry key: other generators' streams under vmap do not follow from each lane's own key."""
    if jax.random.key_impl(key) == "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")


def _of(mask: Array, noise: Array) -> Array:
    return jnp.reshape(mask, (*mask.shape, *(1 for _ in noise.shape[1:])))


def _round(attempt: Attempt, key: Any, count: Any, lanes: Array, params: tuple[Array, ...]) -> tuple[Array, Array]:
    key = jax.random.fold_in(key, count)
    return jax.vmap(lambda lane, *p: attempt(jax.random.fold_in(key, lane), (), *p))(lanes, *params)


def _finish(
    attempt: Attempt,
    key: Any,
    start: int,
    most: int,
    lanes: Array,
    params: tuple[Array, ...],
    noise: Array,
    left: Array,
) -> Array:
    """Rounds `start` to `most` for the lanes that are left."""
    num = lanes.shape[0]
    if num <= WHOLE or start >= most:
        return _masked(attempt, key, start, most, lanes, params, noise, left)
    places = -(-num // SHARE)

    def pending(state: Any) -> Array:
        return state[1] < num

    def refill(state: Any) -> Any:
        noise, begin = state
        at = first_set(left & (jnp.arange(num, dtype=jnp.int32) >= begin), places)
        here = jnp.minimum(at, num - 1)
        used = at < num
        some = tuple(p[here] for p in params)
        fresh, taken = _round(attempt, key, start, lanes[here], some)
        fresh = jnp.where(_of(taken, fresh), fresh, jnp.asarray(jnp.nan, fresh.dtype))
        fresh = _finish(attempt, key, start + 1, most, lanes[here], some, fresh, used & ~taken)
        return noise.at[at].set(fresh, mode="drop"), at[-1] + 1

    begin = jnp.where(jnp.any(left), 0, num).astype(jnp.int32)
    noise, _ = lax.while_loop(pending, refill, (noise, begin))
    return noise


def _masked(
    attempt: Attempt,
    key: Any,
    start: int,
    most: int,
    lanes: Array,
    params: tuple[Array, ...],
    noise: Array,
    left: Array,
) -> Array:
    def pending(state: Any) -> Array:
        return (state[0] < most) & jnp.any(state[2])

    def again(state: Any) -> Any:
        count, noise, left = state
        fresh, taken = _round(attempt, key, count, lanes, params)
        taken = taken & left
        return count + 1, jnp.where(_of(taken, noise), fresh, noise), left & ~taken

    _, noise, _ = lax.while_loop(pending, again, (start, noise, left))
    return noise
