"""Baselines that an objective may subtract from the cost of a score term."""

from __future__ import annotations

from typing import Literal

Baseline = Literal["leave_one_out", "decaying_average", "optimal"] | None
BASELINES: tuple[Baseline, ...] = ("leave_one_out", "decaying_average", "optimal", None)
