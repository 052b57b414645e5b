"""The loss and gradient of one step: by the handlers at first, then as a graph that was captured."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from vi_reparam.backend.data import Call, Data
from vi_reparam.backend.engine import Task
from vi_reparam_pyro.capture.capture import CannotCapture, Captured, require_equal
from vi_reparam_pyro.capture.rolling import OPERATION
from vi_reparam_pyro.host.params import Parameters, using
from vi_reparam_pyro.lanes.seeding import mix, salted

Array = Any

WORTH_CAPTURING = 100
"""Steps to go below which writing one down costs more than it saves."""

WORTH_SCRIPTING = 200
"""Steps to go below which a script costs more than it saves: a tenth of a millisecond an operation, for one or two
microseconds of it at every replay."""

WORTH_COMPILING = 15.0
"""Seconds to gain below which compiling costs more than it saves, for a small graph."""

LARGE = 500
"""Operations of a graph that takes twice as long to compile as a small one."""

LARGEST = 3_000
"""Operations of a graph that is compiled whole, which is then the fastest, before its loops are looked for."""

WORTH_ROLLING = 20.0
"""Seconds to gain below which one turn of what repeats is not compiled either, which takes about that."""

WORTH_A_STRETCH = 4.0
"""And what each stretch must gain of it."""

PROGRAM_KEY = mix(20170613)
"""The key of every step's program; the salt tells steps apart."""


def salt(key: int, step: int) -> int:
    """What makes a step's noise its own."""
    return mix(key ^ mix(step + 1))


class Gradient:
    """Puts the gradient of a step at the leaves.

    After two steps the third is also captured (`capture.Captured`), and the capture replaces the
    handlers if it gives the same loss and gradient at noise that it was not made with. Programs
    that read values in Python or hold networks stay with the handlers.

    Args:
        task: what is fitted; `data`: to what.
        num_steps: of the whole fit.

    Attributes:
        how: ``"captured"``, ``"compiled"``, ``"captured, 31 + 30 stretches compiled"`` where turns of loops are,
            ``"captured, replayed as one CUDA graph"``, or why it is none of them.
    """

    def __init__(self, task: Task, data: Data, num_steps: int) -> None:
        self.task, self.data, self.num_steps = task, data, num_steps
        self.how = "by the handlers: too few steps"
        self._fed = False
        self._graph: Captured | None = None
        self._spec: Any = None
        self._unused: frozenset[int] = frozenset()
        self._seen = 0

    def feed(self, data: Data) -> None:
        """Other data from now on, of the same form: inputs of the graph, and no constants of it."""
        self.data, self._fed = data, True

    def __call__(self, params: Parameters, key: int, step: int, averages: dict[str, Any]) -> Array:
        """The loss at a step; its gradient goes to the leaves, and what it averages to `averages`.

        Args:
            key: from which the noise of all steps follows.
        """
        with salted(salt(key, step)):
            self._seen += 1
            if self._graph is None and self._seen == 3 and self.num_steps - step >= WORTH_CAPTURING:
                return self._try(params, key, step, averages)
            if self._graph is None:
                return self._by_handlers(params, averages)
            found = self._graph(*self._inputs(params, averages))
        return self._put(params, found, averages)

    def _inputs(self, params: Parameters, averages: dict[str, Any]) -> tuple[Array, ...]:
        numbers, self._spec = pytree.tree_flatten(averages)
        fed = self.data.arrays if self._fed else ()
        return *(leaf.detach() for leaf in params.free.values()), *numbers, *fed

    def _put(self, params: Parameters, found: tuple[Array, ...], averages: dict[str, Any]) -> Array:
        leaves = list(params.free.values())
        for number, (leaf, grad) in enumerate(zip(leaves, found[1 : 1 + len(leaves)], strict=True)):
            leaf.grad = None if number in self._unused else grad  # optimizers tell none from zero
        averages.update(pytree.tree_unflatten(list(found[1 + len(leaves) :]), self._spec))
        return found[0]

    def _by_handlers(self, params: Parameters, averages: dict[str, Any]) -> Array:
        for leaf in params.free.values():
            leaf.grad = None
        loss = self._loss(params, averages, self.data.call)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    def _loss(self, params: Parameters, averages: dict[str, Any], call: Call) -> Array:
        """The loss by the handlers. The objective is called here alone."""
        task = self.task
        with using(params.constrained()):
            return task.objective.surrogate(PROGRAM_KEY, task.model, task.guide, *call, averages=averages)[0]

    def _try(self, params: Parameters, key: int, step: int, averages: dict[str, Any]) -> Array:
        """A step by the handlers, and its capture beside it."""
        names, constraints, leaves = list(params.free), params.constraints, list(params.free.values())
        inputs = self._inputs(params, averages)
        fed = len(self.data.arrays) if self._fed else 0
        loss = self._by_handlers(params, averages)
        expected = [loss, *(leaf.grad for leaf in leaves)]

        def function(*inputs: Array) -> tuple[Array, ...]:
            own = [x.detach().requires_grad_() for x in inputs[: len(names)]]
            averages = pytree.tree_unflatten(list(inputs[len(names) : len(inputs) - fed]), self._spec)
            call = self.data.join(inputs[len(inputs) - fed :]) if fed else self.data.call
            loss = self._loss(Parameters(dict(zip(names, own, strict=True)), constraints), averages, call)
            grads = torch.autograd.grad(loss, own, allow_unused=True)
            grads = [torch.zeros_like(x) if g is None else g for x, g in zip(own, grads, strict=True)]
            return loss.detach(), *grads, *pytree.tree_leaves(averages)

        try:
            self._require_capturable(leaves)
            with salted(salt(key, step - 1)):
                graph = Captured(function, inputs)
            require_equal(expected, graph(*inputs))
            if loss.device.type != "cpu":
                graph.record(*inputs)
            else:
                _compile_if_worth_it(graph, self.num_steps - step, inputs)
                if self.num_steps - step >= WORTH_SCRIPTING:
                    graph.script(*inputs)
            require_equal(expected, graph(*inputs))
        except CannotCapture as error:
            self.how = f"by the handlers: {error}"
            return loss
        self._unused = frozenset(i for i, leaf in enumerate(leaves) if leaf.grad is None)
        self._graph, self.how = graph, graph.how
        return loss

    def _require_capturable(self, leaves: list[Array]) -> None:
        structure = self.task.objective.structure(self.task.model, self.task.guide, *self.data.call)
        if not structure.in_lanes:
            raise CannotCapture("the program reads a drawn value in Python")
        if any(isinstance(leaf, torch.nn.Parameter) for leaf in leaves):
            raise CannotCapture("a network's weights train in place")


def _compile_if_worth_it(graph: Captured, replays: int, inputs: tuple[Array, ...]) -> None:
    """All of a graph, or one turn of each loop in one too large for that, where the replays to go pay for it."""
    pays = replays * graph.gain() > WORTH_COMPILING * (1.0 + graph.size / LARGE)
    if pays and graph.size <= LARGEST:
        return graph.compile(*inputs)
    if graph.size > LARGE and replays * OPERATION * graph.size > WORTH_ROLLING:
        found, forms = graph.stretches(*inputs)
        found = [stretch for stretch in found if replays * stretch.gain > WORTH_A_STRETCH]
        if replays * sum(stretch.gain for stretch in found) > WORTH_ROLLING:
            return graph.compile_stretches(found, forms, *inputs)
    if pays:
        graph.compile(*inputs)
