"""What the operations of a graph give: of what form, and where it lives. The values themselves are let go."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

Array = Any


@dataclass(frozen=True)
class Form:
    """A tensor without its numbers.

    Attributes:
        place: what tells its storage from others of the same run; None for zeros that have none.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    place: int | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


Seen = Form | tuple[Any, ...] | str
"""A tensor's form, those of a list of them, or the text of anything else."""

Forms = dict[Node, Seen]


class Witness(Interpreter):
    """Runs a graph once, holding no value longer than the graph itself would.

    What an operation gives lives where one of its arguments lives, or in a place of its own.

    Attributes:
        forms: of every node's value.
        written: for each place that is written to, by which nodes.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.forms: Forms = {}
        self.written: dict[int, set[Node]] = {}
        self._pointers: list[int] = []  # by place; memory that was let go is used again
        self._lasting: dict[int, int] = {}  # places of arguments and constants, by pointer

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        near = {self._pointers[place]: place for a in n.all_input_nodes for place in places(self.forms[a])}
        self.note(n, value, near)
        schema = getattr(n.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            for argument, declared in zip(n.args, schema.arguments, strict=False):
                if declared.alias_info is not None and declared.alias_info.is_write and isinstance(argument, Node):
                    for place in places(self.forms[argument]):
                        self.written.setdefault(place, set()).add(n)
        return value

    def note(self, node: Node, value: Any, near: dict[int, int] | None = None) -> None:
        """Note what a node gives.

        Args:
            near: the places of its arguments, by pointer.
        """
        near = {} if near is None else near
        self.forms[node] = self._seen(value, near)
        if node.op != "call_function":
            self._lasting |= near

    def _seen(self, value: Any, near: dict[int, int]) -> Seen:
        if isinstance(value, (list, tuple)):
            return tuple(self._seen(v, near) for v in value)
        if not isinstance(value, torch.Tensor):
            return repr(value)
        # forward derivatives hold zeros without a place
        pointer = 0 if value._is_zerotensor() else value.untyped_storage()._cdata
        place = near.get(pointer, self._lasting.get(pointer))
        if pointer and place is None:
            place = near[pointer] = len(self._pointers)
            self._pointers.append(pointer)
        return Form(tuple(value.shape), value.stride(), value.dtype, value.device, place)


def places(seen: Seen) -> set[int]:
    """Where the tensors of a value live."""
    if isinstance(seen, tuple):
        return set().union(*(places(s) for s in seen))
    return {seen.place} if isinstance(seen, Form) and seen.place is not None else set()


def zeros(seen: Seen) -> Array:
    """A tensor of this form."""
    if not isinstance(seen, Form):
        raise TypeError(f"{seen} is no tensor")
    return torch.empty_strided(seen.shape, seen.stride, dtype=seen.dtype, device=seen.device).zero_()
