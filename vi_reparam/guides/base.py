"""A guide family: what a user writes in the decorator."""

from __future__ import annotations

import abc


class GuideFamily(abc.ABC):
    """A plain specification; each backend turns it into a guide for a model."""
