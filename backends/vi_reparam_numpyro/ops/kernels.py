"""Rejection loops as one Pallas kernel, for GPUs: each block of lanes runs its own loop in registers.

It makes the noise that the plain version makes (`retry.py`): the same words of the same counters, keyed by lane and
round, through the same sampler. Which of them runs is a matter of speed alone; `retry.py` finds it by measurement. On
a CPU it never runs, but in Pallas's interpreter, for the tests.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from vi_reparam.samplers.base import RejectionSampler
from vi_reparam_numpyro.ops.noise import normal_of, uniform_of

Array = Any

NAME = "vi_reparam_rejection"
"""Of the kernel, in a compiled program."""

_BLOCK = 256
"""Lanes a program: it goes on until the last of them has its draw."""

_TURNS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _threefry(key: tuple[Array, Array], x: Array, y: Array) -> tuple[Array, Array]:
    """Threefry-2x32 of 20 rounds (Salmon et al. 2011), in operations that a kernel may hold."""
    words = (*key, key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = x + words[0], y + words[1]
    for i in range(5):
        for turn in _TURNS[i % 2]:
            x = x + y
            y = ((y << turn) | (y >> (32 - turn))) ^ x
        x, y = x + words[(i + 1) % 3], y + (words[(i + 2) % 3] + jnp.uint32(i + 1))
    return x, y


def serves(sampler: RejectionSampler, dtype: Any) -> bool:
    """Whether the kernel can hold a sampler: one of the library's own, of one word of noise, in float32."""
    own = type(sampler).__module__.startswith("vi_reparam.samplers.")
    return own and dtype == jnp.float32 and type(sampler).raw_noise is RejectionSampler.raw_noise


def _kernel(words: Any, *refs: Any, sampler: RejectionSampler, most: int) -> None:
    key, out = (words[0], words[1]), refs[-1]
    lane = (pl.program_id(0) * _BLOCK + lax.iota(jnp.int32, _BLOCK)).astype(jnp.uint32)
    params = tuple(ref[...] for ref in refs[:-1])
    raw = {"normal": normal_of, "uniform": uniform_of}[sampler.noise]

    def pending(state: Any) -> Array:
        count, _, left = state
        return (count < most) & (jnp.max(left) > 0)

    def again(state: Any) -> Any:
        count, noise, left = state
        word, coin = _threefry(key, jnp.full_like(lane, 1) * count.astype(jnp.uint32), lane)
        fresh = sampler.propose(raw(word), *params)
        taken = (left > 0) & (jnp.log(uniform_of(coin)) < sampler.log_accept(fresh, *params))
        return count + 1, jnp.where(taken, fresh, noise), jnp.where(taken, 0, left)

    never = functools.reduce(jnp.logical_or, [p != p for p in params])  # no proposal is accepted there
    start = jnp.int32(0), jnp.full_like(params[0], jnp.nan), jnp.where(never, 0, 1)
    out[...] = lax.while_loop(pending, again, start)[1]


def accepted(
    sampler: RejectionSampler, words: Array, params: tuple[Array, ...], most: int, *, interpret: bool = False
) -> Array:
    """Noise of accepted proposals, in float32; a lane that no proposal serves is NaN.

    Args:
        sampler: one that `serves`.
        words: the two of a threefry key.
        params: of one shape, ``(lanes,)``.
        most: proposals a lane may make.
        interpret: run in Pallas's interpreter, for tests.
    """
    lanes = math.prod(params[0].shape)
    if not lanes:
        return params[0]
    programs = -(-lanes // _BLOCK)
    padded = [jnp.pad(p, (0, programs * _BLOCK - lanes), mode="edge") for p in params]
    spec = pl.BlockSpec((_BLOCK,), lambda i: (i,))
    found = pl.pallas_call(
        functools.partial(_kernel, sampler=sampler, most=most),
        out_shape=jax.ShapeDtypeStruct(padded[0].shape, padded[0].dtype),
        grid=(programs,),
        in_specs=[pl.BlockSpec((2,), lambda i: (0,)), *(spec for _ in padded)],
        out_specs=spec,
        interpret=interpret,
        compiler_params=None if interpret else _through_triton(),
        name=NAME,
    )(words, *padded)
    return found[:lanes]


def _through_triton() -> Any:
    """Of the compilers that Pallas has for a GPU, the one that holds a loop of any length.

    JAX 0.11 calls it deprecated. Where a JAX has it no more, this raises and the rounds of `retry.whole` serve.
    """
    from jax.experimental.pallas import triton  # here: not every version of JAX has it under this name

    return triton.CompilerParams(num_warps=_BLOCK // 32)
