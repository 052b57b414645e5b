"""The invertible network of a flow, as a framework's libraries have it."""

from __future__ import annotations

from typing import Protocol

from vi_reparam.backend.ops import Array, Key


class Bijection(Protocol):
    """An invertible function of a vector, given a row of features or None."""

    def at(self, x: Array, row: Array | None) -> tuple[Array, Array]:
        """y and log|J| of x, of shapes ``[D]`` and ``[]``."""
        ...

    def inverse(self, y: Array, row: Array | None) -> Array:
        """x of y. Only kinds with a cheap inverse are asked."""
        ...


class Network(Protocol):
    """A bijection without its weights, which are the guide's parameters."""

    names: tuple[str, ...]
    """Of the weights."""

    def init(self, key: Key) -> dict[str, Array]:
        """The weights at the start, by name."""
        ...

    def bind(self, weights: dict[str, Array]) -> Bijection:
        """The bijection with these weights."""
        ...
