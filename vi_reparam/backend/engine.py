"""What the core asks of a framework's compiler: run a function once or many times, and step a fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from vi_reparam.backend.data import Data

Array = Any
Key = Any
Params = Mapping[str, Array]
S = TypeVar("S")


@dataclass(frozen=True)
class Task:
    """What is fitted.

    Attributes:
        model: the model; `guide`: its guide, estimators chosen: plain programs of the framework.
        objective: one of ours.
        name: of the model, for messages.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    objective: Any
    name: str


class Program(Protocol[S]):
    """A fit's steps, compiled for one task, optimizer and form of the data.

    A state is consumed by what it is given to: it may be changed in place.
    """

    execution: str
    """``"compiled"``, ``"captured"``, or why it is neither."""

    def init(self, key: Key, values: Params, data: Data) -> S:
        """The state before the first step.

        Args:
            key: from which the noise of all steps follows.
            values: constrained values of all parameters.
        """
        ...

    def advance(self, state: S, steps: int) -> tuple[S, Any, bool]:
        """Up to this many steps.

        Returns:
            (the state; the losses of the steps that were taken, a NumPy array; whether all was finite). Where a loss
            or a gradient is not finite, that step is the last, its loss is the last one, and the state is the one
            before it.
        """
        ...

    def params(self, state: S) -> dict[str, Array]:
        """The constrained values of all parameters, as constants of their own, mutable sites included."""
        ...

    def moments(self, state: S) -> tuple[S, Any, Any]:
        """Means of the unconstrained parameters and of their squares over the steps since the last call, as vectors."""
        ...

    def move(self, state: S, vector: Any | None, rate: float) -> S:
        """Go on from these unconstrained parameters (None: from where they are), at this part of the rate."""
        ...

    def arrays(self, state: S) -> dict[str, Any]:
        """The state as NumPy arrays by name."""
        ...

    def restore(self, state: S, arrays: Mapping[str, Any]) -> S:
        """A new state's values replaced by those of `arrays`."""
        ...

    def non_finite(self, state: S) -> dict[str, str]:
        """What is not finite in the next step, by site or parameter; empty if it does not come again."""
        ...


class Engine(Protocol):
    """Compiles and steps."""

    reads_values: tuple[type[Exception], ...]
    """What is raised where a program reads a value in Python that is not known yet."""

    array_functions: str
    """Where the framework's array functions are, for advice: ``"jax.numpy"``."""

    codec: Any
    """How the framework's own values are stored in files: a `vi_reparam.posterior.codec.Codec`."""

    def key(self, seed: Any) -> Key:
        """A key of an int, or of what the framework takes for a key.

        Raises:
            ArgumentError: if it is neither.
        """
        ...

    def data(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        model: Callable[..., Any] | None = None,
        *,
        inputs: tuple[Any, ...] = (),
        finite: bool = True,
    ) -> Data:
        """A call's arguments as the framework takes them.

        Args:
            model: if given, arrays that this program reads in Python become constants of what is compiled. A framework
                that compiles runs it to find out, without computing an array; others need not.
            inputs: trees of arrays that this program takes before the arguments.
            finite: whether to check the values.

        Raises:
            ArgumentError: for data that are not finite.
        """
        ...

    def call(self, fn: Callable[..., Any], data: Data, *inputs: Any, name: Any) -> Any:
        """``fn(args, kwargs, *inputs)``, compiled once for each name and form of the data, if the framework compiles.

        Args:
            inputs: trees of arrays, and keys.
            name: hashable: equal for calls of the same function.
        """
        ...

    def runs_at_once(self, fn: Callable[..., Any], data: Data, *inputs: Any) -> bool:
        """Whether `many` can run `fn` for many keys at once; a program that reads values in Python may need to run
        for one after another.
        """
        ...

    def many(
        self,
        fn: Callable[..., Any],
        data: Data,
        key: Key,
        num: int,
        *inputs: Any,
        size: int,
        name: Any = None,
        at_once: bool = True,
    ) -> Any:
        """``fn(key, args, kwargs, *inputs)`` for `num` keys, out of differentiation; results have a leading axis.

        Args:
            key: the i-th run's noise depends on it and on i alone, not on `num`.
            size: numbers that one run holds.
            name: hashable: equal for calls of the same function with the same `data`, which then compiles once; None
                to compile anew. `fn` must not hold `data`, with which what was compiled goes.
            at_once: `runs_at_once`; many keys then go in chunks.

        Raises:
            One of `reads_values`: if `fn` reads a value in Python, though it should run at once.
        """
        ...

    def optimizer(self, plan: Any) -> Any:
        """The optimizer of a `vi_reparam.fit.optimizers.OptimizerPlan`, or a user's own, checked.

        Raises:
            ArgumentError: for what is no optimizer of this framework.
        """
        ...

    def program(self, task: Task, data: Data, optimizer: Any, *, num_steps: int, watched: bool) -> Program:
        """The steps of a fit; equal tasks, optimizers and forms of the data compile once.

        Args:
            optimizer: from `optimizer`.
            num_steps: of the whole fit, at the most.
            watched: whether `moments` and `move` will be called.
        """
        ...

    def gradients(self, task: Task, data: Data, params: Params, key: Key, num: int) -> Any:
        """Independent gradients of the loss by the constrained parameters, in batches.

        Args:
            key: the i-th gradient's noise depends on it and on i alone.

        Returns:
            An iterator of (NumPy array of shape ``[batch, parameters]``, seconds that it took, compilation left out);
            parameters by sorted name, each flattened; mutable sites are held and left out.
        """
        ...

    def settle(self, posterior: Any) -> None:
        """Give networks that train in place this posterior's weights."""
        ...

    def versions(self) -> dict[str, str]:
        """The framework's packages and their versions, for records."""
        ...
