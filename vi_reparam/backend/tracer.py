"""What the core asks of a framework's tracing: run a program, and say what happened at each of its sites."""

# The docstring of a protocol's method is its body.
# pyright: reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from vi_reparam.backend.ops import Args, Array, Key, Kwargs
from vi_reparam.errors import ArgumentError

T = TypeVar("T")


def without_value(missing: Iterable[str], given: Iterable[str]) -> ArgumentError:
    """The refusal of a run that lacks parameters, of whose names others are given."""
    names, known = ", ".join(sorted(missing)), sorted(given)
    text = f"no value for the parameters {names}; pass the params of this model's own fit, whose parameters are {known}"
    return ArgumentError(text)


class PlateInfo(NamedTuple):
    """A plate around a site.

    Attributes:
        dim: its dimension, negative, counted from the right of the batch shape; None for a plate that is a Python
            loop.
        size: of all of its elements; `subsample_size`: of those that a run sees.
    """

    name: str
    dim: int | None
    size: int
    subsample_size: int

    @property
    def is_subsampled(self) -> bool:
        """Whether a run sees a part of it."""
        return self.subsample_size != self.size


@dataclass
class Record:
    """One site of one run.

    Attributes:
        kind: ``"sample"``, ``"param"``, ``"deterministic"``, ``"plate"`` (its value: the indices) or ``"mutable"``.
        value: what the program went on with.
        distribution: of a sample; None elsewhere.
        log_prob: computes the log density at the value, by what the distribution remembers of its draw; neither
            scaled nor masked by handlers.
        observed: whether it is data (a factor included).
        scale: by which plates and handlers scale its log density; None for 1.
        mask: where handlers let its log density count; None for everywhere.
        plates: around it; of a plate, itself alone.
        is_auxiliary: a site of a guide that is no latent of the model; `is_factor`: a term of the log joint without
            a value.
        event_dims: names of its event dimensions, from ``infer={"event_dims": [...]}``.
        enumeration: how it is marked to be summed out, as ``"parallel"``; empty where it is not.
    """

    kind: str
    value: Array
    distribution: Any = None
    log_prob: Callable[[], Array] = field(default=lambda: None)
    observed: bool = False
    scale: Any = None
    mask: Any = None
    plates: tuple[PlateInfo, ...] = ()
    is_auxiliary: bool = False
    is_factor: bool = False
    event_dims: tuple[str, ...] = ()
    enumeration: str = ""

    @property
    def is_latent(self) -> bool:
        """Whether it is drawn."""
        return self.kind == "sample" and not self.observed

    @property
    def is_data(self) -> bool:
        """Whether it is observed, and no factor."""
        return self.kind == "sample" and self.observed and not self.is_factor


class Statement(NamedTuple):
    """A latent site that is about to be drawn.

    Attributes:
        repeated: whether it is of one step of a loop of the framework's, which takes the values of all steps as well.
    """

    name: str
    distribution: Any
    plates: tuple[PlateInfo, ...]
    repeated: bool = False


Given = Mapping[str, Array] | Callable[[Statement], Array | None]
"""Values of latent sites and of plates' indices by name; or what gives one for a latent statement, None to draw it."""


class Tracer(Protocol):
    """Runs programs. It knows models and guides as functions, and nothing of fits or posteriors."""

    def run(
        self,
        program: Callable[..., Any],
        args: Args,
        kwargs: Kwargs,
        key: Key,
        *,
        params: Mapping[str, Array] | None = None,
        values: Given | None = None,
        recorder: Any = None,
        full_data: bool = False,
        frozen: bool = False,
        resample: bool = False,
        alone: bool = False,
        partial: bool = False,
    ) -> dict[str, Record]:
        """One run of a program; its sites in their order.

        Args:
            key: from which all of its noise follows.
            params: constrained values of param and mutable sites by name; None for those that the surroundings give
                (handlers around the call, a parameter store, else their initial values).
            values: of latent sites that are not drawn, and of plates' indices. They stay latent.
            recorder: a `vi_reparam.sites.recorder.Recorder` to which estimated draws report; None for none.
            full_data: switch the subsampling of plates off.
            frozen: take the parameters as constants of differentiation.
            resample: draw observed sites afresh, in the shape of what was observed; factors stay.
            alone: hide the run from the handlers and the parameter store around the call: parameters that are not given
                have their initial values, and improper latents (which cannot be drawn) are at the origin.
            partial: whether parameters that `params` lack have their initial values.

        Raises:
            ArgumentError: for a parameter without a value, where `params` are given and not `partial`.
        """

    def within(self, program: Callable[..., Any], args: Args, kwargs: Kwargs) -> dict[str, Record]:
        """Runs a program as a part of the one that runs now, whose surroundings draw and give values; its sites."""

    def shapes(self, fn: Callable[[Key], T]) -> T:
        """``fn(key)`` without computing an array, where the framework can: only shapes and dtypes of it hold."""

    def outer_params(self, program: Callable[..., Any], args: Args, kwargs: Kwargs) -> dict[str, Array]:
        """The values that the surroundings (handlers, a parameter store) give to a program's parameters, by name."""

    def constants(self) -> AbstractContextManager[None]:
        """Inside, what depends on no traced array is computed at once, also where a program is being compiled."""

    def depends(
        self, fn: Callable[[Mapping[str, Array]], Mapping[Any, Array]], inputs: Mapping[str, Array]
    ) -> dict[Any, frozenset[str]]:
        """For each array of ``fn(inputs)``, the inputs on which it depends; what Python reads leaves no trace."""

    def arrays_of(self, support: Any) -> list[Array]:
        """The arrays of which a support is made: its bounds."""
