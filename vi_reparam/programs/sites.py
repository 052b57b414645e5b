"""Several guides, each over latents of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Array
from vi_reparam.guides.sites import Sites, start_from


class SitesGuide:
    """Several guides, one after the other, in the same plates. A plain guide.

    Args:
        family: the specification.
        parts: the guides; they share a scope for their parameters' names.
    """

    def __init__(self, family: Sites, parts: list[Any]) -> None:
        self.family, self.parts = family, parts
        self.scope = parts[0].scope
        for part in parts:
            part.scope = self.scope

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Any) -> list[dict[str, Array]]:
        """As `JointGuide.warm_starts`, by a fit in which these parts are mean fields."""
        found = self.family.simpler()
        if found is None:
            return [{}]
        simpler, steps = found
        pairs = zip(self.parts, simpler.families, strict=True)
        new = [(part, part.layout(*data.call)) for part, (_, family) in pairs if family != part.family]
        return [start_from(fit(simpler, steps, key), new, key)]

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        plates: dict[str, Any] = {}
        values = {}
        for part in self.parts:
            values.update(part.draw(args, kwargs, plates))
        return values
