"""Families over all continuous latents at once, in one unconstrained vector."""

from __future__ import annotations

from typing import Any

from vi_reparam.checks import check_memory
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
        what = f"{self!r:.120} over {size:,} coordinates"
        mend = f"use vr.MeanField() or vr.Structured(), or a smaller {type(self).__name__}"
        check_memory(what, self.held(size), mend, SiteError)

    def held(self, size: int) -> int:
        """About how many numbers a step holds for a vector of so many coordinates; at least its draws and slopes."""
        return COPIES * self.num_particles * size


COPIES = 8
"""How often a fit holds a parameter or a draw: its slope, its optimizer's state, copies."""


def check_skew(what: str, skew: Any) -> None:
    """Refuse what is no flag.

    Raises:
        ArgumentError: naming the option.
    """
    if not isinstance(skew, bool):
        raise ArgumentError(f"{what}(skew={skew!r}): expected True or False")
