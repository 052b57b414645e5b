"""JAX's Ops."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax
from jax.core import Tracer
from jax.scipy import special

from vi_reparam.backend.data import leaf_form
from vi_reparam.errors import ArgumentError
from vi_reparam_numpyro.ops import matrices, noise
from vi_reparam_numpyro.ops.once import once
from vi_reparam_numpyro.ops.refusal import refuse_gradient
from vi_reparam_numpyro.ops.retry import retry


class JaxOps:
    """What the core asks of JAX. Keys are `jax.random` keys."""

    name = "numpyro"
    array_module = "jax"
    xp: Any = jnp
    gammaln = staticmethod(special.gammaln)
    digamma = staticmethod(special.digamma)
    ndtri = staticmethod(special.ndtri)
    stop_gradient = staticmethod(lax.stop_gradient)
    refuse_gradient = staticmethod(refuse_gradient)

    def log_ndtr(self, x: Any) -> Any:
        # a quarter of the time of JAX's own, which computes four of these functions and chooses
        furthest = -37.0 if x.dtype == jnp.float64 else -12.0  # before there is no erfc
        near, times = jnp.maximum(x, furthest), jnp.minimum(x, furthest) / furthest
        return jnp.log(0.5 * lax.erfc(-math.sqrt(0.5) * near)) - 0.5 * (x * x - near * near) - jnp.log(times)

    def concrete(self, x: Any) -> Any:
        while isinstance(x, Tracer):  # the tracers of grad hold a value, those of jit and vmap none
            if not hasattr(x, "primal"):
                return None
            x = x.primal
        return x

    def key(self, seed: int) -> Any:
        return jax.random.key(seed)

    def root_key(self) -> Any:
        key = numpyro.prng_key()
        if key is None:
            raise ArgumentError("NumPyro has no randomness here: run the program inside numpyro.handlers.seed")
        return key

    def fold_in(self, key: Any, number: int) -> Any:
        # by itself JAX's fold_in(key, n) is split(key, num)[n]
        return jax.random.fold_in(jax.random.fold_in(_plain(key), 20161116), number)

    def split(self, key: Any, num: int) -> list[Any]:
        if isinstance(key, noise.CounterStream):
            return [key] * num
        return list(jax.random.split(_plain(key), num))

    def aux_key(self, key: Any) -> Any:
        if isinstance(key, noise.CounterStream):
            return key
        key = _plain(key)
        data = noise.threefry_data(key)
        return jax.random.fold_in(key, 2**31 - 1) if data is None else noise.AuxStream(data)

    def normal(self, key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        return noise.normal(key, shape, dtype)

    def uniform(self, key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        return noise.uniform(key, shape, dtype)

    def poisson(self, key: Any, rate: Any, shape: tuple[int, ...]) -> Any:
        return jax.random.poisson(_plain(key), lax.stop_gradient(rate), shape).astype(jnp.result_type(rate))

    def while_loop(self, cond: Any, body: Any, state: Any) -> Any:
        return lax.while_loop(cond, body, state)

    def rejection_loop(self, attempt: Any, key: Any, shape: tuple[int, ...], params: Any, max_rounds: int) -> Any:
        return retry(attempt, key, shape, params, max_rounds)

    def upcast(self, x: Any) -> None:
        return None  # XLA fuses the branches of a formula, and has float64 only on request

    def with_slope(self, value: Any, parameter: Any, slope: Any) -> Any:
        @jax.custom_jvp
        def held(value: Any, parameter: Any) -> Any:
            return value

        @held.defjvp
        def _(primals: Any, tangents: Any) -> Any:
            value, parameter = primals
            return value, tangents[0] + lax.stop_gradient(slope(value, parameter)) * tangents[1]

        return held(value, parameter)

    def scan(self, body: Any, state: Any, xs: Any, *, checkpoint: bool = False, unroll: bool = False) -> Any:
        return lax.scan(jax.checkpoint(body) if checkpoint else body, state, xs, unroll=unroll)

    def float_dtype(self) -> Any:
        return jnp.result_type(float)

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        if dtype is None and isinstance(x, np.ndarray | np.generic | float):  # without a dtype JAX compiles a program
            kind = np.asarray(x).dtype
            dtype = self.float_dtype() if np.issubdtype(kind, np.floating) else jax.dtypes.canonicalize_dtype(kind)
        if dtype is not None and isinstance(x, np.ndarray | np.generic | float | bool):
            x = np.asarray(x, jax.dtypes.canonicalize_dtype(dtype))  # and with another one a conversion
        made = jnp.asarray(x, dtype)
        return made.astype(self.float_dtype()) if dtype is None and jnp.issubdtype(made.dtype, jnp.floating) else made

    def to_numpy(self, x: Any) -> np.ndarray:
        return np.asarray(lax.stop_gradient(x))

    def vmap(self, fn: Any, in_axes: Any = 0) -> Any:
        return jax.vmap(fn, in_axes)

    def many(self, fn: Any, key: Any, num: int) -> Any:
        return jax.tree.map(once, jax.vmap(fn)(jax.random.split(_plain(key), num)))

    def once(self, x: Any) -> Any:
        return once(x)

    def grad(self, fn: Any) -> Any:
        return jax.grad(fn)

    def jacobian(self, fn: Any, *, has_aux: bool = False) -> Any:
        return jax.jacfwd(fn, has_aux=has_aux)

    def products(self, slope: Any, x: Any, seeds: Any) -> tuple[Any, Any]:
        found, along = jax.linearize(slope, x)
        return jax.vmap(along)(seeds), found

    def cholesky(self, a: Any) -> Any:
        return matrices.cholesky(a)

    def solve_triangular(self, a: Any, b: Any, *, lower: bool) -> Any:
        return matrices.solve_triangular(a, b, lower=lower)

    def compiled(self, fn: Any) -> Any:
        return jax.jit(fn)

    def form(self, tree: Any) -> Hashable:
        leaves, structure = jax.tree.flatten(tree)
        own = ((jnp.shape(x), str(jnp.result_type(x))) if hasattr(x, "dtype") else leaf_form(x) for x in leaves)
        return structure, tuple(own), str(self.float_dtype())

    def vjp(self, fn: Any, *trees: Any) -> Any:
        value, pull, aux = jax.vjp(fn, *jax.tree.map(lax.stop_gradient, trees), has_aux=True)

        def slopes(which: int, cotangent: Any, leaves: Any) -> list[Any]:
            found = jax.tree.leaves(pull(cotangent)[which])
            return [None if slope.dtype == jax.dtypes.float0 else slope for slope in found]

        return value, slopes, aux

    def at_once(self) -> Any:
        return jax.ensure_compile_time_eval()

    def tree_map(self, fn: Any, tree: Any, *others: Any) -> Any:
        return jax.tree.map(fn, tree, *others)

    def tree_leaves(self, tree: Any) -> list[Any]:
        return jax.tree.leaves(tree)


def _plain(key: Any) -> Any:
    """A key of JAX's own."""
    return key.key() if isinstance(key, noise.CounterStream | noise.AuxStream) else key


ops = JaxOps()
