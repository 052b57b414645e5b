"""What listens to a run of a guide: its estimated draws report themselves here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from vi_reparam.backend.ops import Array
from vi_reparam.backend.registry import ops_of
from vi_reparam.errors import GradientError
from vi_reparam.sites.draw import Sampled

BySite = Mapping[str, Array]


class Recorder:
    """Collects the draws of one run of a guide.

    Args:
        shifts: added to the value of a site's draw, by site: zeros that carry a tag, to trace what depends on it.
        held: values to go on with instead of the draws, by site (the branches of a weak derivative, or draws of
            another run).
        moved: masks, by site: where true, `held` replaces the draw; everywhere unless given.

    Attributes:
        draws: by site.
        consumed: sites whose own value their draw is.
        altered: sites whose value is not what was drawn.
        averages: the decaying averages that the guide's handler keeps, by site; None where it keeps none.
        frozen: whether a joint guide's log q leaves its parameters out, by site.
        in_control_flow: how many loops and branches of the framework the program is in.
    """

    def __init__(
        self, *, shifts: BySite | None = None, held: BySite | None = None, moved: BySite | None = None
    ) -> None:
        self.shifts = shifts or {}
        self.held = held or {}
        self.moved = moved or {}
        self.draws: dict[str, Sampled] = {}
        self.consumed: set[str] = set()
        self.altered: set[str] = {*self.shifts, *self.held}
        self.averages: dict[str, Any] | None = None
        self.frozen: dict[str, bool] = {}
        self.in_control_flow = 0

    def report(self, site: str, sampled: Sampled) -> Array:
        """Take note of a draw; return the value that the program goes on with.

        Raises:
            GradientError: if two draws report under one name, or one inside a scan or cond.
        """
        value, pathwise = sampled.draw.value, sampled.draw.is_pathwise
        if self.in_control_flow and not pathwise:
            raise GradientError(
                f"{sampled.estimator!r} drew inside NumPyro's control flow (scan or cond), where its score term cannot "
                "leave the loop; write the loop as a plate or unroll it, or use Implicit() or Pathwise()"
            )
        if pathwise and (self.in_control_flow or not site):
            return value
        if site in self.draws:
            raise GradientError(f"site {site!r} drew twice in one run of the guide: its score term has no single place")
        self.draws[site] = sampled
        if site in self.held:
            other = self.held[site]
            value = ops_of(value).xp.where(self.moved[site], other, value) if site in self.moved else other
        if site in self.shifts:
            shift = self.shifts[site]
            value = value + (shift if shift.dtype == value.dtype else ops_of(value).xp.astype(shift, value.dtype))
        return value

    def consume(self, site: str) -> None:
        """The draw reported under this name is the value of the site of that name."""
        self.consumed.add(site)

    def finish(self) -> None:
        """Check that every draw was a site's own value.

        Raises:
            GradientError: for a draw hidden inside another distribution, whose score term would be lost.
        """
        for site, sampled in self.draws.items():
            if site not in self.consumed and not sampled.draw.is_pathwise:
                where = f"near site {site!r}" if site else "inside a wrapping distribution"
                raise GradientError(
                    f"{sampled.estimator!r} drew {where}, but the wrapper would drop its score term; annotate the "
                    "outermost distribution, as in vr.Rejection()(TransformedDistribution(...)), or use vr.estimate"
                )


_RUNNING: list[Recorder] = []


def current() -> Recorder | None:
    """The recorder of the running objective, if one of ours runs."""
    return _RUNNING[-1] if _RUNNING else None


@contextlib.contextmanager
def recording(recorder: Recorder | None) -> Iterator[Recorder | None]:
    """Let draws report to `recorder`; None changes nothing."""
    if recorder is None:
        yield None
        return
    _RUNNING.append(recorder)
    try:
        yield recorder
    finally:
        _RUNNING.pop()
