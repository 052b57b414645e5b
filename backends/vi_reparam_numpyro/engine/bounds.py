"""Indices out of bounds: JAX takes the nearest row without a word, so they are looked for in what was traced.

Only indices that follow from the arguments are known before a run. NumPy computes most of them, as compiling each
operation would take longer than a fit; JAX does the others, such as those that are searched or sorted.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.lax import GatherScatterMode

from vi_reparam.checks import tell_of_the_end
from vi_reparam.errors import ArgumentError

Value = Callable[[], np.ndarray]
"""An array that is computed once it is asked for."""

MOST_NUMBERS = 10_000_000
"""Of an index that is looked at."""

_SAME_IN_NUMPY: dict[str, Callable[..., Any]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "rem": np.fmod,
    "neg": np.negative,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
    "floor": np.floor,
    "div": np.divide,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "square": np.square,
    "sign": np.sign,
    "pow": np.power,
    "integer_pow": lambda x, y: x**y,
    "reduce_or": lambda x, axes, **_: x.any(axes),
    "reduce_and": lambda x, axes, **_: x.all(axes),
    "reduce_sum": lambda x, axes, **_: x.sum(axes),
    "reduce_max": lambda x, axes, **_: x.max(axes),
    "reduce_min": lambda x, axes, **_: x.min(axes),
    "stop_gradient": np.asarray,
    "copy": np.asarray,
    "select_n": lambda which, *cases: np.choose(np.asarray(which, np.int64), cases),
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "convert_element_type": lambda x, new_dtype, **_: x.astype(new_dtype),
    "reshape": lambda x, new_sizes, **_: x.reshape(new_sizes),
    "squeeze": lambda x, dimensions: x.squeeze(dimensions),
    "transpose": lambda x, permutation: x.transpose(permutation),
    "stack": lambda *xs, axis: np.stack(xs, axis),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
}


def _broadcast(x: np.ndarray, shape: tuple[int, ...], broadcast_dimensions: tuple[int, ...], **_: Any) -> np.ndarray:
    sizes = [1] * len(shape)
    for size, dimension in zip(x.shape, broadcast_dimensions, strict=True):
        sizes[dimension] = size
    return np.broadcast_to(x.reshape(sizes), shape)


def _iota(*, dtype: Any, shape: tuple[int, ...], dimension: int, **_: Any) -> np.ndarray:
    return _broadcast(np.arange(shape[dimension], dtype=dtype), shape, (dimension,))


def _slice(x: np.ndarray, start_indices: Any, limit_indices: Any, strides: Any) -> np.ndarray:
    return x[tuple(map(slice, start_indices, limit_indices, strides or (None,) * x.ndim))]


def _gather(
    x: np.ndarray, index: np.ndarray, dimension_numbers: Any, slice_sizes: Any, mode: Any, **_: Any
) -> np.ndarray:
    """Rows by the first dimensions of an array; any other form is not known."""
    told, num = dimension_numbers, index.shape[-1]
    firsts, rest = tuple(range(num)), tuple(range(index.ndim - 1, index.ndim - 1 + x.ndim - num))
    whole = tuple(slice_sizes) == (1,) * num + x.shape[num:]
    if (told.start_index_map, told.collapsed_slice_dims, told.offset_dims, whole) != (firsts, firsts, rest, True):
        raise NotImplementedError
    inside = np.clip(index, 0, np.asarray(x.shape[:num]) - 1)
    if mode != GatherScatterMode.CLIP and (inside != index).any():
        raise NotImplementedError
    return x[tuple(inside[..., k] for k in firsts)]


def _dot(x: np.ndarray, y: np.ndarray, dimension_numbers: Any, **_: Any) -> np.ndarray:
    contracted, batch = dimension_numbers
    if any(batch):
        raise NotImplementedError
    return np.tensordot(x, y, contracted)


_COMPUTED_BY_JAX = {"while", "sort", "cumsum", "argmax", "argmin", "call_hi_primitive"}  # the last: a search in 0.12
"""Operations whose whole numbers are looked for too, each compiled."""

_KNOWN = {**_SAME_IN_NUMPY, "broadcast_in_dim": _broadcast, "iota": _iota, "slice": _slice, "gather": _gather}
_KNOWN |= {"dot_general": _dot}


def refuse_out_of_bounds(name: str, closed: ClosedJaxpr, arrays: Sequence[Any]) -> list[Value | None]:
    """Refuse arguments that number what is not there.

    Args:
        name: of the program; `closed`: its trace, whose first inputs are `arrays`.

    Returns:
        Its outputs, as far as they follow from the arguments.

    Raises:
        ArgumentError: naming the index and the size.
    """
    known = {v: _given(x) for v, x in zip(closed.jaxpr.invars, arrays, strict=False)}
    known |= {v: _given(x) for v, x in zip(closed.jaxpr.constvars, closed.consts, strict=True)}
    return _look(name, closed.jaxpr, {v: x for v, x in known.items() if x is not None})


def _given(value: Any) -> Value | None:
    return None if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else lambda: np.asarray(value)


def _look(name: str, jaxpr: Jaxpr, known: dict[Any, Value]) -> list[Value | None]:
    """Looks at the indices of a program, of which some variables are known; what is known of its outputs."""

    def of(atom: Any) -> Value | None:
        return (lambda: np.asarray(atom.val)) if isinstance(atom, Literal) else known.get(atom)

    eqns: Any = jaxpr.eqns
    made: dict[Any, Any] = {}
    for eqn in eqns:
        kind, given = eqn.primitive.name, [of(atom) for atom in eqn.invars]
        shape: Any = getattr(eqn.invars[0].aval, "shape", ()) if eqn.invars else ()
        sizes: Any = eqn.params.get("slice_sizes", ())
        if kind == "gather" and eqn.params["mode"] == GatherScatterMode.PROMISE_IN_BOUNDS and given[1] is not None:
            _tell_of_the_end(name, eqn.invars[1], made, of)
            for k, dimension in enumerate(eqn.params["dimension_numbers"].start_index_map):
                if sizes[dimension] == 1 and eqn.invars[1].aval.size <= MOST_NUMBERS:
                    _check(name, given[1], k, shape[dimension])
        elif kind.startswith("scatter") and given[1] is not None and not _is_of_nonzero(eqn):
            told = eqn.params["dimension_numbers"].scatter_dims_to_operand_dims
            for k, dimension in enumerate(told):
                if eqn.params["mode"] == GatherScatterMode.FILL_OR_DROP and eqn.invars[1].aval.size <= MOST_NUMBERS:
                    _warn_of_dropped(name, given[1], k, shape[dimension])
        elif kind == "dynamic_slice":
            for dimension, index in enumerate(given[1:]):
                if sizes[dimension] == 1 and index is not None:
                    _check(name, index, None, shape[dimension])
        made |= dict.fromkeys(eqn.outvars, eqn)
        found: list[Value | None] = [None] * len(eqn.outvars)
        if kind in _KNOWN and None not in given:
            fn = _KNOWN[kind]
            found = [_once(fn, given, {} if isinstance(fn, np.ufunc) else eqn.params)]
        elif kind == "scan":
            _look_at_steps(name, eqn.params, given)
            found = _by_jax(eqn, given)
        elif kind in _COMPUTED_BY_JAX:
            found = _by_jax(eqn, given)
        elif kind != "cond":  # a branch that is not taken may index as it likes
            inner = next((p for p in eqn.params.values() if isinstance(p, Jaxpr | ClosedJaxpr)), None)
            if inner is not None and len(_open(inner)[0].invars) == len(given):
                found = _look_into(name, inner, given)
        known.update({v: x for v, x in zip(eqn.outvars, found, strict=False) if x is not None})
    return [of(atom) for atom in jaxpr.outvars]


def _tell_of_the_end(name: str, index: Any, made: Mapping[Any, Any], of: Callable[[Any], Value | None]) -> None:
    """Warn of a -1 among others: `made` has the operation behind a variable, and JAX adds the size by a selection."""
    while index in made and made[index].primitive.name in ("broadcast_in_dim", "reshape", "convert_element_type"):
        index = made[index].invars[0]
    if index not in made or made[index].primitive.name != "select_n" or not 1 < index.aval.size <= MOST_NUMBERS:
        return
    given = next((computed(x) for x in map(of, made[index].invars[1:2]) if x is not None), None)
    if given is not None and given.dtype.kind == "i" and (given == -1).any() and given.max() > 0:
        tell_of_the_end(name)


def _is_of_nonzero(eqn: Any) -> bool:
    """Whether JAX's `nonzero` makes it, or `tril_indices` by that: what is beyond its size is left out by design."""
    frames = getattr(eqn.source_info.traceback, "frames", ())
    return any(f.function_name == "nonzero" and "jax" in f.file_name for f in frames)


