"""Every error this library raises on purpose: what was given, what was expected, what to do."""

from __future__ import annotations

from typing import Any


class ViReparamError(Exception):
    """The common base. Catch it to catch everything that this library refuses."""


class ArgumentError(ViReparamError, ValueError):
    """A value that cannot be used: a bad option, NaN in data, a wrong shape."""


class SiteError(ViReparamError, TypeError):
    """A site that its guide, family or estimator does not serve."""


class GradientError(ViReparamError, TypeError):
    """A gradient that would be wrong: a score term that would be dropped, a false plate."""


class BackendError(ViReparamError, ValueError):
    """A backend that is unknown, or whose framework is not installed."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def short(value: object, most: int = 70) -> str:
    """A value as it is written, in one line of at most so many characters."""
    text, half = " ".join(repr(value).split()), most // 2
    return text if len(text) <= most else f"{text[: half - 1]}...{text[2 - half :]}"


def could_not_run(name: str, form: tuple[Any, Any], error: BaseException) -> ArgumentError:
    """The refusal of arguments on which a program failed, in one line.

    Args:
        name: of the program; `form`: positional and keyword arguments, arrays as their shapes.
    """
    args, kwargs = form
    given = f"{short(args, 50)} {short(kwargs, 50)}"
    return ArgumentError(f"{name[:40]} could not run on arguments of shapes {given}: {first_line(error)}"[:300])


class NonFiniteError(ViReparamError, ValueError):
    """A NaN or an infinity during a fit.

    Attributes:
        step: the optimization step, from 0, at which it appeared.
        sites: what was not finite, by site or parameter name.
        params: the last finite (constrained) parameters, by name.
        losses: the losses up to that step.
    """

    def __init__(self, message: str, *, step: int, sites: dict[str, str], params: dict, losses: object) -> None:
        super().__init__(message)
        self.step = step
        self.sites = sites
        self.params = params
        self.losses = losses
