"""Families over all continuous latents at once, in one unconstrained vector."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.guides.base import GuideFamily


class JointFamily(GuideFamily):
    """The latents of every site, moved to the reals and laid end to end, drawn together."""

    @property
    def is_local(self) -> bool:
        """Whether it draws a vector for each element of a plate, given a row of features (`condition`)."""
        return getattr(self, "condition", None) is not None

    def check_estimators(self, estimators: Any) -> None:
        if estimators:
            raise ArgumentError(
                f"{type(self).__name__} draws all sites together, so estimators={estimators!r} have no site to act on: "
                "leave them out"
            )

    def check_size(self, size: int) -> None:
        """Refuse a vector of so many coordinates, before anything of that size is made.

        Raises:
            SiteError: if the family would not fit into memory.
        """
        needed, free = NUMBER * self.held(size), free_memory()
        if needed > free:
            raise SiteError(
                f"{self!r:.120} over {size:,} coordinates would hold about {needed / 1e9:,.0f} GB, and "
                f"{free / 1e9:,.0f} GB are free: use vr.MeanField() or vr.Structured(), or a smaller "
                f"{type(self).__name__}"
            )

    def held(self, size: int) -> int:
        """About how many numbers a step holds for a vector of so many coordinates; at least its draws and slopes."""
        return COPIES * self.num_particles * size


NUMBER, COPIES = 8, 8
"""Bytes of a number, and how often a fit holds a parameter or a draw: its slope, its optimizer's state, copies."""


def free_memory() -> int:
    """Bytes that this machine could still give; all that it has, where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**34


def check_skew(what: str, skew: Any) -> None:
    """Refuse what is no flag.

    Raises:
        ArgumentError: naming the option.
    """
    if not isinstance(skew, bool):
        raise ArgumentError(f"{what}(skew={skew!r}): expected True or False")
