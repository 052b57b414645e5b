"""JAX as the core's compiler."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import gc
import hashlib
import re
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from numpyro.handlers import substitute

from vi_reparam.backend.cache import Cache
from vi_reparam.backend.data import Data
from vi_reparam.backend.engine import DrawInfo, Task
from vi_reparam.backend.lock import one_at_a_time
from vi_reparam.errors import ArgumentError, first_line
from vi_reparam.objectives.run import Runner, first_params
from vi_reparam.objectives.subsampling import check_subsampling
from vi_reparam.sites.totals import total_log_prob
from vi_reparam_numpyro.engine import optimizers, ranges
from vi_reparam_numpyro.engine.arguments import as_arrays, data_of, doubts_of, refuse_tracing
from vi_reparam_numpyro.engine.bounds import refuse_out_of_bounds
from vi_reparam_numpyro.engine.codec import JaxCodec
from vi_reparam_numpyro.engine.forked import refuse_fork
from vi_reparam_numpyro.engine.program import Program
from vi_reparam_numpyro.host.tracer import tracer
from vi_reparam_numpyro.ops.jit import jit_once
from vi_reparam_numpyro.ops.ops import ops

Array = Any
Params = Mapping[str, Array]

BUDGET, CHUNK_BUDGET = 2_000_000, 2**22
"""Numbers held at once by one batch of gradients (draws, costs and gradients), and by one chunk of runs."""

LANES, PARTICLES = 512, 1024
"""Most gradients of a batch, and most particles."""

LONG = 5_000
"""Steps from which on all of XLA's optimization pays."""

PROGRAMS, CALLS, CALLS_OF_DATA = 16, 32, 32
"""Compiled fits and calls that are kept, 10 to 20 MB each, and those kept with one call's data."""

RELEASE = 128
"""Compiled fits and calls after which JAX lets go of all that it traced, of which it keeps some 4 MB for each."""


_RUNS: Any = SimpleNamespace(ops=ops, tracer=tracer)
"""What a run asks of a backend."""


UNSTEADY = re.compile(r" at 0x\w+|\n *_:\S+ = random_seed\S* \S+")
"""What a program's text may have or not: addresses, and keys that nothing reads, which a cached trace leaves out."""


