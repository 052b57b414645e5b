"""Programs run once or many times, compiled."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.errors import ArgumentError
from vi_reparam_numpyro.arguments import Arguments, check_data, jit_once
from vi_reparam_numpyro.engine.codec import JaxCodec

CHUNK_BUDGET = 2**22  # numbers held at once
CACHE_SIZE = 32


class Draws:
    """The part of `vi_reparam.backend.engine.Engine` that runs programs and steps no fit."""

    array_functions = "jax.numpy"
    codec = JaxCodec()
    reads_values: tuple[type[Exception], ...] = (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerBoolConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.NonConcreteBooleanIndexError,
    )

    def __init__(self) -> None:
        self._compiled: weakref.WeakKeyDictionary[Data, OrderedDict] = weakref.WeakKeyDictionary()

    def key(self, seed: Any) -> jax.Array:
        if isinstance(seed, jax.Array):
            if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
                return seed
            if seed.dtype == jnp.uint32 and seed.ndim == 1:
                return jax.random.wrap_key_data(seed)
        if isinstance(seed, int | np.integer) and not isinstance(seed, bool) and -(2**63) <= seed < 2**63:
            return jax.random.key(int(seed))
        raise ArgumentError(f"seed is {seed!r}; give an int of at most 64 bits or a jax.random.key")

    def data(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        model: Any = None,
        *,
        inputs: tuple[Any, ...] = (),
        finite: bool = True,
    ) -> Data:
        if finite:
            check_data(args, dict(kwargs))
        found = Arguments.of(args, dict(kwargs))
        if model is not None:
            try:
                _trace(model, found, inputs)
            except self.reads_values:
                found = Arguments.of(*jax.tree.map(_values, (args, dict(kwargs))), closed=True)
                _trace(model, found, inputs)
        return Data(*found.join(found.arrays), form=found.key, arrays=found.arrays, join=found.join)

    def call(self, fn: Callable[..., Any], data: Data, *inputs: Any, name: Hashable) -> Any:
        join = data.join
        call = self._kept(data, name, lambda: jit_once(lambda arrays, *rest: fn(*join(arrays), *rest), data.call))
        return call(data.arrays, *inputs)

    def runs_at_once(self, fn: Callable[..., Any], data: Data, *inputs: Any) -> bool:
        return True

    def many(
        self,
        fn: Callable[..., Any],
        data: Data,
        key: jax.Array,
        num: int,
        *inputs: Any,
        size: int,
        name: Hashable = None,
        at_once: bool = True,
    ) -> Any:
        join = data.join

        def all_of_them(key: Any, arrays: Any, *rest: Any) -> Any:
            args, kwargs = join(arrays)
            return in_chunks(lambda one: fn(one, args, kwargs, *rest), key, num, size)

        name = None if name is None else (name, num)
        call = self._kept(data, name, lambda: jit_once(all_of_them, data.call, size=size))
        return call(key, data.arrays, *inputs)

    def _kept(self, data: Data, name: Hashable, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """What `make` compiles, kept under a name as long as the data."""
        if name is None:
            return make()
        cache = self._compiled.setdefault(data, OrderedDict())
        if name not in cache:
            cache[name] = make()
            if len(cache) > CACHE_SIZE:
                cache.popitem(last=False)
        cache.move_to_end(name)
        return cache[name]


def in_chunks(one: Callable[[jax.Array], Any], key: jax.Array, num: int, size: int) -> Any:
    """Runs `one` for `num` keys, vectorized as far as the memory budget goes.

    Args:
        one: a function of a key; the i-th call gets `key` with i folded in.
        size: numbers that one call holds.

    Returns:
        The results, stacked.
    """
    chunk = max(1, min(num, CHUNK_BUDGET // max(size, 1)))
    num_chunks = -(-num // chunk)
    chunk = -(-num // num_chunks)  # even chunks: one body, few draws thrown away
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_chunks * chunk))
    if num_chunks == 1:
        return jax.vmap(one)(keys)
    out = jax.lax.map(jax.vmap(one), keys.reshape(num_chunks, chunk))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num], out)


def _trace(program: Callable[..., Any], arguments: Arguments, inputs: tuple[Any, ...]) -> None:
    def traced(arrays: Any, inputs: Any) -> jax.Array:
        args, kwargs = arguments.join(arrays)
        program(*inputs, *args, **kwargs)
        return jnp.zeros(())

    jax.eval_shape(traced, arguments.arrays, inputs)


def _values(leaf: Any) -> Any:
    """An array whose values can be read while others are traced."""
    is_array = isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(leaf) if is_array else leaf
