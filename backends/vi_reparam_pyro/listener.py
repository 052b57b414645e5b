"""The running objective, to which draws report themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from pyro.ops.provenance import track_provenance

from vi_reparam.errors import GradientError

if TYPE_CHECKING:
    from vi_reparam_pyro.host.distributions import Sampled

Array = Any

_ACTIVE: list[Listener] = []


class Listener:
    """Collects the draws of one run of a guide.

    Args:
        held: values to go on with instead of the draws, by site (the branches of a weak
            derivative, or draws of another run).
        moved: masks, by site: where true, `held` replaces the draw; everywhere unless given.
        traced: sites whose values are tagged, so that what depends on them can be found.
    """

    def __init__(
        self,
        *,
        held: dict[str, Array] | None = None,
        moved: dict[str, Array] | None = None,
        traced: frozenset[str] = frozenset(),
    ) -> None:
        self.held = held or {}
        self.moved = moved or {}
        self.traced = traced
        self.tags: dict[str, Array] = {}
        self.draws: dict[str, Sampled] = {}
        self.consumed: set[str] = set()
        self.altered: set[str] = {*self.held, *self.traced}
        self.averages: dict[str, Any] | None = None
        self.frozen: dict[str, bool] = {}  # whether a joint guide's log q leaves its parameters out, by site

    def report(self, site: str, sampled: Sampled) -> Array:
        """Take note of a draw; return the value that the program goes on with.

        Raises:
            GradientError: if two draws report under one name.
        """
        if site in self.draws:
            raise GradientError(f"site {site!r} drew twice in one run of the guide: its score term has no single place")
        self.draws[site] = sampled
        value = sampled.draw.value
        if site in self.held:
            other = self.held[site]
            value = torch.where(self.moved[site], other, value) if site in self.moved else other
        if site in self.traced:
            if value.is_floating_point():
                self.tags[site] = torch.zeros_like(value, requires_grad=True)
                value = value.detach() + self.tags[site]
            value = track_provenance(value, frozenset({site}))
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


def current() -> Listener | None:
    """The listener of the running objective, if one of ours runs."""
    return _ACTIVE[-1] if _ACTIVE else None


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[Listener]:
    """Let draws report to `listener`."""
    _ACTIVE.append(listener)
    try:
        yield listener
    finally:
        _ACTIVE.pop()
