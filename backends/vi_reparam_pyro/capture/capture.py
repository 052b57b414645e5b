"""A step as a graph of tensor operations: written down once, replayed without handlers or autograd."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from vi_reparam_pyro.capture.replay import Replay
from vi_reparam_pyro.capture.rolling import Stretch, rolled, stretches
from vi_reparam_pyro.capture.script import scripted
from vi_reparam_pyro.capture.simplify import simplify
from vi_reparam_pyro.capture.witness import Form, Forms, Witness, zeros
from vi_reparam_pyro.lanes.seeding import mix, salted
from vi_reparam_pyro.ops import noise
from vi_reparam_pyro.ops.gamma_slope import SLOPES, WRITTEN_OUT, written_out

Array = Any
Function = Callable[..., tuple[Array, ...]]


OTHER_SALT = mix(19570413)
"""For a replay at noise that no step has."""


class CannotCapture(Exception):  # noqa: N818  (the fit goes on without)
    """Why a step stays as it is."""


class Captured:
    """A function of tensors, as the operations that it came to on an example.

    What it closes over is a constant of the graph, and so are the keys of its noise, which
    `seeding.salted` makes new at every replay.

    Args:
        function: from tensors to a tuple of tensors; it may differentiate inside.
        example: its arguments.

    Raises:
        CannotCapture: if it reads a tensor's value in Python, or draws from torch's global state.
    """

    def __init__(self, function: Function, example: tuple[Array, ...]) -> None:
        try:
            with noise.capturing() as loops, _one_fake_mode():
                graph = make_fx(function)(*example)
        except Exception as error:  # whatever torch cannot write down, the fit can still run
            raise CannotCapture(_first_line(error)) from error
        self._loops = noise.Loops(loops)
        for node in graph.graph.nodes:
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise CannotCapture(f"{node.target} draws from torch's global state")
        run = _witnessed(graph, example)
        simplify(graph, run)
        self._graph = graph
        self._sizes = {n.name: form.size for n, form in run.forms.items() if isinstance(form, Form)}
        self._run: Any = self._graph
        self.how = "captured"

    def __call__(self, *arguments: Array) -> tuple[Array, ...]:
        with torch.no_grad():
            return self._run(*arguments)

    @property
    def size(self) -> int:
        """How many operations it has for a compiler."""
        return len(self._graph.graph.nodes) + WRITTEN_OUT * len(self._slopes())

    def gain(self) -> float:
        """About the seconds that a replay takes less on a CPU once it is compiled.

        From sizes alone, so that equal programs are treated alike; by the steps of
        `benchmarks/step_pyro.py`, of small arrays and of large ones.
        """
        each = sum(4e-7 + 1.5e-10 * self._sizes.get(node.name, 0) for node in self._graph.graph.nodes)
        return each + 2.5e-8 * sum(self._sizes.get(node.name, 0) for node in self._slopes())

    def _slopes(self) -> list[Node]:
        return [node for node in self._graph.graph.nodes if node.target in SLOPES]

    def stretches(self, *arguments: Array) -> tuple[list[Stretch], Forms]:
        """What repeats in it, and the forms of what its operations give at `arguments`."""
        run = _witnessed(self._graph, arguments)
        return stretches(self._graph, run), run.forms

    def roll(self, found: list[Stretch], compiler: Callable[[Stretch], Callable[..., Any]]) -> None:
        """Let each turn of the stretches run as a call of what `compiler` makes of its stretch."""
        self._run = rolled(self._graph, found, [compiler(stretch) for stretch in found])
        self.how = f"captured, {' + '.join(str(len(s.turns)) for s in found)} stretches compiled"

    def record(self, *arguments: Array) -> None:
        """Let the GPU launch the graph as one, if that gives the same, also at other noise."""
        try:
            with torch.no_grad():
                run = Replay(self._graph, arguments)
                require_equal(self._both(self._graph, arguments), self._both(run, arguments))
        except Exception as error:  # whatever it is, the graph runs without
            self.how = f"captured, not recorded: {_first_line(error)}"
            return
        self._run, self.how = run, "captured, replayed as one CUDA graph"

    def _both(self, run: Callable[..., tuple[Array, ...]], arguments: tuple[Array, ...]) -> list[Array]:
        """What it gives at this noise and at other."""
        found = list(run(*arguments))
        with salted(OTHER_SALT):
            return [*found, *run(*arguments)]

    def script(self, *arguments: Array) -> None:
        """Let torch's own interpreter run the graph, if it gives the same to the last bit, also at other noise.

        What is compiled stays compiled.
        """
        if self._run is not self._graph:
            return

        try:
            with torch.no_grad():
                run = scripted(self._graph, arguments)
                pairs = zip(self._both(self._graph, arguments), self._both(run, arguments), strict=True)
                same = all(torch.equal(x, y) for x, y in pairs)
        except Exception:  # whatever it is, the graph runs without
            return
        if same:
            self._run = run

    def compile_stretches(self, found: list[Stretch], forms: Forms, *arguments: Array) -> None:
        """Let torch compile one turn of each stretch, and use it for all; else the graph stays as it is."""

        def compiler(stretch: Stretch) -> Callable[..., Any]:
            # every turn fits, for turns were compared; other tensors may be one and the same in another turn
            options: Any = {"guard_filter_fn": lambda guards: [False for _ in guards]}
            example = tuple(zeros(forms[node]) for node in stretch.inputs[0])
            module = written_out(stretch.module, example)
            compiled = torch.compile(module, fullgraph=True, dynamic=False, options=options)
            compiled(*example)
            return compiled

        self._compiled(lambda: self.roll(found, compiler), arguments)

    def compile(self, *arguments: Array) -> None:
        """Let torch compile the graph; it stays as it is where torch cannot, for want of a compiler for instance."""

        def whole() -> None:
            with _one_fake_mode():
                graph = written_out(self._graph, arguments)
            self._run, self.how = torch.compile(graph, fullgraph=True), "compiled"

        self._compiled(whole, arguments)

    def _compiled(self, change: Callable[[], None], arguments: tuple[Array, ...]) -> None:
        """Change how it runs, and back if that does not run as the graph does."""
        expected = self(*arguments)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's compiler about itself
                change()
                require_equal(expected, self(*arguments))
        except Exception as error:  # whatever it is, the graph runs without
            self._run, self.how = self._graph, f"captured, not compiled: {_first_line(error)}"


def _one_fake_mode() -> contextlib.AbstractContextManager[Any]:
    """What torch's tracer notes of each tensor goes into one mode: one for each takes half of a capture's time."""
    try:
        from torch._guards import TracingContext, tracing
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:  # torch's own matter, and no more than time
        return contextlib.nullcontext()
    return tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))


def require_equal(expected: Sequence[Array | None], found: Sequence[Array]) -> None:
    """To rounding; None stands for zeros.

    Raises:
        CannotCapture: if they are not.
    """
    for one, other in zip(expected, found, strict=False):
        one = torch.zeros_like(other) if one is None else one
        eps = torch.finfo(other.dtype).eps if other.is_floating_point() else 0.0
        tolerance = 1e3 * eps * (1.0 + one.abs().max())
        if not bool(((one - other).abs() <= tolerance).all()):
            raise CannotCapture("its graph gave another gradient")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)


def _witnessed(graph: GraphModule, arguments: tuple[Array, ...]) -> Witness:
    run = Witness(graph)
    with torch.no_grad():
        run.run(*arguments)
    return run
