"""Refusals of options that cannot be used, in one wording."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral
from typing import Any

from vi_reparam.errors import ArgumentError


def check_choice(name: str, value: Any, known: Collection[Any], owner: str = "") -> None:
    """Refuse an option of `owner` that is none of the known ones.

    Raises:
        ArgumentError: naming those that are.
    """
    if value not in known:
        raise ArgumentError(f"{_written(name, value, owner)}: expected one of {tuple(known)}")


def check_integer(name: str, value: Any, owner: str = "", *, least: int = 1) -> None:
    """Refuse an option of `owner` that is no integer of at least `least`.

    Raises:
        ArgumentError: saying so.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{_written(name, value, owner)}: expected an integer of at least {least}")


def check_positive(name: str, value: Any, owner: str) -> None:
    """Refuse an option of `owner` that is not above zero.

    Raises:
        ArgumentError: saying so.
    """
    if not value > 0.0:
        raise ArgumentError(f"{_written(name, value, owner)}: expected a positive number")


def _written(name: str, value: Any, owner: str) -> str:
    return f"{owner}({name}={value!r})" if owner else f"{name}={value!r}"
