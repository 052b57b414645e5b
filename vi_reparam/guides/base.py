"""A guide family: what a user writes in the decorator."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar


class GuideFamily(abc.ABC):
    """A plain specification; each backend turns it into a guide for a model.

    Attributes:
        num_particles: draws a step, unless the objective or `fit` says otherwise.
        learning_rate: of the default optimizer.
        clip: largest norm of a gradient in the default optimizer; None for any.
        warmup: part of the steps over which the default optimizer's rate rises from zero.
        max_steps: most steps of a fit that ends by itself; `converges`: whether one does.
        by_losses: whether such a fit is judged by its losses alone, for the parameters are a network's; `least`: part
            of `max_steps` that it takes then at the least.
        is_fitted: whether there is anything to fit; `takes_steps`: whether that is done by an optimizer.
        has_tail: whether the draws' tails can be widened after the fit (`vi_reparam.gaussians.tails`).
    """

    num_particles: ClassVar[int] = 8
    learning_rate: ClassVar[float] = 0.05
    clip: ClassVar[float | None] = None
    warmup: ClassVar[float] = 0.0
    max_steps: ClassVar[int] = 10_000
    converges: ClassVar[bool] = True
    by_losses: ClassVar[bool] = False
    least: ClassVar[float] = 0.8
    is_fitted: ClassVar[bool] = True
    takes_steps: ClassVar[bool] = True
    has_tail: ClassVar[bool] = False

    def __repr__(self) -> str:
        """As one would write it: options at their defaults are left out."""
        shown = []
        # A user's own family need not be a dataclass.
        for field in dataclasses.fields(self) if dataclasses.is_dataclass(self) else ():
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            if (value := getattr(self, field.name)) != default:
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    @abc.abstractmethod
    def check_estimators(self, estimators: Any) -> None:
        """Refuse estimators that the family has no use for.

        Raises:
            ArgumentError: if it has none for these.
        """
