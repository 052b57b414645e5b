"""Refusals of options that cannot be used, in one wording."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from numbers import Integral
from pathlib import Path
from typing import Any

from vi_reparam.errors import ArgumentError, ViReparamError


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
    if not is_above(value, 0.0):
        raise ArgumentError(f"{_written(name, value, owner)}: expected a positive number")


def is_above(value: Any, least: float, *, or_at: bool = False) -> bool:
    """Whether a value is a number above another, or at it; False for what is no number."""
    try:
        return bool(value >= least if or_at else value > least)
    except (TypeError, ValueError):
        return False


def check_memory(what: str, numbers: int, mend: str, kind: type[ViReparamError] = ArgumentError) -> None:
    """Refuse so many numbers of eight bytes, before they are made.

    Raises:
        ViReparamError: of this kind, if they would not fit into memory.
    """
    needed, free = 8 * numbers, free_memory()
    if needed > free:
        raise kind(f"{what} would hold about {needed / 1e9:,.0f} GB, and {free / 1e9:,.0f} GB are free: {mend}")


def free_memory() -> int:
    """Bytes that this machine could still give; all that it has, where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**34


def tell_of_the_end(name: str) -> None:
    """Warn of a row -1 among others: pandas writes it for a group that is missing."""
    warnings.warn(
        f"{name[:40]}: index -1 counts from the end: it takes the last row, where pandas' codes and factorize "
        "say -1 for what is missing: drop those rows, or give them a group",
        stacklevel=8,
    )


def _written(name: str, value: Any, owner: str) -> str:
    return f"{owner}({name}={value!r})" if owner else f"{name}={value!r}"
