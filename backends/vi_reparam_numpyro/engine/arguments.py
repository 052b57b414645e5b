"""Arguments of a call: which are data, and whether they can be used at all."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.core import Tracer

from vi_reparam.backend.data import Call, Data, leaf_form
from vi_reparam.errors import ArgumentError
from vi_reparam.fit.arguments import not_finite, taken

Array = Any


def as_arrays(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """As `taken`."""
    return taken(args, kwargs, lambda value: isinstance(value, jax.Array), jax.dtypes.canonicalize_dtype)


def refuse_tracing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a fit that JAX traces, which has no values.

    Raises:
        ArgumentError: saying so.
    """
    if any(isinstance(leaf, Tracer) for leaf in (*jax.tree.leaves((args, kwargs)), jnp.zeros(()))):
        raise ArgumentError(
            "a fit cannot run inside jax.jit, vmap, grad or scan: it looks at values to decide when it has converged; "
            "call fit outside of them, in a Python loop over data sets"
        )


def doubts_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
    """As `not_finite`, of every number and array that is known."""
    found = []
    for (which, first, *rest), leaf in jax.tree_util.tree_leaves_with_path((args, kwargs)):
        is_key = _is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if isinstance(leaf, float) or (_is_array(leaf) and not isinstance(leaf, Tracer) and not is_key):
            key = first.idx if which.idx == 0 else repr(first.key)
            found += not_finite(f"{key}{jax.tree_util.keystr(tuple(rest))}", np.asarray(leaf))
    return tuple(found)


def _is_array(leaf: Any) -> bool:
    numpys = isinstance(leaf, np.ndarray | np.generic)  # those of numbers, NumPy's own or JAX's
    return leaf.dtype.kind in "biufcV" if numpys else isinstance(leaf, jax.Array)


def data_of(args: tuple[Any, ...], kwargs: dict[str, Any], *, closed: bool = False) -> Data:
    """Arguments taken apart.

    Args:
        closed: whether arrays are constants of what is compiled too. They are NumPy's then, which keep their values
            under tracing.
    """
    if closed:
        args, kwargs = jax.tree.map(_values, (args, kwargs))
    else:
        args, kwargs = jax.tree.map(
            lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) and _is_array(x) else x, (args, kwargs)
        )
    leaves, tree = jax.tree.flatten((tuple(args), dict(kwargs)), is_leaf=lambda x: x is None)
    arrays = tuple(jnp.asarray(x) for x in leaves if _is_array(x) and not closed)
    rest = tuple(_HOLE if _is_array(x) and not closed else x for x in leaves)
    shapes = tuple((a.shape, str(a.dtype)) for a in arrays)
    form = tree, tuple(_key(x) for x in rest), shapes, bool(jax.config.read("jax_enable_x64"))
    return Data(tuple(args), dict(kwargs), form, arrays, functools.partial(_join, tree, rest))


def _values(leaf: Any) -> Any:
    """An array whose values can be read while others are traced."""
    is_array = isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(leaf) if is_array else leaf


def _join(tree: Any, rest: tuple[Any, ...], arrays: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    taken = iter(arrays)
    return jax.tree.unflatten(tree, [next(taken) if x is _HOLE else x for x in rest])


class _Hole:
    def __repr__(self) -> str:
        return "<array>"


_HOLE = _Hole()


def _key(leaf: Any) -> Hashable:
    if _is_array(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(random.key_data(leaf) if is_key else leaf)
        return array.shape, str(array.dtype), array.tobytes()
    return leaf_form(leaf)
