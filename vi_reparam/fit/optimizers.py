"""The default optimizer, as data that each backend makes an optimizer of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vi_reparam.guides import GuideFamily, Sites

BETAS = (0.9, 0.99)
"""Decay rates of Adam's two moments."""

LAST_RATE = 0.01
"""The learning rate at the end of the schedule, as a part of that at its top."""


@dataclass(frozen=True)
class RateGroup:
    """Parameters that learn at one rate.

    Attributes:
        learning_rate: at the top of its schedule.
        clip: largest norm of the group's gradient; None for any.
        warmup: part of the steps over which the rate rises from zero first.
    """

    learning_rate: float = 0.05
    clip: float | None = None
    warmup: float = 0.0


@dataclass(frozen=True)
class OptimizerPlan:
    """Adam with a cosine schedule from the learning rate down to `LAST_RATE` of it.

    Attributes:
        groups: of parameters.
        num_steps: of the schedule; None for a constant rate.
        family: which group a parameter is in; None where there is one.
    """

    groups: tuple[RateGroup, ...] = (RateGroup(),)
    num_steps: int | None = None
    family: Sites | None = None

    def group_of(self, name: str) -> int:
        """Index into `groups` of a parameter."""
        return 0 if self.family is None else self.family.learning_rate_group(name)


def plan_of(family: GuideFamily | None, num_steps: int | None) -> OptimizerPlan:
    """The default optimizer as a family sets it.

    Args:
        family: None for a guide written by hand.
        num_steps: as in `OptimizerPlan`.
    """
    if family is None:
        return OptimizerPlan((RateGroup(),), num_steps)
    parts: Any = family.learning_rate_groups if isinstance(family, Sites) else (family,)
    groups = tuple(RateGroup(part.learning_rate, part.clip, part.warmup) for part in parts)
    return OptimizerPlan(groups, num_steps, family if isinstance(family, Sites) else None)
