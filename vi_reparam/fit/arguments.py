"""What people have for data, as arrays; or refused in one line that says what to write."""

from __future__ import annotations

import array as arrays
import warnings
from collections.abc import Callable, ItemsView, KeysView, ValuesView
from numbers import Number
from typing import Any

import numpy as np

from vi_reparam.backend.data import Call
from vi_reparam.errors import ArgumentError, first_line

RESOLUTION = 1e-3
"""Steps between numbers, as a part of the range that they take, above which something of them is lost."""


def taken(args: Any, kwargs: Any, is_own: Callable[[Any], bool], kept: Callable[[np.dtype], Any]) -> Call:
    """A call's arguments: series, lists of numbers and other libraries' arrays as NumPy's, which a framework takes.

    A list of numbers is data, and becomes an array; a tuple stays one.

    Args:
        is_own: whether a value is the framework's own, which is left as it is.
        kept: the kind of number that the framework makes of one.

    Raises:
        ArgumentError: naming the argument, for what is no array of numbers: frames, text, objects, complex numbers,
            dates, generators, masked arrays; for numbers that the framework would change.
    """

    def whole(value: Any, where: str) -> np.ndarray:
        array = _array(value, where)
        _look_at_range(array, np.dtype(kept(array.dtype)), where)
        return array

    def walk(value: Any, where: str) -> Any:
        kind = type(value)
        if value is None or kind in (int, float, bool, str) or isinstance(value, type) or is_own(value):
            return value
        if kind is dict:
            return {key: walk(part, f"{where}[{key!r}]") for key, part in value.items()}
        if kind is list and value and _is_rectangle(value):
            return whole(np.asarray(value), where)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            names: Any = value._fields  # type: ignore[attr-defined]
            return kind(*(walk(part, f"{where}.{name}") for name, part in zip(names, value, strict=True)))
        if kind is list and any(x is None for x in value) and all(x is None or isinstance(x, Number) for x in value):
            raise ArgumentError(f"{where} is a list with None in it: give np.nan for what is missing, or leave it out")
        if kind in (list, tuple):
            return kind(walk(part, f"{where}[{i}]") for i, part in enumerate(value))
        if isinstance(value, ValuesView | KeysView | ItemsView):
            raise ArgumentError(f"{where} is a {kind.__name__}: give data as an array, np.asarray([*x])")
        if isinstance(value, np.generic | complex):
            whole(np.asarray(value), where)
            return value
        return whole(_foreign(value, where), where) if _is_data(value) else value

    return tuple(walk(x, f"argument {i}") for i, x in enumerate(args)), {
        name: walk(x, f"argument {name!r}") for name, x in kwargs.items()
    }


_ADVICE = {
    "c": "of complex numbers: give their real and their imaginary parts as two arrays",
    "O": "of objects: give numbers, by .astype(float), with np.nan for what is missing",
    "U": "of text: give numbers, such as the codes of np.unique(x, return_inverse=True)[1]",
    "S": "of text: give numbers, such as the codes of np.unique(x, return_inverse=True)[1]",
    "T": "of text: give numbers, such as the codes of np.unique(x, return_inverse=True)[1]",
    "M": "of dates: give numbers, such as (x - x[0]) / np.timedelta64(1, 'D')",
    "m": "of spans of time: give numbers, such as x / np.timedelta64(1, 'D')",
}


def _is_rectangle(values: list[Any]) -> bool:
    """Whether nested lists hold numbers alone, as many in each row."""
    if all(type(value) is list for value in values):
        return all(value and _is_rectangle(value) for value in values) and len({len(value) for value in values}) == 1
    return all(isinstance(value, Number) for value in values)


def _is_data(value: Any) -> bool:
    """Whether it holds what could be an array, or gives it bit by bit."""
    signs = ("__array__", "__next__", "toarray", "data_vars", "collect_schema")
    return isinstance(value, memoryview | arrays.array) or any(hasattr(value, sign) for sign in signs)


def _foreign(value: Any, where: str) -> np.ndarray:
    """Data of any library as NumPy's."""
    kind = f"{type(value).__module__.partition('.')[0]} {type(value).__name__}"
    if any(hasattr(value, sign) for sign in ("columns", "data_vars", "collect_schema")):
        raise ArgumentError(
            f"{where} is a {kind}: give an array, x.to_numpy(), or its columns, {{'a': x['a'].to_numpy(), ...}}"
        )
    if hasattr(value, "toarray"):
        raise ArgumentError(f"{where} is a sparse {type(value).__name__}: give x.toarray()")
    if hasattr(value, "__next__"):
        raise ArgumentError(
            f"{where} is a {type(value).__name__}, which gives its values once: give an array of all of them; for "
            "batches of them, vr.batches(...)"
        )
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.getmaskarray(value).any():
            raise ArgumentError(
                f"{where} is an array with masked values: give x.filled(0.0), and the mask as another argument, for "
                "the model to mask them"
            )
        return np.asarray(value.data)
    try:
        array = np.asarray(value)
        if array.dtype.hasobject and getattr(getattr(value, "dtype", None), "kind", "O") in "iufb":  # pandas' own NA
            array = value.to_numpy(dtype=float, na_value=np.nan)
    except Exception as error:  # any library's
        raise ArgumentError(
            f"{where} is a {kind}, and no array: {first_line(error)[:100]}; give a NumPy array"
        ) from None
    return array


def _array(array: np.ndarray, where: str) -> np.ndarray:
    """An array of numbers of a kind that frameworks know."""
    if array.dtype.names or array.dtype.type is np.void:
        raise ArgumentError(f"{where} is a structured array: give its columns, {{'a': x['a'], ...}}")
    if array.dtype.kind == "O" and not array.size:
        raise ArgumentError(f"{where} is empty, and of no kind: give at least one number, or np.zeros(0)")
    kind = "U" if array.dtype.kind == "O" and any(isinstance(x, str) for x in array.flat) else array.dtype.kind
    if kind in _ADVICE:
        raise ArgumentError(f"{where} is an array {_ADVICE[kind]}")
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def _look_at_range(array: np.ndarray, kept: np.dtype, where: str) -> None:
    """Refuse numbers that a narrower kind does not hold, and warn of those that it does not tell apart."""
    if array.dtype.kind not in "iuf" or kept.kind not in "iuf" or kept == array.dtype or not array.size:
        return
    whole, finite = kept.kind in "iu", array[np.isfinite(array)]
    low, high = (finite.min(), finite.max()) if finite.size else (array.dtype.type(0), array.dtype.type(0))
    limits = np.iinfo(kept) if whole else np.finfo(kept)
    if not (int(limits.min) <= int(low) and int(high) <= int(limits.max)):
        worst = low if int(low) < int(limits.min) else high
        raise ArgumentError(
            f"{where} holds {worst:{'d' if whole else '.3g'}}, which {kept} does not: give other units, or differences "
            "from the first, or work in double precision"
        )
    if not whole and 0.0 < high - low < np.finfo(kept).eps * max(abs(low), abs(high)) / RESOLUTION:
        warnings.warn(
            f"{where} varies by little beside its mean, and {kept} does not tell all of its numbers apart: give "
            "differences from the mean, or work in double precision",
            stacklevel=11,
        )


def not_finite(name: str, array: np.ndarray) -> list[str]:
    """What is to be said of NaN or infinite values in an argument; nothing where there are none."""
    is_number = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    bad = int(array.size - np.isfinite(array).sum()) if is_number else 0
    return [f"argument {name} holds {bad} NaN or infinite values of {array.size}"] if bad else []
