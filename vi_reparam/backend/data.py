"""What a model is called with, as a backend takes it: which leaves are data, and for what a program is compiled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from vi_reparam.backend.ops import Args, Array, Ops

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


@dataclass(frozen=True, eq=False)
class Data:
    """A call's arguments, made the framework's own and checked. What is compiled for them is kept as long as they are.

    Attributes:
        args: positional arguments; `kwargs`: keyword arguments.
        form: equal for arguments of equal structure, shapes, dtypes and other values: what a program is compiled for.
        arrays: the leaves that a compiled program takes; the others are constants of it.
        join: the arguments again, with other arrays in place of `arrays`.
        doubts: what is not finite among them, in words.
    """

    args: Args
    kwargs: dict[str, Any]
    form: Hashable
    arrays: tuple[Array, ...] = ()
    join: Callable[[tuple[Array, ...]], Call] = field(default=None, repr=False)  # type: ignore[assignment]
    doubts: tuple[str, ...] = ()

    @property
    def call(self) -> Call:
        """The arguments themselves."""
        return self.args, self.kwargs

    def shapes(self, ops: Ops) -> Call:
        """The arguments, arrays as their shapes, for messages."""
        return ops.tree_map(lambda x: tuple(x.shape) if hasattr(x, "dtype") else x, self.call)


def leaf_form(leaf: Any) -> Hashable:
    """What a program is compiled for, of a leaf that is no array: equal for equal values."""
    try:
        hash(leaf)
    except (TypeError, ValueError):
        return id(leaf)
    return type(leaf), leaf


def bound_arguments(model: Callable, args: Args, kwargs: dict) -> dict[str, Any]:
    """A call's arguments by the names of the model's signature, numbered where it has none."""
    try:
        return dict(inspect.signature(model).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return {**{f"arg_{i}": arg for i, arg in enumerate(args)}, **kwargs}