def _by_jax(eqn: Any, given: Sequence[Value | None]) -> list[Value | None]:
    """What an operation gives, computed by JAX once it is asked for; nothing where an input is not known."""
    whole = all(jnp.issubdtype(v.aval.dtype, jnp.integer) or v.aval.dtype == bool for v in eqn.outvars)
    if None in given or not (whole or eqn.primitive.name == "sort"):
        return [None] * len(eqn.outvars)

    def run(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        found = eqn.primitive.bind(*map(jnp.asarray, inputs), **eqn.params)
        return tuple(map(np.asarray, found if eqn.primitive.multiple_results else [found]))

    kept: list[tuple[np.ndarray, ...]] = []

    def value(k: int) -> np.ndarray:
        if not kept:
            kept.append(run(*(x() for x in given if x is not None)))
        return kept[0][k]

    return [functools.partial(value, k) for k in range(len(eqn.outvars))]


def _open(inner: Any) -> tuple[Jaxpr, Sequence[Any]]:
    return (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())


def _look_into(name: str, inner: Any, given: Sequence[Value | None]) -> list[Value | None]:
    jaxpr, consts = _open(inner)
    known = dict(zip(jaxpr.invars, given, strict=True)) | {
        v: _given(x) for v, x in zip(jaxpr.constvars, consts, strict=True)
    }
    return _look(name, jaxpr, {v: x for v, x in known.items() if x is not None})


def _look_at_steps(name: str, params: Mapping[str, Any], given: Sequence[Value | None]) -> None:
    """The steps of a loop at which some of its whole numbers are the least or the largest."""
    num_consts, num_carry = _sizes(params)
    inputs: Any = _open(params["jaxpr"])[0].invars
    first = num_consts + num_carry
    fixed = [*given[:num_consts], *[None] * num_carry]
    rows = [
        x if x is not None and np.issubdtype(v.aval.dtype, np.integer) else None
        for x, v in zip(given[first:], inputs[first:], strict=True)
    ]
    steps = set[int]()
    for row in rows:
        found = None if row is None else computed(row)
        if found is not None and found.size:
            flat = found.reshape(params["length"], -1)
            steps |= {int(flat.max(1).argmax()), int(flat.min(1).argmin())}
    for step in steps:
        now = [None if x is None else _once(lambda x, step=step: x[step], [x], {}) for x in rows]
        _look_into(name, params["jaxpr"], [*fixed, *now])


def _sizes(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many of a loop's inputs are constants of it, and how many it carries."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # from JAX 0.12 on
    return len(consts), len(carry)


def _once(fn: Callable[..., Any], given: Sequence[Any], params: Mapping[str, Any]) -> Value:
    kept: list[np.ndarray] = []

    def value() -> np.ndarray:
        if not kept:
            kept.append(np.asarray(fn(*(x() for x in given), **params)))
        return kept[0]

    return value


def computed(value: Value) -> np.ndarray | None:
    """The array; None where an operation on the way is of a form that is not known."""
    try:
        with np.errstate(all="ignore"):
            return value()
    except (NotImplementedError, TypeError, ValueError):
        return None


def _outside(index: Value, column: int | None, size: int) -> int | None:
    """An index that is out of bounds; None where there is none, as far as is known."""
    found = computed(index)
    if found is None:
        return None
    found = found if column is None else found[..., column]
    least, largest = (int(found.min()), int(found.max())) if found.size else (0, 0)
    if least >= 0 and largest < size:
        return None
    return largest if largest >= size else least - size  # the size was added to what is below zero


def _warn_of_dropped(name: str, index: Value, column: int, size: int) -> None:
    bad = _outside(index, column, size)
    if bad is not None:
        warnings.warn(
            f"{name[:40]}: an update at index {bad} of an array of size {size} is left out, as JAX does for what is "
            "out of bounds: see that this is meant",
            stacklevel=8,
        )


def _check(name: str, index: Value, column: int | None, size: int) -> None:
    bad = _outside(index, column, size)
    if bad is None:
        return
    raise ArgumentError(
        f"{name[:40]} could not run: index {bad} is out of bounds for an array of size {size}, of which JAX would take "
        f"the nearest row: count from 0 to {size - 1}, or write jnp.clip around the index where that is meant"
    )
