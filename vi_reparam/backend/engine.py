"""What the core asks of a framework's compiler: run a function once or many times, and step a fit."""

# The docstring of a protocol's method is its body.
# pyright: reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Args, Array, Key, Kwargs, Params

Fn = Callable[..., Any]
S = TypeVar("S")


@dataclass(frozen=True)
class Task:
    """What is fitted.

    Attributes:
        model: the model; `guide`: its guide, estimators chosen: plain programs of the framework.
        objective: one of ours.
        name: of the model, for messages.
        devices: over which the particles of a step go, as `Engine.devices` gives them; none for the framework's own.
    """

    model: Fn
    guide: Fn
    objective: Any
    name: str
    devices: tuple[Any, ...] = ()


class DrawInfo(NamedTuple):
    """An estimated draw of a guide's site: its family, its estimator, and how many numbers it is."""

    family: Any
    estimator: Any
    size: int


class Program(Protocol[S]):
    """A fit's steps, compiled for one task, optimizer and form of the data.

    A state is consumed by what it is given to: it may be changed in place.
    """

    @property
    def execution(self) -> str:
        """``"compiled"``, ``"captured"``, or why it is neither; known after the first steps."""

    def init(self, key: Key, values: Params, data: Data) -> S:
        """The state before the first step: the key gives all noise, the values are of all parameters, constrained."""

    def advance(self, state: S, steps: int) -> tuple[S, Any, bool]:
        """Up to this many steps: (the state; their losses, a NumPy array; whether all was finite).

        At a loss or gradient that is not finite the steps end, with that loss and the state before it.
        """

    def feed(self, state: S, data: Data) -> S:
        """Go on with other data of the same form."""

    def params(self, state: S) -> dict[str, Array]:
        """The constrained values of all parameters, as constants of their own, mutable sites included."""

    def moments(self, state: S) -> tuple[S, Any, Any]:
        """Means of the unconstrained parameters and of their squares over the steps since the last call, as vectors."""

    def move(self, state: S, vector: Any | None, rate: float) -> S:
        """Go on from these unconstrained parameters (None: from where they are), at this part of the rate."""

    def arrays(self, state: S) -> dict[str, Any]:
        """The state as NumPy arrays by name."""

    def restore(self, state: S, arrays: Mapping[str, Any]) -> S:
        """A new state, its values replaced by those of `arrays`."""

    def non_finite(self, state: S) -> dict[str, str]:
        """What is not finite in the next step, by site or parameter; empty if it does not come again."""


class Engine(Protocol):
    """Compiles and steps."""

    reads_values: tuple[type[Exception], ...]
    """What is raised where a program reads a value in Python that is not known yet."""

    array_functions: str
    """Where the framework's array functions are, for advice: ``"jax.numpy"``."""

    codec: Any
    """How the framework's own values are stored in files: a `vi_reparam.posterior.codec.Codec`."""

    def key(self, seed: Any) -> Key:
        """A key of an int, or of what the framework takes for a key; refuses what is neither."""

    def data(
        self, args: Args, kwargs: Kwargs, model: Fn | None = None, *, inputs: tuple = (), finite: bool = True
    ) -> Data:
        """A call's arguments as the framework takes them.

        Args:
            model: if given, arrays that it reads in Python become constants of what is compiled.
            inputs: trees of arrays that the program takes before the arguments; only where `finite` is False.
            finite: whether to note what is not finite, and to warn of a model that reads values in Python.
        """

    def call(self, fn: Fn, data: Data, *inputs: Any, name: Hashable = None) -> Any:
        """``fn(args, kwargs, *inputs)``, out of differentiation in torch; compiled, if the framework compiles.

        Args:
            inputs: trees of arrays, and keys.
            name: equal for calls of the same function, which then compiles once for each form of the data; None to
                compile anew.
        """

    def runs_at_once(self, fn: Fn, data: Data, *inputs: Any) -> bool:
        """Whether `many` can run `fn` for many keys at once; a program that reads values in Python may not."""

    def many(
        self,
        fn: Fn,
        data: Data,
        key: Key,
        num: int,
        *inputs: Any,
        size: int,
        first: int = 0,
        name: Any = None,
        at_once: bool = True,
    ) -> Any:
        """``fn(key, args, kwargs, *inputs)`` for `num` keys, out of differentiation; results have a leading axis.

        Args:
            key: the i-th run's noise depends on it and on i alone, not on `num`.
            size: numbers that one run holds.
            first: which run is the first of these; those before it are left out.
            name: as in `call`, with the same `data`; `fn` must not hold `data`, with which what was compiled goes.
            at_once: `runs_at_once`; many keys then go in chunks.

        Raises:
            One of `reads_values`: if `fn` reads a value in Python, though it should run at once.
        """

    def first_params(self, model: Fn, guide: Fn, data: Data, key: Key, known: Params) -> dict[str, Array]:
        """The initial values at the param and mutable sites of guide and model; those that are known stay as they are.

        Raises:
            ArgumentError: if the model's own parameter has the name of one of the guide's.
        """

    def check(self, task: Task, data: Data, start: Callable[[Key], Params], key: Key, *, known: bool) -> Params | None:
        """Refuse what can be refused before the first step, as sites and plates; ``start(key)``, if it was needed.

        Args:
            start: computes the first parameters.
            known: whether data of this form passed before.

        Raises:
            ViReparamError: saying what to do; or whatever the programs raise.
        """

    def draws(self, task: Task, data: Data, params: Params | None) -> dict[str, DrawInfo]:
        """The estimated draws of the task's guide, by site; at the initial parameters unless given (constrained)."""

    def devices(self, given: Any) -> tuple[Any, ...]:
        """What ``fit(devices=)`` names, over which the particles of a step go; refuses what it cannot use."""

    def optimizer(self, plan: Any) -> Any:
        """The optimizer of a `vi_reparam.fit.optimizers.OptimizerPlan`, or a user's own; refuses what is none."""

    def describe(self, optimizer: Any) -> str:
        """A user's optimizer in words: equal for equal ones, also in another process."""

    def program(self, task: Task, data: Data, optimizer: Any, *, num_steps: int, watched: bool) -> Program:
        """The steps of a fit, `num_steps` at the most; `watched`: whether `moments` and `move` will be called.

        Where a framework compiles, equal tasks, optimizers and forms of the data do so once.
        """

    def gradients(self, task: Task, data: Data, params: Params, key: Key, num: int) -> Iterator[tuple[Any, float]]:
        """Independent gradients of the loss by the constrained parameters, in batches of one size, `num` or a few more.

        Args:
            key: equal keys give equal noise to tasks that differ in their estimators.

        Returns:
            An iterator of (NumPy array of shape ``[batch, parameters]``, seconds that it took, compilation left out);
            parameters by sorted name, each flattened; mutable sites are held and left out.
        """

    def settle(self, posterior: Any) -> None:
        """Give networks that train in place this posterior's weights."""

    def keep_programs(self, folder: str, size: int) -> None:
        """Keep what is compiled in a folder, for later processes; `size`: bytes that it may hold, where bounded."""

    def versions(self) -> dict[str, str]:
        """The framework's packages and their versions, for records."""
