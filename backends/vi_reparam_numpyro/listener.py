"""The running objective, to which draws report themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from vi_reparam.errors import GradientError

if TYPE_CHECKING:
    from vi_reparam_numpyro.host.distributions import Sampled

_ACTIVE: list[Listener] = []


class Listener:
    """Collects the draws of one run of a guide.

    Args:
        shifts: added to the value of a site's draw, by site (to trace what depends on it).
        held: alternative values, by site (the branches of a weak derivative).
    """

    def __init__(self, *, shifts: dict[str, Any] | None = None, held: dict[str, Any] | None = None) -> None:
        self.shifts = shifts or {}
        self.held = held or {}
        self.draws: dict[str, Sampled] = {}
        self.consumed: set[str] = set()
        self.altered: set[str] = {*self.shifts, *self.held}
        self.frozen: dict[str, bool] = {}  # whether a joint guide's log q leaves its parameters out, by site
        self.in_control_flow = 0

    def report(self, site: str, sampled: Sampled) -> Any:
        """Take note of a draw; return the value that the program goes on with.

        Raises:
            GradientError: if two draws report under one name, or one inside a scan or cond.
        """
        if self.in_control_flow and not sampled.draw.is_pathwise:
            raise GradientError(
                f"{sampled.estimator!r} drew inside NumPyro's control flow (scan or cond), where its score term cannot "
                "leave the loop; write the loop as a plate or unroll it, or use Implicit() or Pathwise()"
            )
        if sampled.draw.is_pathwise and (self.in_control_flow or not site):
            return sampled.draw.value
        if site in self.draws:
            raise GradientError(f"site {site!r} drew twice in one run of the guide: its score term has no single place")
        self.draws[site] = sampled
        value = sampled.draw.value
        if site in self.held:
            value = self.held[site]
        if site in self.shifts:
            value = value + jnp.asarray(self.shifts[site], jnp.result_type(value))
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
