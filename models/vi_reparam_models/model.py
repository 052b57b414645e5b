"""What a ready model is: a program for any host, its data, and how to compare estimators on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vi_reparam.backend.host import Host
from vi_reparam.errors import ArgumentError
from vi_reparam.estimators import Estimator

Program = Callable[..., Any]


@dataclass(frozen=True)
class Exact:
    """A posterior known in closed form.

    Attributes:
        posterior: for each site, the name of its exact distribution and the parameters of it.
        log_evidence: logarithm of the data's marginal likelihood.
    """

    posterior: Mapping[str, tuple[str, Mapping[str, Any]]]
    log_evidence: float


def no_guide(host: Host) -> Program | None:
    """No hand-written guide: `vr.guide` chooses one."""
    return None


@dataclass(frozen=True, eq=False)
class Model:
    """A ready model.

    Attributes:
        name: its name in the registry.
        description: one line.
        source: where the model and its data come from.
        model: host -> model function; data the model conditions on are keywords that may be None.
        data: () -> positional and keyword arguments of the model function, as NumPy arrays.
        estimators: the estimators worth comparing here.
        fit_defaults: ``num_steps``, ``num_particles`` and ``learning_rate``, where the defaults of a fit do not serve.
        guide: host -> hand-written guide function with the model's arguments, or None.
        entropy: how the guide's entropy enters the ELBO.
        reference: the exact posterior, where there is one.
        focus: the parameter coordinate whose gradient variance the source reports, if it does.
        options: the options this instance was made with.
    """

    name: str
    description: str
    source: str
    model: Callable[[Host], Program]
    data: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    estimators: tuple[Estimator, ...]
    fit_defaults: Mapping[str, Any]
    guide: Callable[[Host], Program | None] = no_guide
    entropy: Literal["monte_carlo", "analytic"] = "monte_carlo"
    reference: Exact | None = None
    focus: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make = self.model

        def named(host: Host) -> Program:
            program = make(host)
            program.__name__ = self.name  # by which bars, titles and files call it
            return program

        object.__setattr__(self, "model", named)


def check_options(name: str, build: Callable[..., Model], options: Mapping[str, Any]) -> None:
    """Refuse options that `build` does not have.

    Raises:
        ArgumentError: naming those it has.
    """
    known = list(inspect.signature(build).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        has = f"its options are {', '.join(known)}" if known else "it has none"
        raise ArgumentError(f"model {name!r} has no option {unknown[0]!r}: {has}")


def require_positive(name: str, option: str, value: Any, *, integer: bool = False) -> None:
    """Refuse an option that is not a positive number (or integer).

    Raises:
        ArgumentError: saying what was given.
    """
    kinds = (int,) if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < float("inf"):
        kind = "integer" if integer else "number"
        raise ArgumentError(f"model {name!r}: {option}={value!r} given, expected a positive {kind}")
