"""Which lanes are left, as a short list: what makes a second round cost less than the first."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

Array = Any

_WORD = 32


def first_set(flags: Array, most: int) -> Array:
    """Indices of the first `most` flags that are set, in order; the number of flags where there are fewer.

    As ``jnp.nonzero(flags, size=most, fill_value=len(flags))`` at a fraction of its cost: the flags
    become bits of words, words are found by bisection in the running count, bits by counting.

    Args:
        flags: booleans, shape ``(n,)``.
        most: static length of the result.
    """
    (num,) = flags.shape
    rows = -(-num // _WORD)
    bits = jnp.pad(flags, (0, rows * _WORD - num)).reshape(rows, _WORD).astype(jnp.uint32)
    words = jnp.sum(bits << lax.iota(jnp.uint32, _WORD)[None], axis=1, dtype=jnp.uint32)
    counts = lax.population_count(words).astype(jnp.int32)
    ends = _running_sum(counts)
    slot = lax.iota(jnp.int32, most)
    row = jnp.minimum(_count_up_to(ends, slot), rows - 1)
    rank = slot - take(ends - counts, row)
    prefixes = jnp.asarray([(2 << place) - 1 for place in range(_WORD)], jnp.uint32)
    below = lax.population_count(take(words, row)[:, None] & prefixes[None]).astype(jnp.int32)
    place = row * _WORD + jnp.sum(below <= rank[:, None], axis=1, dtype=jnp.int32)
    return lax.optimization_barrier(jnp.where(slot < ends[-1], place, num))  # or each of its users computes it anew


def _running_sum(x: Array) -> Array:
    """As ``jnp.cumsum``, by doubling in a loop: it runs as fast and is less to compile."""
    (num,) = x.shape
    place = lax.iota(jnp.int32, num)

    def double(k: Any, total: Array) -> Array:
        back = jnp.int32(1) << k.astype(jnp.int32)
        return total + jnp.where(place >= back, jnp.roll(total, back), 0)

    return lax.fori_loop(0, (num - 1).bit_length(), double, x)


def _count_up_to(ends: Array, slot: Array) -> Array:
    """How many of the increasing `ends` are at most `slot`."""
    (num,) = ends.shape
    top = jnp.int32(1 << (num.bit_length() - 1))

    def step(k: Any, low: Array) -> Array:
        tried = low + (top >> k.astype(jnp.int32))
        return jnp.where((tried <= num) & (take(ends, jnp.minimum(tried, num) - 1) <= slot), tried, low)

    return lax.fori_loop(0, num.bit_length(), step, 0 * slot + 0 * ends[0])  # varies as `ends` does under shard_map


def take(x: Array, at: Array) -> Array:
    """``x[at]`` of indices that are in bounds, as a compiler is told."""
    return x.at[at].get(mode="promise_in_bounds")