@one_at_a_time
class JaxEngine:
    """`vi_reparam.backend.engine.Engine` for JAX."""

    reads_values: tuple[type[Exception], ...] = (
        jax.errors.ConcretizationTypeError,
        jax.errors.NonConcreteBooleanIndexError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerBoolConversionError,
        jax.errors.TracerIntegerConversionError,
    )
    array_functions = "jax.numpy"
    codec: Any = JaxCodec()

    def __init__(self) -> None:
        self.programs: Cache[Program] = Cache(PROGRAMS)
        self.calls: Cache[Any] = Cache(CALLS)
        self._draws: Cache[dict[str, DrawInfo]] = Cache(PROGRAMS)
        self._of_data: weakref.WeakKeyDictionary[Data, Cache[Any]] = weakref.WeakKeyDictionary()
        self._compiled = 0  # since the last release
        self._readers: deque[Any] = deque(maxlen=CALLS)  # models that read their data

    def key(self, seed: Any) -> Any:
        refuse_fork()
        if isinstance(seed, int | np.integer) and not isinstance(seed, bool) and -(2**63) <= seed < 2**63:
            return random.key(int(seed))
        if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
            return seed
        if isinstance(seed, jax.Array) and seed.dtype == jnp.uint32 and seed.ndim == 1:
            return random.wrap_key_data(seed)
        raise ArgumentError(f"seed={seed!r}: expected an int of at most 64 bits or a jax.random.key")

    def data(self, args: tuple, kwargs: Mapping, model: Any = None, *, inputs: tuple = (), finite: bool = True) -> Data:
        refuse_fork()
        if self._compiled >= RELEASE:  # here no call runs; what is kept is compiled again when it is used
            self._compiled = 0
            _release()
        args, kwargs = as_arrays(args, dict(kwargs))
        if model is not None and finite:
            refuse_tracing(args, kwargs)
            if isinstance(model, jax.stages.Wrapped):
                raise ArgumentError(
                    f"{_name(model)[:40]} is compiled by jax.jit, which shows its sites once: give the function itself"
                )
        doubts = doubts_of(args, kwargs)
        made = dataclasses.replace(data_of(args, kwargs), doubts=doubts)
        if model is None:
            return made
        known = any(model is reader for reader in self._readers)
        if known:
            made = dataclasses.replace(data_of(*made.call, closed=True), doubts=doubts)
        why = None
        try:
            return _traced(model, made, inputs, finite)
        except self.reads_values as error:
            why = error
        made = dataclasses.replace(data_of(*made.call, closed=True), doubts=doubts)
        try:
            made = _traced(model, made, inputs, finite)
        except self.reads_values as error:
            raise ArgumentError(
                f"{_name(model)[:40]} reads in Python a draw, a parameter, or what jax.numpy, and not numpy, made of "
                f"its data ({first_line(error)[:50]}): every run must have the same sites; choose by jnp.where or a "
                "mixture, or give plates a fixed size and mask the rest"
            ) from None
        if finite and not known:
            self._note_reading(model, why)
        return made

    def _note_reading(self, model: Callable[..., Any], error: Exception) -> None:
        """Its data are constants of what is compiled from now on."""
        self._readers.append(model)
        warnings.warn(
            f"{_name(model)} reads its data in Python ({first_line(error)}), so the data are compiled into the step, "
            "and every new data set compiles again; use jnp.where or shapes instead of values to avoid it",
            stacklevel=6,
        )

    def call(self, fn: Callable[..., Any], data: Data, *inputs: Any, name: Hashable = None) -> Any:
        return self._call(fn, data, inputs, name, data.call)

    def _call(self, fn: Callable[..., Any], data: Data, inputs: tuple[Any, ...], name: Hashable, numbers: Any) -> Any:
        join = data.join

        def compile_it() -> Any:
            self._compiled += 1

            def called(arrays: Any, *inputs: Any) -> Any:
                return fn(*join(arrays), *inputs)

            called.__name__ = getattr(fn, "__name__", "called")  # what JAX's logs and profiles say
            traced = jax.jit(called)
            return traced, jit_once(traced, numbers)

        traced, compiled = compile_it() if name is None else self.calls.get((name, data.form), compile_it)
        within = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(inputs))
        return (traced if within else compiled)(data.arrays, *inputs)

    def runs_at_once(self, fn: Callable[..., Any], data: Data, *inputs: Any) -> bool:
        return True

    def many(
        self,
        fn: Any,
        data: Data,
        key: Any,
        num: int,
        *inputs: Any,
        size: int,
        first: int = 0,
        name: Any = None,
        at_once: bool = True,
    ) -> Any:
        join = data.join

        def all_of_them(key: Any, first: Any, arrays: Any, *inputs: Any) -> Any:
            args, kwargs = join(arrays)
            return in_chunks(lambda one: fn(one, args, kwargs, *inputs), key, num, size, first)

        def compile_it() -> Any:
            self._compiled += 1
            return jit_once(all_of_them, data.call, size=size)

        if name is None:
            return compile_it()(key, first, data.arrays, *inputs)
        kept = self._of_data.setdefault(data, Cache(CALLS_OF_DATA))
        return kept.get((name, num), compile_it)(key, first, data.arrays, *inputs)

    def first_params(self, model: Any, guide: Any, data: Data, key: Any, known: Params) -> dict[str, Array]:
        def values(args: Any, kwargs: Any, key: Any, known: Any) -> dict[str, Any]:
            with substitute(data=known):
                return {**known, **first_params(_RUNS, key, model, guide, args, kwargs)}

        name = "first_params", _Same(model), _Same(guide), tuple(sorted(known))
        return self._call(values, data, (key, dict(known)), name, ())  # once for sure: compiled longer than it runs

    def check(self, task: Task, data: Data, start: Callable[[Any], Params], key: Any, *, known: bool) -> Params | None:
        if not known:
            check_subsampling(task.objective.backend, task.model, data)
            found = task.objective.check_at(start, task.model, task.guide, *data.call)
            self._draws.get(_case(task, data), lambda: found.draws)
        return None

    def draws(self, task: Task, data: Data, params: Params | None) -> dict[str, DrawInfo]:
        return self._draws.get(_case(task, data), lambda: self._run(task, data, params).described())

    def _run(self, task: Task, data: Data, params: Params | None) -> Any:
        """One run, whose shapes alone hold."""
        runs = []

        def abstract(key: Any, params: Any) -> None:
            objective = task.objective
            runs.append(Runner(objective.backend, task.model, task.guide, *data.call, objective.entropy, params)(key))

        jax.eval_shape(abstract, random.key(0), dict(params or {}))
        return runs[-1]

    def devices(self, given: Any) -> tuple[Any, ...]:
        there = jax.devices()
        if isinstance(given, int) and not isinstance(given, bool) and 0 < given <= len(there):
            return tuple(there[:given])
        if isinstance(given, list | tuple) and given and all(isinstance(device, jax.Device) for device in given):
            return tuple(given)
        raise ArgumentError(f"fit(devices={given!r}): expected a list of jax.devices(), or a number up to {len(there)}")

    def optimizer(self, plan: Any) -> Any:
        return optimizers.made(plan)

    def describe(self, optimizer: Any) -> str:
        return re.sub(r" at 0x\w+(, file [^>]*)?", "", repr(optimizers.fingerprint(optimizer)))

    def program(self, task: Task, data: Data, optimizer: Any, *, num_steps: int, watched: bool) -> Program:
        how = repr(task.objective), task.devices, optimizers.fingerprint(optimizer)
        case = _Same(task.model), _Same(task.guide), *how
        long = not watched and num_steps >= LONG
        made = functools.partial(Program, task, data, optimizer, watched, long=long)
        key = *case, data.form, watched, long
        self._compiled += key not in self.programs.entries
        return self.programs.get(key, made)

    def gradients(
        self, task: Task, data: Data, params: Params, key: Any, num: int
    ) -> Iterator[tuple[np.ndarray, float]]:
        moving = {name: params[name] for name in sorted(params) if not name.startswith("vr.")}
        fixed = {name: value for name, value in params.items() if name not in moving}
        flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, moving))
        result, particles = self._run(task, data, params), task.objective.num_particles
        parts = [s.draw.value for s in result.draws.values()] + list(result.costs.values())
        size = particles * sum(int(np.prod(jnp.shape(part))) for part in parts)
        batch = int(np.clip(BUDGET // max(size, flat.size, 1), 1, min(LANES, max(1, PARTICLES // particles))))
        batch = min(batch, max(1, num // 2))

        def loss(flat: Array, key: Any, args: Any, kwargs: Any) -> Array:
            return task.objective.loss(key, {**unravel(flat), **fixed}, task.model, task.guide, *args, **kwargs)

        def rows(first: Array, flat: Array, arrays: Any) -> Array:
            args, kwargs = data.join(arrays)
            one = jax.vmap(lambda index: jax.grad(loss)(flat, random.fold_in(key, index), args, kwargs))
            return one(first + jnp.arange(batch))

        compiled = jax.jit(rows).lower(jnp.asarray(0), flat, data.arrays).compile()
        for first in range(0, num, batch):
            begun = time.perf_counter()
            found = jax.block_until_ready(compiled(jnp.asarray(first), flat, data.arrays))
            yield np.asarray(found), time.perf_counter() - begun

    def settle(self, posterior: Any) -> None:
        return None  # nothing trains in place

    def keep_programs(self, folder: str, size: int) -> None:
        settings = {
            "jax_compilation_cache_dir": folder,
            "jax_compilation_cache_max_size": size if find_spec("filelock") else -1,  # JAX bounds it by that package
            "jax_persistent_cache_min_compile_time_secs": 0.05,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        for name, value in settings.items():
            jax.config.update(name, value)

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("vi-reparam", "numpyro", "jax", "optax")}


def in_chunks(one: Callable[[Any], Any], key: Any, num: int, size: int, first: Any = 0) -> Any:
    """Runs `one` for `num` keys, vectorized as far as the memory budget goes.

    Args:
        one: a function of a key; the i-th call gets `key` with i folded in.
        size: numbers that one call holds.
        first: the i of the first call.

    Returns:
        The results, stacked.
    """
    chunk = max(1, min(num, CHUNK_BUDGET // max(size, 1)))
    num_chunks = -(-num // chunk)
    chunk = -(-num // num_chunks)  # even chunks: one body, few draws thrown away
    keys = jax.vmap(lambda i: random.fold_in(key, i))(first + jnp.arange(num_chunks * chunk))
    if num_chunks == 1:
        return jax.vmap(one)(keys)
    out = jax.lax.map(jax.vmap(one), keys.reshape(num_chunks, chunk))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num], out)


def _traced(program: Callable[..., Any], data: Data, inputs: tuple[Any, ...], alone: bool) -> Data:
    """These data for a program as it is now: the constants that it takes from elsewhere are part of their form.

    Args:
        alone: whether it is a model, whose density counts; else what it returns.
    """
    looked: list[Any] = []  # parameters of sites, in the order of the first outputs

    def traced(arrays: Any, inputs: Any) -> Any:
        args, kwargs = data.join(arrays)
        if not alone:
            return program(*inputs, *args, **kwargs)
        found = tracer.run(program, args, kwargs, random.key(0), alone=True)
        missed = ranges.misses(found)
        looked[:] = missed
        outputs = [r.value for r in found.values() if r.kind == "param"]
        return list(missed.values()), total_log_prob(_RUNS, found), outputs

    try:
        closed = jax.make_jaxpr(traced)(data.arrays, inputs)
        if closed.consts and not alone:  # a first trace with lax.scan has constants that later ones have not
            closed = jax.make_jaxpr(lambda *both: traced(*both))(data.arrays, inputs)
    except JaxEngine.reads_values:
        raise
    except Exception:
        if not alone:
            raise
        return data  # what is wrong with the arguments is reported by the check that follows
    name = _name(program) if alone else "the model"
    outputs = refuse_out_of_bounds(name, closed, data.arrays)
    ranges.refuse(name, dict(zip(looked, outputs, strict=False)))
    seen = hashlib.blake2b(UNSTEADY.sub("", str(closed.jaxpr)).encode())
    for value in closed.consts:
        keyed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        seen.update(np.ascontiguousarray(random.key_data(value) if keyed else value).tobytes())
    return dataclasses.replace(data, form=(data.form, seen.digest()))


def _release() -> None:
    """Let go of what JAX traced, and give its memory back: the C library keeps it in fragments that grow."""
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # of Linux alone
        ctypes.CDLL(None).malloc_trim(0)


def _case(task: Task, data: Data) -> Hashable:
    return _Same(task.model), _Same(task.guide), task.objective.entropy, data.form


def _name(program: Any) -> str:
    return str(getattr(program, "__name__", type(program).__name__))


class _Same:
    """A key of a dictionary that is one object and no other, hashable or not; it keeps the object alive."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


engine = JaxEngine()
