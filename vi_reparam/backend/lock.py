"""Frameworks keep what runs in global lists: one thread at a time runs programs, a step or a call of it at once."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from vi_reparam.backend.blas import one_thread

C = TypeVar("C", bound=type)

_LOCK = threading.RLock()


def one_at_a_time(kind: C) -> C:
    """A class whose public methods run in one thread at a time, together with those of all such classes."""
    for name, method in vars(kind).copy().items():
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(kind, name, (_by_parts if inspect.isgeneratorfunction(method) else _whole)(method))
    return kind


def _whole(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with _LOCK, one_thread():
            return method(*args, **kwargs)

    return locked


def _by_parts(method: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    @functools.wraps(method)
    def locked(*args: Any, **kwargs: Any) -> Iterator[Any]:
        parts = method(*args, **kwargs)
        while True:
            with _LOCK, one_thread():
                try:
                    part = next(parts)
                except StopIteration:
                    return
            yield part

    return locked


def _anew() -> None:
    """In a process that was forked, no thread is left that could hold it."""
    global _LOCK
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)
