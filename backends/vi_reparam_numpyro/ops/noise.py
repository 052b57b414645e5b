"""Uniform and normal noise from whole 32-bit words of the key's own generator."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry_2x32

from vi_reparam_numpyro.ops.once import once

Array = Any

# sqrt(2) erfinv(x) / x, fitted in 0.4 w - 1 on 0 < w < 5 and in the scaled square root of w on 5 < w < 22.5.
_CENTRE = [2.1233136, 0.87200665, -0.036926069, -0.027703284, 0.01207618]
_CENTRE += [-0.00060722559, -0.0012183998, 0.00029669411, 6.1576329e-05]
_TAIL = [4.7024746, 1.7859, 0.0074845585, -0.0057708138, 0.0035742445]
_TAIL += [-0.0034583737, 0.0032875124, -0.0012248888, -7.450564e-05]
_TAIL_AT, _TAIL_HALF = 3.4897422, 1.2536743


class CounterStream:
    """A key for one lane in one round of a loop: words 0, 1, 2, ... of that lane and that round.

    It costs no generator calls to make or to split. `ops` draws from it in the order in which it
    is asked; threefry's counter is (round, lane + words drawn before x lanes), and both of the
    words that a call yields are used.

    Args:
        data: the two words of a threefry key.
        count: the round; `lane`: which of `lanes`; their number. Lanes x words below 2^33.
    """

    def __init__(self, data: Array, count: Any, lane: Any, lanes: int) -> None:
        self.data, self.count, self.lane, self.lanes = data, count, lane, lanes
        self.calls = 0
        self.spare: list[Array] = []

    def take(self, num: int) -> Array:
        """The next `num` words."""
        calls = (num - len(self.spare) + 1) // 2
        if calls > 0:
            low = jnp.uint32(self.lanes) * (self.calls + lax.iota(jnp.uint32, calls)) + jnp.uint32(self.lane)
            high = jnp.broadcast_to(jnp.uint32(self.count), low.shape)
            pair = threefry_2x32(self.data, jnp.concatenate([high, low]))
            self.calls += calls
            self.spare += [pair[i + half] for i in range(calls) for half in (0, calls)]
        words, self.spare = self.spare[:num], self.spare[num:]
        return jnp.stack(words) if words else jnp.zeros((0,), jnp.uint32)

    def key(self) -> Any:
        """A key of JAX's own, for what no word makes."""
        return jax.random.wrap_key_data(self.take(2), impl="threefry2x32")


class AuxStream:
    """The words of a threefry key that no split and no round of a loop takes: their counters begin with 2^32 - 1.

    Args:
        data: the two words of a threefry key.
    """

    def __init__(self, data: Array) -> None:
        self.data = data

    def take(self, num: int) -> Array:
        """The first `num` words; the second half of them are the second words of the calls."""
        low = lax.iota(jnp.uint32, (num + 1) // 2)
        return threefry_2x32(self.data, jnp.concatenate([jnp.full_like(low, 2**32 - 1), low]))[:num]

    def key(self) -> Any:
        """A key of JAX's own, for what no word makes."""
        return jax.random.wrap_key_data(self.take(2), impl="threefry2x32")


def threefry_data(key: Any) -> Array | None:
    """The two words of a threefry key, new or old style; None for a key of another generator."""
    if jax.random.key_impl(key) != "threefry2x32":
        return None
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def words(key: Any, shape: tuple[int, ...]) -> Array:
    """Independent uint32 words.

    Threefry makes two words a call; `jax.random.bits` keeps one of them, this keeps both. Any
    other generator is asked through `jax.random.bits`.
    """
    if isinstance(key, CounterStream | AuxStream):
        return key.take(math.prod(shape)).reshape(shape)
    data = threefry_data(key)
    if data is None:
        return jax.random.bits(key, shape, jnp.uint32)
    return threefry_2x32(data, lax.iota(jnp.uint32, math.prod(shape))).reshape(shape)


def _double_words(key: Any, shape: tuple[int, ...]) -> Array:
    pair = words(key, (2, *shape)).astype(jnp.uint64)
    return (pair[0] << 32) | pair[1]


def uniform(key: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Uniforms on (0, 1], as fine near 0 as the words are: 2^-33 from one, 2^-54 from the two of float64."""
    if dtype == jnp.float64:
        return ((_double_words(key, shape) >> 11).astype(dtype) + 0.5) * 2.0**-53
    single = uniform_of(words(key, shape))
    if dtype == jnp.float32:
        return single
    return jnp.maximum(single.astype(dtype), jnp.finfo(dtype).smallest_normal)


def uniform_of(word: Array) -> Array:
    """The float32 uniform on (0, 1] at a word."""
    return (word.astype(jnp.float32) + 0.5) * 2.0**-32


def normal(key: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Standard normals, one word each (two in float64)."""
    if dtype == jnp.float64:
        x = ((_double_words(key, shape) >> 12).astype(dtype) + 0.5) * 2.0**-51 - 1.0
        return once(math.sqrt(2.0) * lax.erf_inv(x))
    return normal_of(words(key, shape)).astype(dtype)


def normal_of(word: Array) -> Array:
    """The float32 standard normal at the quantile of a word, up to 6.3 standard deviations on either side.

    Its relative error is below 1e-6. With x on (-1, 1) and w = -log(1 - x^2), sqrt(2) erfinv(x) is
    x times a smooth function of w (Giles 2010). The word gives both x and 1 - |x| all their digits,
    so the tails are as fine as the centre.
    """
    signed = lax.bitcast_convert_type(word, jnp.int32)
    size = jnp.where(signed < 0, ~signed, signed)
    scale = 2.0**-31
    x = (size.astype(jnp.float32) + 0.5) * scale
    rest = ((2**31 - 1 - size).astype(jnp.float32) + 0.5) * scale
    w = -jnp.log(rest * (1.0 + x))
    near = _horner(0.4 * w - 1.0, _CENTRE)
    far = _horner((jnp.sqrt(w) - _TAIL_AT) / _TAIL_HALF, _TAIL)
    return jnp.where(signed < 0, -x, x) * jnp.where(w < 5.0, near, far)


def _horner(x: Array, coefficients: list[float]) -> Array:
    total = jnp.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total
