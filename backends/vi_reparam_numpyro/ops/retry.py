"""Rejection loops: one proposal for every lane, then only the few that were rejected go on."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vi_reparam_numpyro.ops.compaction import first_set, take
from vi_reparam_numpyro.ops.noise import CounterStream, threefry_data

Array = Any
Attempt = Callable[..., tuple[Array, Array]]

WHOLE = 8_192
"""Lanes up to which a round runs on all of them: picking out the rejected would cost as much."""

SHARE = 16
"""One lane in so many has a place in the next round's buffer; where more were rejected, it is filled again."""


BUFFER = 65_536
"""A buffer of so many places goes on as a whole: a second one in it would compile half as long again."""


def retry(attempt: Attempt, key: Any, shape: tuple[int, ...], params: tuple[Array, ...], most: int) -> Array:
    """Noise of accepted proposals, as `vi_reparam.backend.ops.Ops.rejection_loop` says.

    A lane's noise follows from (key, round, lane), not from its place in a buffer: what other
    lanes hold does not change its draw.
    """
    num = math.prod(shape)
    flat = tuple(jnp.reshape(p, (num,)) for p in params)
    lanes = lax.iota(jnp.int32, num)
    data = threefry_data(key)
    if data is None:  # another generator's key makes the first round, and a threefry key for the few that are left
        first, again = jax.random.split(key)
        data = jax.random.bits(again, (2,), jnp.uint32)
        noise, taken = attempt(first, (num,), *flat)
    else:
        noise, taken = _round(attempt, data, 0, lanes, num, flat)
    noise = jnp.where(_of(taken, noise), noise, jnp.asarray(jnp.nan, noise.dtype))
    if num:
        never = functools.reduce(operator.or_, map(jnp.isnan, flat))  # no proposal is accepted there
        noise = _finish(_Rounds(attempt, data, num, most), 1, lanes, flat, noise, ~taken & ~never)
    return jnp.reshape(noise, (*shape, *noise.shape[1:]))


class _Rounds(NamedTuple):
    attempt: Attempt
    data: Array
    num: int
    most: int

    def __call__(self, count: Any, lanes: Array, params: tuple[Array, ...]) -> tuple[Array, Array]:
        return _round(self.attempt, self.data, count, lanes, self.num, params)


def _round(
    attempt: Attempt, data: Array, count: Any, lanes: Array, num: int, params: tuple[Array, ...]
) -> tuple[Array, Array]:
    return jax.vmap(lambda lane, *p: attempt(CounterStream(data, count, lane, num), (), *p))(lanes, *params)


def _of(mask: Array, noise: Array) -> Array:
    return jnp.reshape(mask, (*mask.shape, *(1 for _ in noise.shape[1:])))


def _finish(rounds: _Rounds, start: int, lanes: Array, params: tuple[Array, ...], noise: Array, left: Array) -> Array:
    """Rounds `start` and later for the lanes that are left."""
    size = lanes.shape[0]
    if size <= WHOLE or start >= rounds.most:
        return _masked(rounds, start, lanes, params, noise, left)
    places = -(-size // SHARE)

    def pending(state: Any) -> Array:
        return state[1] < size

    def refill(state: Any) -> Any:
        noise, begin = state
        at = first_set(left & (lax.iota(jnp.int32, size) >= begin), places)
        here = jnp.minimum(at, size - 1)
        lane, held, some = take(lanes, here), take(noise, here), tuple(take(p, here) for p in params)
        if places <= BUFFER:
            fresh = _masked(rounds, start, lane, some, held, at < size)
        else:
            fresh, taken = rounds(start, lane, some)
            fresh = jnp.where(_of(taken, fresh), fresh, held)
            fresh = _finish(rounds, start + 1, lane, some, fresh, (at < size) & ~taken)
        return noise.at[at].set(fresh, mode="drop", indices_are_sorted=True), at[-1] + 1

    noise, _ = lax.while_loop(pending, refill, (noise, 0 * left[0].astype(jnp.int32)))  # under shard_map as `left`
    return noise


def _masked(rounds: _Rounds, start: int, lanes: Array, params: tuple[Array, ...], noise: Array, left: Array) -> Array:
    def pending(state: Any) -> Array:
        return (state[0] < rounds.most) & jnp.any(state[2])

    def again(state: Any) -> Any:
        count, noise, left = state
        fresh, taken = rounds(count, lanes, params)
        taken = taken & left
        return count + 1, jnp.where(_of(taken, noise), fresh, noise), left & ~taken

    _, noise, _ = lax.while_loop(pending, again, (start, noise, left))
    return noise
