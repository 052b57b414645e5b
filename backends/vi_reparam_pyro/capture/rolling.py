"""What repeats in a flat graph, cut out once and put back as calls of one function.

A loop of Python, over the steps of a path or over time, is written down once for every turn, and its
derivative again. What one turn came to can be compiled in seconds where all turns together cannot,
and then takes every turn's place.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from vi_reparam_pyro.capture.repetitions import FEWEST, SMALLEST, repetitions
from vi_reparam_pyro.capture.witness import Form, Forms, Witness, places
from vi_reparam_pyro.ops.noise import DRAWS

Array = Any

OPERATION = 3e-6
"""Seconds that an operation of a replay takes less on a CPU once it is part of a compiled function."""

CALL = 25e-6
"""Seconds that a call of a compiled function takes."""


class Stretch:
    """What the turns of a repetition have in common, as one function.

    Operations whose arguments other than tensors differ between turns, and those that draw noise, stay
    outside: before the function where they need nothing of it, else after it together with all that
    needs them.

    Args:
        turns: the operations of each.
        places: of the operations of a turn, whether they are before the function (-1), inside (0) or
            after it (1).

    Attributes:
        before, after: the operations of each turn that stay.
        inputs: the nodes that the function takes in each turn.
        outputs: the nodes that others need of it.
        module: the function, flat; it returns a tuple.
    """

    def __init__(self, turns: list[list[Node]], places: list[int]) -> None:
        def of(which: int) -> list[list[Node]]:
            return [[node for node, place in zip(turn, places, strict=True) if place == which] for turn in turns]

        self.turns = turns
        self.before, self.inside, self.after = of(-1), of(0), of(1)
        owns = [set(nodes) for nodes in self.inside]
        used = [
            any(not own.issuperset(node.users) for node, own in zip(nodes, owns, strict=True))
            for nodes in zip(*self.inside, strict=True)
        ]
        self.outputs = [[node for node, is_used in zip(turn, used, strict=True) if is_used] for turn in self.inside]
        needed = [
            [n for node in turn for n in _argument_nodes(node) if n not in own]
            for turn, own in zip(self.inside, owns, strict=True)
        ]
        slots = list(zip(*needed, strict=True))
        distinct = list(dict.fromkeys(slots))  # one input for what is one tensor in every turn
        self.inputs = [[slot[number] for slot in distinct] for number in range(len(turns))]
        self.module = self._cut(slots, distinct)

    @property
    def gain(self) -> float:
        """About the seconds that a replay takes less once the function is compiled: from counts alone."""
        return len(self.turns) * (OPERATION * len(self.inside[0]) - CALL)

    def _cut(self, slots: list[Any], distinct: list[Any]) -> GraphModule:
        graph = Graph()
        holders = {slot: graph.placeholder(f"x{number}") for number, slot in enumerate(distinct)}
        outer = iter(slots)
        made: dict[Node, Node] = {}
        for node in self.inside[0]:
            given = iter([made[n] if n in made else holders[next(outer)] for n in _argument_nodes(node)])
            args, kwargs = map_arg((node.args, node.kwargs), lambda n, given=given: next(given))
            made[node] = graph.create_node("call_function", node.target, args, kwargs)
        graph.output(tuple(made[node] for node in self.outputs[0]))
        return GraphModule({}, graph)


def stretches(graph: GraphModule, run: Witness) -> list[Stretch]:
    """What repeats in a flat graph.

    Args:
        graph: flat; numbers that differ from turn to turn become tensors in it.
        run: what was seen of it on an example.
    """
    forms, written = run.forms, run.written
    nodes = [n for n in graph.graph.nodes if n.op == "call_function"]
    kinds: dict[Hashable, int] = {}
    tokens = [kinds.setdefault((node.target, forms[node]), len(kinds)) for node in nodes]
    runs = [[[nodes[i] for i in turn] for turn in r.turns()] for r in repetitions(tokens)]
    for turns in runs:
        _lift(graph, run, turns)
    made = [_stretch(turns, forms) for turns in runs]
    homes: dict[int, list[Node]] = {place: [] for place in written}
    for node in graph.graph.nodes:
        for place in places(forms.get(node, ())) & written.keys():
            homes[place].append(node)
    return [s for s in made if s is not None and all(_keeps_order(s, homes[place], written[place]) for place in homes)]


_BY_A_NUMBER = tuple(getattr(torch.ops.aten, name).Tensor for name in ("add", "sub", "mul", "div"))


def _lift(graph: GraphModule, run: Witness, turns: list[list[Node]]) -> None:
    """A number that differs from turn to turn becomes a tensor of the graph, which a function can take."""
    for nodes in zip(*turns, strict=True):
        if any(n.target not in _BY_A_NUMBER or len(n.args) < 2 or isinstance(n.args[1], Node) for n in nodes):
            continue
        like = run.forms[nodes[0]]
        if len({repr(n.args[1]) for n in nodes}) == 1 or not isinstance(like, Form) or not like.dtype.is_floating_point:
            continue
        for node in nodes:
            name = f"_lifted_{node.name}"
            tensor = torch.tensor(node.args[1], dtype=like.dtype, device=like.device)
            graph.register_buffer(name, tensor)
            with graph.graph.inserting_before(node):
                constant = graph.graph.get_attr(name)
            run.note(constant, tensor)
            node.update_arg(1, constant)
    graph.recompile()


def rolled(graph: GraphModule, found: list[Stretch], functions: list[Callable[..., Any]]) -> GraphModule:
    """The graph with each turn of a stretch as a call of the stretch's function."""
    new = Graph()
    env: dict[Node, Node] = {}

    def copy(nodes: Iterable[Node]) -> None:
        for node in nodes:
            env[node] = new.node_copy(node, lambda n: env[n])

    begins = {turn[0]: (number, k) for number, s in enumerate(found) for k, turn in enumerate(s.turns)}
    inner = {node for s in found for turn in s.turns for node in turn}
    constants = [n for n in graph.graph.nodes if n.op == "get_attr"]
    copy(n for n in graph.graph.nodes if n.op == "placeholder")
    copy(constants)
    for node in graph.graph.nodes:
        if node in begins:
            number, k = begins[node]
            stretch = found[number]
            copy(stretch.before[k])
            call = new.call_module(f"_stretch{number}", tuple(env[n] for n in stretch.inputs[k]))
            for place, output in enumerate(stretch.outputs[k]):
                env[output] = new.call_function(operator.getitem, (call, place))
            copy(stretch.after[k])
        elif node not in inner and node not in env:
            copy([node])
    parts: dict[str, Any] = {str(n.target): getattr(graph, str(n.target)) for n in constants}
    parts |= {f"_stretch{number}": _Call(function) for number, function in enumerate(functions)}
    return GraphModule(parts, new)


