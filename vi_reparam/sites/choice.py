"""Who draws the sites of a guide: the choice that `vr.estimate` makes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vi_reparam.backend.host import Reader
from vi_reparam.backend.ops import Ops, Shape
from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam.sites.draw import resolve

AVERAGED = ("auto", "decaying_average")
"""Baselines that want a decaying average from step to step."""


class Chooser:
    """Chooses the estimators of the sites of one run of a guide.

    Precedence at a site: a named entry, the site's own ``infer={"estimator": ...}`` or annotation, then ``"*"``, which
    leaves a site that it does not serve to `Auto`. A site with none of these is left alone.

    Args:
        reader: of the framework's distributions.
        estimators: from site names and ``"*"``.
    """

    def __init__(self, reader: Reader, estimators: Mapping[str, Estimator]) -> None:
        self.reader = reader
        self.estimators = estimators
        self._averaged: dict[str, tuple[int, ...]] = {}
        self._seen: set[str] = set()
        self._unserved: list[SiteError] = []
        self._served = False

    def choose(self, name: str, distribution: Any, infer: Mapping[str, Any], *, is_point: bool) -> Estimator | None:
        """Who draws this site; None for its own distribution.

        Args:
            infer: the site's own options.
            is_point: whether its distribution is a point mass, which ``"*"`` leaves alone.

        Raises:
            ArgumentError: if the site's own option is no estimator.
        """
        self._seen.add(name)
        own = getattr(distribution, "estimator", None) or infer.get("estimator")
        chosen = self.estimators.get(name) or own
        if chosen is None and not is_point:
            chosen = self._wildcard(name, distribution)
        if chosen is not None and not isinstance(chosen, Estimator):
            raise ArgumentError(
                f"site {name!r}: infer['estimator'] is {chosen!r}, expected an estimator such as vr.Implicit()"
            )
        return chosen

    def _wildcard(self, name: str, distribution: Any) -> Estimator | None:
        chosen = self.estimators.get("*")
        if chosen is None or getattr(distribution, "known_by_draws", False):
            return None
        try:
            resolve(self.reader, chosen, distribution, name)
        except SiteError as error:
            self._unserved.append(error)
            return Auto()
        self._served = True
        return chosen

    def note(self, name: str, estimator: Estimator, batch_shape: Shape, plates: Collection[int]) -> None:
        """Remember a site that wants a decaying average: one for each element of the plates.

        Args:
            plates: dimensions of the plates around the site, negative.
        """
        if getattr(estimator, "baseline", None) in AVERAGED:
            sizes = enumerate(batch_shape, -len(batch_shape))
            self._averaged[name] = tuple(size if dim in plates else 1 for dim, size in sizes)

    def averages(self, ops: Ops) -> dict[str, dict[str, Any]]:
        """The averages before the first step, by site."""
        zeros = ops.xp.zeros
        return {name: {"mean": zeros(shape), "count": zeros(())} for name, shape in self._averaged.items()}

    def finish(self) -> None:
        """Check the choice, after the run.

        Raises:
            ArgumentError: if a name is no site of the guide.
            SiteError: if ``"*"`` serves no site.
        """
        unknown = set(self.estimators) - self._seen - {"*"}
        if unknown:
            raise ArgumentError(
                f"estimators name {sorted(unknown)}, which the guide does not draw: it draws {sorted(self._seen)}"
            )
        if self._unserved and not self._served:
            raise self._unserved[0]


def as_mapping(estimators: Any) -> dict[str, Estimator]:
    """One estimator or a mapping of them, as a mapping from site names and ``"*"``.

    Raises:
        ArgumentError: if it is neither, or a value is not an estimator.
    """
    if estimators is None:
        return {}
    if not isinstance(estimators, Estimator | Mapping):
        raise ArgumentError(
            f"estimators={estimators!r}: expected an estimator such as vr.Implicit(), or a mapping from site names"
        )
    mapping = {"*": estimators} if isinstance(estimators, Estimator) else dict(estimators)
    for name, value in mapping.items():
        if not isinstance(value, Estimator):
            raise ArgumentError(f"estimators[{name!r}] is {value!r}: expected an estimator such as vr.Implicit()")
    return mapping
