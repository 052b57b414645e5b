"""Gamma draws as one Pallas kernel, for GPUs: each lane runs its own loop in registers.

It makes the numbers that the plain version makes (`retry.py`): the same words of the same
counters, keyed by lane and round, through the same sampler. Which of the two runs is a matter of
speed alone, and is measured on the GPU that is there (`chosen`). On a CPU it never runs, but in
Pallas's interpreter, for the tests.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from vi_reparam.backend.kernel_choice import KernelTiming
from vi_reparam.backend.ops import Ops
from vi_reparam.samplers.base import RejectionSampler, accepted_noise
from vi_reparam.samplers.gamma import LogGamma
from vi_reparam.samplers.primitive import ImplicitGradient
from vi_reparam_numpyro.ops.noise import normal_of, threefry_data, uniform_of
from vi_reparam_numpyro.ops.ops import ops

Array = Any

CHOICE = KernelTiming("gamma draws")

_SAMPLER = LogGamma(boost=1)

_BLOCK = 256
"""Lanes a program: it goes on until the last of them has its draw."""

_SMALLEST = 4_096
"""Lanes below which nothing is gained."""

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


def _kernel(words: Any, a: Any, out: Any, *, lanes: int, most: int) -> None:
    key = words[0], words[1]
    lane = (pl.program_id(0) * _BLOCK + lax.iota(jnp.int32, _BLOCK)).astype(jnp.uint32)
    a = a[...]

    def pending(state: Any) -> Array:
        count, _, left = state
        return (count < most) & (jnp.max(left) > 0)

    def again(state: Any) -> Any:
        count, eps, left = state
        word, coin = _threefry(key, jnp.full_like(lane, 1) * count.astype(jnp.uint32), lane)
        fresh = normal_of(word)
        taken = (left > 0) & (jnp.log(uniform_of(coin)) < _SAMPLER.log_accept(fresh, a))
        return count + 1, jnp.where(taken, fresh, eps), jnp.where(taken, 0, left)

    start = jnp.int32(0), jnp.full_like(a, jnp.nan), jnp.full_like(lane, 1).astype(jnp.int32)
    _, eps, _ = lax.while_loop(pending, again, start)
    # the word that `noise.AuxStream` has at this place
    half = jnp.uint32((lanes + 1) // 2)
    upper = lane >= half
    first, second = _threefry(key, jnp.full_like(lane, 2**32 - 1), jnp.where(upper, lane - half, lane))
    u = uniform_of(jnp.where(upper, second, first))
    out[...] = _SAMPLER.transform((eps, u[None]), a)


def ratios(key: Any, a: Array, *, most: int = _SAMPLER.max_rounds, interpret: bool = False) -> Array:
    """W = log(z / a) for z ~ Gamma(a, 1), in float32; a lane that no proposal serves is NaN.

    Args:
        key: a threefry key.
        a: concentrations, any shape.
        most: proposals a lane may make.
        interpret: run in Pallas's interpreter, for tests.
    """
    lanes = math.prod(a.shape)
    if not lanes:
        return a
    words = jnp.asarray(threefry_data(key))
    programs = -(-lanes // _BLOCK)
    flat = jnp.pad(lax.stop_gradient(a).reshape(-1), (0, programs * _BLOCK - lanes), constant_values=1.0)
    spec = pl.BlockSpec((_BLOCK,), lambda i: (i,))
    found = pl.pallas_call(
        functools.partial(_kernel, lanes=lanes, most=most),
        out_shape=jax.ShapeDtypeStruct(flat.shape, flat.dtype),
        grid=(programs,),
        in_specs=[pl.BlockSpec((2,), lambda i: (0,)), spec],
        out_specs=spec,
        interpret=interpret,
        compiler_params=None if interpret else _through_triton(),
    )(words, flat)
    return found[:lanes].reshape(a.shape)


def _through_triton() -> Any:
    """Of the compilers that Pallas has for a GPU, the one that holds a loop of any length."""
    from jax.experimental.pallas import triton  # here: not every version of JAX has it under this name

    return triton.CompilerParams(num_warps=_BLOCK // 32)


class KernelGradient(ImplicitGradient):
    """The implicit gradient, of a float32 gamma that the kernel draws."""

    def __call__(
        self,
        ops: Ops,
        key: Any,
        sampler: RejectionSampler,
        shape: tuple[int, ...],
        *params: Array,
        value: Array | None = None,
    ) -> tuple[Array, Array | None, Any]:
        if not isinstance(sampler, LogGamma) or value is not None or params[0].dtype != jnp.float32:
            return super().__call__(ops, key, sampler, shape, *params, value=value)
        a = jnp.broadcast_to(params[0], shape)
        return sampler.attach(ratios(key, a), a), None, None


def device_kind() -> str | None:
    """The kind of GPU on which arrays are by default; None on anything else."""
    return jax.devices()[0].device_kind if jax.default_backend() == "gpu" else None


def chosen(key: Any, lanes: int, dtype: Any) -> bool:
    """Whether the kernel draws so many gammas: on a GPU on which it was the faster one.

    The two are timed at the first draw of a size class, also when that is being traced: outside
    of the trace.
    """
    kind = device_kind()
    if kind is None or lanes < _SMALLEST or dtype != jnp.float32 or threefry_data(key) is None:
        return False
    with jax.ensure_compile_time_eval():
        return CHOICE.kernel(kind, lanes, functools.partial(_run, _plain), functools.partial(_run, ratios))


def _plain(key: Any, a: Array) -> Array:
    return _SAMPLER.transform(accepted_noise(ops, key, _SAMPLER, a.shape, a), a)


def _run(way: Callable[[Any, Array], Array], lanes: int) -> Callable[[], Array]:
    compiled = jax.jit(way)
    key, a = jax.random.key(0, impl="threefry2x32"), jnp.linspace(0.1, 5.0, lanes, dtype=jnp.float32)
    return lambda: jax.block_until_ready(compiled(key, a))
