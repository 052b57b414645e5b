"""A guide family: what a user writes in the decorator."""

from __future__ import annotations

import abc


class GuideFamily(abc.ABC):
    """A plain specification; each backend turns it into a guide for a model."""

    @abc.abstractmethod
    def family_at(self, site: str, support: str) -> str:
        """Name of the distribution family that a site gets, given the kind of its support."""