class _Call(torch.nn.Module):
    """A function as a module, so that a graph can call it by name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = (function,)  # in a tuple, for it may be a module and is no part of this one

    def forward(self, *arguments: Array) -> Any:
        return self._function[0](*arguments)


def _argument_nodes(node: Node) -> list[Node]:
    """The nodes among its arguments in order, each as often as it is there."""
    found: list[Node] = []
    map_arg((node.args, node.kwargs), lambda n: found.append(n) or n)
    return found


def _keeps_order(stretch: Stretch, home: list[Node], writers: set[Node]) -> bool:
    """Whether what is read of a storage stays as it was: what writes inside a turn does so to what is made there.

    Args:
        home: the nodes that live in the storage, in order.
        writers: those that write to it.
    """
    for turn, inside, after in zip(stretch.turns, stretch.inside, stretch.after, strict=True):
        if writers.isdisjoint(turn):
            continue
        own, read = set(inside), {n for node in after for n in node.all_input_nodes}
        if home[0] not in own or not writers <= own or not set(home).isdisjoint(read):
            return False
    return True


def _stretch(turns: list[list[Node]], forms: Forms) -> Stretch | None:
    """The largest one of all turns, or of all but the first or the last."""
    of_turns = [_Turn(turn, forms) for turn in turns]
    best, size = None, 0
    for part in (slice(None), slice(1, None), slice(None, -1), slice(1, -1)):
        if len(some := of_turns[part]) < FEWEST:
            continue
        places = _places(some)
        if places.count(0) >= SMALLEST and places.count(0) * len(some) > size:
            best, size = (turns[part], places), places.count(0) * len(some)
    return None if best is None else Stretch(*best)


class _Turn:
    """What each operation of a turn is, but for which tensors come from outside the turn.

    Attributes:
        sources: for each operation, the numbers of those of the same turn that it needs.
        users: and of those that need it, with -1 for others.
        lists: whether it gives a list of tensors.
        never: whether it draws noise, or takes a list from outside: it is no part of a function then.
        exactly: all that makes it what it is.
    """

    def __init__(self, nodes: list[Node], forms: Forms) -> None:
        own = {node: number for number, node in enumerate(nodes)}
        self.sources = [[own[n] for n in node.all_input_nodes if n in own] for node in nodes]
        self.users = [[own.get(n, -1) for n in node.users] for node in nodes]
        self.lists = [not isinstance(forms[node], Form) for node in nodes]
        self.never = [
            node.target in DRAWS or any(n not in own and not isinstance(forms[n], Form) for n in node.all_input_nodes)
            for node in nodes
        ]
        self.exactly = [
            (
                repr(map_arg((node.args, node.kwargs), lambda n: f"%{own.get(n, 'outside')}")),
                tuple(forms[n] for n in _argument_nodes(node)),
            )
            for node in nodes
        ]


def _places(turns: list[_Turn]) -> list[int]:
    """For each operation of a turn: 0 inside the function, -1 before it, 1 after it."""
    numbers = range(len(turns[0].exactly))
    alone = {n for n in numbers if len({t.exactly[n] for t in turns}) > 1 or any(t.never[n] for t in turns)}
    while True:
        places: list[int] = []
        for n in numbers:
            sources = {places[source] for turn in turns for source in turn.sources[n]}
            if n in alone:
                places.append(1 if sources - {-1} else -1)
            else:
                places.append(1 if 1 in sources else 0)
        # a list of tensors is no result and no argument of a function
        divided = {
            n
            for turn in turns
            for n in numbers
            if turn.lists[n] and any((user < 0 or places[user] != 0) == (places[n] == 0) for user in turn.users[n])
        }
        divided |= {user for turn in turns for n in divided for user in turn.users[n] if user >= 0}
        if divided <= alone:
            return places
        alone |= divided
