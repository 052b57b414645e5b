"""Arguments of a fit: which are data, and whether they can be used at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vi_reparam.errors import ArgumentError

Array = Any


def check_data(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse NaN and infinite data before anything runs.

    Raises:
        ArgumentError: naming the argument and how many of its values are not finite.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path((args, kwargs)):
        if not _is_array(leaf) or not np.issubdtype(np.asarray(leaf).dtype, np.floating):
            continue
        bad = int(np.size(leaf) - np.isfinite(np.asarray(leaf)).sum())
        if bad:
            raise ArgumentError(
                f"{_name(path)} holds {bad} NaN or infinite values of {np.size(leaf)}: drop those rows, or model them "
                "with a mask"
            )


def _name(path: Any) -> str:
    which, *rest = path
    first = rest[0] if rest else which
    if which.idx == 0:
        return f"argument {first.idx}{jax.tree_util.keystr(tuple(rest[1:]))}"
    return f"argument {first.key!r}{jax.tree_util.keystr(tuple(rest[1:]))}"


def _is_array(leaf: Any) -> bool:
    numpys = isinstance(leaf, np.ndarray | np.generic)  # those of numbers, NumPy's own or JAX's
    return leaf.dtype.kind in "biufcV" if numpys else isinstance(leaf, jax.Array)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Arguments taken apart: arrays that a compiled step takes, and the rest that it closes over.

    Attributes:
        arrays: the data.
        key: equal for arguments of equal structure, shapes, dtypes and other values.
    """

    arrays: tuple[Array, ...]
    tree: Any
    rest: tuple[Any, ...]
    key: Hashable

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], *, closed: bool = False) -> Arguments:
        """Take arguments apart; with `closed` all of them are closed over."""
        leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=lambda x: x is None)
        arrays = tuple(jnp.asarray(x) for x in leaves if _is_array(x) and not closed)
        rest = tuple(_HOLE if _is_array(x) and not closed else x for x in leaves)
        key = tree, tuple(_key(x) for x in rest), tuple((a.shape, str(a.dtype)) for a in arrays)
        return cls(arrays, tree, rest, key)

    def join(self, arrays: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments again, with these arrays for the data."""
        taken = iter(arrays)
        return jax.tree.unflatten(self.tree, [next(taken) if x is _HOLE else x for x in self.rest])


SMALL = 10_000
"""Numbers of data up to which a program that runs once is compiled longer than it runs."""


def jit_once(fn: Callable[..., Any], data: Any, *, size: int = 0) -> Any:
    """`jax.jit` for what runs a few times: on a CPU, and with few numbers, it is compiled without optimization.

    Args:
        data: a tree; its arrays are what counts.
        size: other numbers that it computes with.
    """
    count = size + sum(np.size(x) for x in jax.tree.leaves(data) if _is_array(x))
    small = jax.default_backend() == "cpu" and count <= SMALL
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0} if small else None)


class _Hole:
    def __repr__(self) -> str:
        return "<array>"


_HOLE = _Hole()


def _key(leaf: Any) -> Hashable:
    if _is_array(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        return array.shape, str(array.dtype), array.tobytes()
    try:
        hash(leaf)
    except TypeError:
        return id(leaf)
    return type(leaf), leaf
