"""Variances of the kernels of a path."""

from __future__ import annotations

import itertools

from vi_reparam.checks import check_choice
from vi_reparam.errors import ArgumentError
from vi_reparam.sde.schedules import Schedule
from vi_reparam.sde.tau import Tau
from vi_reparam.sde.transition import noise_variance, noising

VARIANCES = ("learned", "data", "noise", "ddpm")


def kernel_variances(kind: str, schedule: Schedule, grid: tuple[float, ...], tau: Tau) -> tuple[float, ...]:
    """Each step's variance.

    ``"data"`` and ``"noise"`` are those that the exact step of that form injects. ``"ddpm"``, where
    ``"learned"`` starts, is beta (Ho et al. 2020, section 3.2), the variance of x_t given x_s when
    the data are standard normal.

    Raises:
        ArgumentError: for a kind that does not exist, or a variance of 0 (tau = 0), which has no density.
    """
    check_choice("variance", kind, VARIANCES)
    out = []
    for low, high in itertools.pairwise(grid):
        if kind in ("learned", "ddpm"):
            ahead, behind = schedule.total(high), schedule.total(low)
            back = noising(schedule, low, high)
            out.append(ahead * ahead * back.variance / (behind * behind))
        else:
            out.append(noise_variance(schedule, low, high, tau.at(low, high), form=kind))
    if not min(out) > 0.0:
        raise ArgumentError(
            f"variance={kind!r} with {tau!r}: a step without noise has no density; use tau > 0 to train, and tau = 0 "
            "for sampling afterwards"
        )
    return tuple(out)
