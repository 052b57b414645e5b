"""Rejection loops: one proposal for every lane, then only the few that were rejected go on."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vi_reparam.backend.kernel_choice import FastestWay
from vi_reparam.samplers.base import Attempt
from vi_reparam.samplers.gamma import LogGamma
from vi_reparam_numpyro.ops import kernels
from vi_reparam_numpyro.ops.compaction import first_set, take
from vi_reparam_numpyro.ops.noise import CounterStream, threefry_data

Array = Any

WHOLE = 8_192
"""Lanes up to which a round runs on all of them: picking out the rejected would cost as much."""

SHARE = 16
"""One lane in so many has a place in the next round's buffer; where more were rejected, it is filled again."""


BUFFER = 65_536
"""A buffer of so many places goes on as a whole: a second one in it would compile half as long again."""


CHOICE = FastestWay("rejection loops")

PLAIN = "plain loop"

GPU = "cuda"
"""The platform for which a program holds the fastest way."""

SMALLEST = 4_096
"""Lanes below which every way on a GPU takes the time of its launches."""

_MEASURED = 2**18
"""Lanes that are timed."""


def retry(attempt: Attempt, key: Any, shape: tuple[int, ...], params: tuple[Array, ...], most: int) -> Array:
    """Noise of accepted proposals, as `vi_reparam.backend.ops.Ops.rejection_loop` says.

    A lane's noise follows from (key, round, lane), not from its place in a buffer: what other lanes hold does not
    change its draw, nor does the way in which it is made.
    """
    num = math.prod(shape)
    flat = tuple(jnp.reshape(p, (num,)) for p in params)
    way = _way(attempt, key, num)
    if way == "kernel" and not kernels.serves(attempt.sampler, attempt.dtype):
        way = "rounds of all lanes"
    plain, fastest = (functools.partial(_WAYS[name], attempt, most=most) for name in (PLAIN, way))
    # a program for a CPU is made on a machine with a GPU too
    noise = plain(key, flat) if way == PLAIN else lax.platform_dependent(key, flat, default=plain, **{GPU: fastest})
    return jnp.reshape(noise, (*shape, *noise.shape[1:]))


def _way(attempt: Attempt, key: Any, num: int) -> str:
    """The fastest here: timed with the gradient, of gammas; no time is taken where there is no GPU."""
    kind = device_kind()
    if kind is None or num < SMALLEST or threefry_data(key) is None:
        return PLAIN
    made = Attempt(attempt.ops, LogGamma(), jnp.float32)
    return CHOICE.among(kind, {name: functools.partial(_run, way, made) for name, way in _WAYS.items()})


def _run(way: Any, attempt: Attempt) -> Any:
    sampler: Any = attempt.sampler

    def draw(a: Array, key: Any) -> Array:
        noise = way(attempt, key, (lax.stop_gradient(a),), most=sampler.max_rounds)
        auxiliary = sampler.auxiliary(attempt.ops, attempt.ops.aux_key(key), a.shape, a.dtype)
        return sampler.attach(sampler.transform((noise, auxiliary), lax.stop_gradient(a)), a).sum()

    compiled = jax.jit(jax.value_and_grad(draw))
    key, a = jax.random.key(0, impl="threefry2x32"), jnp.linspace(0.1, 5.0, _MEASURED, dtype=jnp.float32)
    return lambda: jax.block_until_ready(compiled(a, key))


def device_kind() -> str | None:
    """The kind of GPU on which arrays are by default; None on anything else."""
    return jax.devices()[0].device_kind if jax.default_backend() == "gpu" else None


def kernel(attempt: Attempt, key: Any, params: tuple[Array, ...], *, most: int) -> Array:
    """`retry` as one kernel, of a threefry key."""
    return kernels.accepted(attempt.sampler, jnp.asarray(threefry_data(key)), params, most)


def whole(attempt: Attempt, key: Any, params: tuple[Array, ...], *, most: int) -> Array:
    """`retry` by rounds of all lanes, of a threefry key: on a GPU they cost less than to pick out the rejected."""
    num = params[0].shape[0]
    rounds = _Rounds(attempt, jnp.asarray(threefry_data(key)), num, most)
    lanes = lax.iota(jnp.int32, num)
    noise, taken = rounds(0, lanes, params)
    noise = jnp.where(_of(taken, noise), noise, jnp.asarray(jnp.nan, noise.dtype))
    return _masked(rounds, 1, lanes, params, noise, ~taken & ~_never(params))


def compacted(attempt: Attempt, key: Any, params: tuple[Array, ...], *, most: int) -> Array:
    """`retry` by rounds of those that are left."""
    num = params[0].shape[0]
    lanes = lax.iota(jnp.int32, num)
    data = threefry_data(key)
    if data is None:  # another generator's key makes the first round, and a threefry key for the few that are left
        first, again = jax.random.split(key)
        data = jax.random.bits(again, (2,), jnp.uint32)
        noise, taken = attempt(first, (num,), *params)
    else:
        noise, taken = _round(attempt, data, 0, lanes, num, params)
    noise = jnp.where(_of(taken, noise), noise, jnp.asarray(jnp.nan, noise.dtype))
    if num:
        noise = _finish(_Rounds(attempt, data, num, most), 1, lanes, params, noise, ~taken & ~_never(params))
    return noise


_WAYS = {PLAIN: compacted, "rounds of all lanes": whole, "kernel": kernel}


def _never(params: tuple[Array, ...]) -> Array:
    """Lanes in which no proposal is accepted."""
    return functools.reduce(operator.or_, map(jnp.isnan, params))


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
