"""A graph without what it need not compute, the same to the last bit.

Programs of distributions expand to shapes that are there already, multiply by one, and add to zero; in
a graph that runs operation by operation each of these costs as much as a small one that does something.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from vi_reparam_pyro.capture.witness import Witness, places, zeros
from vi_reparam_pyro.ops.noise import DRAWS

Array = Any

_aten = torch.ops.aten

_SAME = (_aten.detach.default, _aten.lift_fresh_copy.default, _aten.alias.default)
"""Without autograd these are their argument."""

_SHAPED = (_aten.view.default, _aten._unsafe_view.default, _aten.expand.default, _aten.clone.default)
"""These are their argument where that has the form already."""

_SUMS = (_aten.sum.default, _aten.sum.dim_IntList)
"""So are these, of nothing but one number each."""

_FILLED = (_aten.ones_like.default, _aten.zeros_like.default)
"""These take no more than the form of their argument."""

_NEUTRAL: dict[Any, float] = {
    _aten.mul.Tensor: 1.0,
    _aten.div.Tensor: 1.0,
    _aten.add.Tensor: 0.0,
    _aten.sub.Tensor: 0.0,
    _aten.mul.Scalar: 1.0,
    _aten.div.Scalar: 1.0,
    _aten.pow.Tensor_Scalar: 1.0,
}
"""The number with which these are their argument."""


def simplify(graph: GraphModule, run: Witness) -> None:
    """Take out constants of constants, operations that change nothing, and what is computed twice.

    What is written to, and all that shares its place, stays as it is.

    Args:
        graph: flat; it is changed.
        run: what was seen of it.
    """
    fixed: dict[Node, Any] = {}
    known: dict[Any, Node] = {}
    for node in list(graph.graph.nodes):
        touched = (node, *node.all_input_nodes)
        if any(places(run.forms[n]) & run.written.keys() for n in touched):
            continue
        if node.op == "get_attr":
            fixed[node] = getattr(graph, str(node.target))
        elif node.op != "call_function":
            continue
        elif _is_its_argument(node, run):
            _replace(graph, node, node.args[0])
        elif node.target in DRAWS:
            continue
        elif node.target in _FILLED:
            with torch.no_grad():
                fixed[node] = node.target(zeros(run.forms[node]), **node.kwargs)  # type: ignore[operator]
        elif all(n in fixed for n in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: fixed[n])
            with torch.no_grad():
                fixed[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        elif (earlier := known.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)) is not node:
            _replace(graph, node, earlier)
    # a list of tensors goes with the items that are taken from it
    single = [n for n in fixed if n.op == "call_function" and isinstance(fixed[n], torch.Tensor)]
    for number, node in enumerate(single):
        name = f"_folded{number}"
        graph.register_buffer(name, fixed[node].detach())
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(name)
        _replace(graph, node, constant)
    _own_results(graph, run)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _own_results(graph: GraphModule, run: Witness) -> None:
    """Results in places of their own, for who gets a gradient may write to it."""
    (output,) = (n for n in graph.graph.nodes if n.op == "output")
    taken = {place for n, seen in run.forms.items() if n.op in ("placeholder", "get_attr") for place in places(seen)}
    results = []
    for node in output.args[0]:
        own = places(run.forms[node]) if node in run.forms else set()
        if not own or own & taken:
            with graph.graph.inserting_before(output):
                node = graph.graph.call_function(_aten.clone.default, (node,))
        taken |= own
        results.append(node)
    output.args = (type(output.args[0])(results),)


def _is_its_argument(node: Node, run: Witness) -> bool:
    if node.target in _SAME:
        return True
    if not node.args or not isinstance(node.args[0], Node) or run.forms[node] != run.forms[node.args[0]]:
        return False
    if node.target in (*_SHAPED, *_SUMS):
        return True
    other = node.args[1] if len(node.args) > 1 else None
    return isinstance(other, (int, float)) and other == _NEUTRAL.get(node.target)


def _replace(graph: GraphModule, node: Node, by: Any) -> None:
    node.replace_all_uses_with(by)
    graph.graph.erase_node(node)
