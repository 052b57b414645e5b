"""One family's fit in figures, as `vr.Escalate` judges it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from vi_reparam.gaussians.pathfinder import LARGEST

GOOD_KHAT = 0.7
GOOD_GAP = 0.04
GOOD_SHIFT = 0.075
"""Nats below the log evidence, and standard deviations, half of what would make a verdict fair: what weights may still
correct."""

GOOD_GAP_EACH, MANY, GOOD_SHIFT_OF_MANY = 1e-3, 512, 0.1
"""Nats for each of many latents, where that is more: spread over so many, they show nowhere. Of more than `MANY` the
largest shift is partly chance, and a verdict is good up to here."""

SURE_KHAT, SURE_GAP, SURE_GAP_EACH = 0.5, 0.1, 2e-3
"""Of what was fitted to weighted draws: below these, and the shift of many, its verdict is good, and a richer family's
steps take longer than all before."""

NEAR_KHAT, NEAR_GAP = 1.0, 0.25
"""The same of what is so near, by many latents, that no rung after it is tried, whatever its verdict."""

SERVES = 0.3
"""Of the same shift, where a verdict would still be fair."""

GOOD_MISSED = 0.02
"""Part of the mass."""

TINY_GAP = 0.05
"""Nats below which a k-hat between the two limits says nothing against the draws."""


def are_even(gap: float, beyond: float) -> bool:
    """Whether weights differ so little that k-hat says nothing: it knows their tail alone, however near one they are.

    Args:
        gap: log evidence minus ELBO, in nats; `beyond`: part of the mass that the tail holds beyond the largest weight.
    """
    return gap < TINY_GAP and beyond < GOOD_MISSED


WORTH = 0.02
"""Nats that a richer family must gain, beyond the error, to be called a gain."""


@dataclass(frozen=True)
class Attempt:
    """One family's fit.

    Attributes:
        family: as it is written.
        elbo: in nats; `error`: its standard error.
        khat: Pareto shape of the importance weights' tail.
        gap: log evidence, by the weights, minus the ELBO.
        shift: the most that the weights move a mean or the logarithm of a standard deviation, in standard
            deviations.
        missed: part of the mass in modes that its draws miss.
        steps: of its fit; `seconds`: it took.
        note: why it was not fitted, or failed.
        num_latents: that it draws.
        gradients: of log p that its steps took, from all starts.
        sampled: whether it was fitted without steps, to weighted draws of the posterior.
        beyond: part of the mass that the weights' tail holds beyond the largest one.
    """

    family: str
    elbo: float = -math.inf
    error: float = 0.0
    khat: float = math.nan
    gap: float = math.nan
    shift: float = math.nan
    missed: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    note: str = ""
    num_latents: int = 0
    gradients: int = 0
    sampled: bool = False
    beyond: float = math.inf

    @property
    def is_good(self) -> bool:
        """Whether the weights find nothing left to correct."""
        gap = max(GOOD_GAP, GOOD_GAP_EACH * self.num_latents)
        shift = GOOD_SHIFT if self.num_latents <= MANY else GOOD_SHIFT_OF_MANY
        if self.sampled and self.khat < SURE_KHAT:
            gap, shift = max(SURE_GAP, SURE_GAP_EACH * self.num_latents), GOOD_SHIFT_OF_MANY
        is_known = self.khat < GOOD_KHAT or are_even(self.gap, self.beyond)
        fits = is_known and self.gap < gap and self.shift < shift
        return fits and self.missed < GOOD_MISSED

    @property
    def is_nearly_good(self) -> bool:
        """Whether it was fitted to weighted draws, of so many latents that steps would hardly come as near."""
        is_near = self.gap < NEAR_GAP and self.khat < NEAR_KHAT and self.shift < SERVES and self.missed < GOOD_MISSED
        return self.sampled and self.num_latents > LARGEST and is_near

    @property
    def serves(self) -> bool:
        """Whether what is left to correct is small: a k-hat that is lower still counts for less."""
        return self.khat < GOOD_KHAT and self.shift < SERVES and self.missed < GOOD_MISSED

    def is_better_than(self, other: Attempt) -> bool:
        """By the ELBO where the errors tell them apart, else the one that is good or serves, else by k-hat."""
        apart = 3.0 * math.hypot(self.error, other.error)
        if abs(self.elbo - other.elbo) > max(apart, WORTH, GOOD_GAP_EACH * self.num_latents):
            return self.elbo > other.elbo
        if self.is_good != other.is_good:
            return self.is_good
        if self.serves != other.serves:
            return self.serves
        return not math.isnan(self.khat) and not self.khat >= other.khat

    def plain(self) -> dict[str, Any]:
        """As numbers and text; None for the figures of what was not fitted."""
        return {name: _shown(value, self.note) for name, value in asdict(self).items()}


def _shown(value: Any, note: str) -> Any:
    if isinstance(value, str | int):
        return value
    return None if note else float(f"{value:.6g}")
