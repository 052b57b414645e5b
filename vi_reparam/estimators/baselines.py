"""Baselines that an objective may subtract from the cost of a score term."""

from __future__ import annotations

from typing import Literal

from vi_reparam.errors import ArgumentError

Baseline = Literal["leave_one_out", "decaying_average", "optimal"] | None
BASELINES: tuple[Baseline, ...] = ("leave_one_out", "decaying_average", "optimal", None)


def check_baseline(owner: str, baseline: object, allowed: tuple[Baseline, ...]) -> None:
    """Refuse a baseline that is not among `allowed`.

    Raises:
        ArgumentError: naming those that are.
    """
    if baseline not in allowed:
        names = ", ".join(repr(b) for b in allowed)
        raise ArgumentError(f"{owner}(baseline={baseline!r}): expected one of {names}")
