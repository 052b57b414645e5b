"""A flat graph run by TorchScript's interpreter: the same operations in order, at a quarter of what Python takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter

Array = Any

_jit: Any = torch.jit


def scripted(graph: GraphModule, arguments: tuple[Array, ...]) -> Callable[..., Any]:
    """The graph as TorchScript; its noise stays noise, for an operator of it is called at every run.

    Args:
        graph: flat; its tensors are arguments of the script, which compares constants, each with each.
        arguments: what it is run on once.
    """
    held = [node for node in graph.graph.nodes if node.op == "get_attr"]
    constants = tuple(getattr(graph, str(node.target)) for node in held)

    def run(*tensors: Array) -> Any:
        # not the graph's own code: the tracer searches a frame's variables for each operation
        own = dict(zip(held, tensors[len(arguments) :], strict=True))
        return Interpreter(graph).run(*tensors[: len(arguments)], initial_env=own)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in newer torch of itself; of what it cannot see, of which there is nothing
        traced = _jit.trace(run, (*arguments, *constants), check_trace=False)

    def call(*tensors: Array) -> Any:
        with _jit.optimized_execution(False):  # no profiling runs, no fusion, nothing folded
            return traced(*tensors, *constants)

    return call
