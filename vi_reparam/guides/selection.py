"""Which of a model's latents one guide draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from vi_reparam.errors import SiteError

S = TypeVar("S")


@dataclass(frozen=True)
class SiteSelection:
    """A part of a model's latents.

    Attributes:
        names: of the sites; None for all.
        without: names that are left to other guides.
        label: begins the names of the guide's parameters and of its auxiliary site; empty for a guide alone.
    """

    names: tuple[str, ...] | None = None
    without: frozenset[str] = frozenset()
    label: str = ""

    def pick(self, sites: dict[str, S]) -> dict[str, S]:
        """The sites of this part, in the model's order.

        Raises:
            SiteError: for a name that the model does not have.
        """
        unknown = [name for name in self.names or () if name not in sites]
        if unknown:
            raise SiteError(f"vr.Sites names {unknown[0]!r}, and the model's latent sites are {list(sites)}")
        return {n: s for n, s in sites.items() if n not in self.without and (self.names is None or n in self.names)}

    def named(self, name: str) -> str:
        """A name of this guide's own."""
        return f"{self.label}_{name}" if self.label else name


ALL = SiteSelection()
