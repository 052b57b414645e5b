"""What fits a family without steps."""

from __future__ import annotations

from typing import Any

from vi_reparam.fit import adaptive_mixture, nested_laplace
from vi_reparam.guides import GuideFamily, NestedLaplace


def sampler_of(family: GuideFamily) -> Any:
    """The module with its `why_not` and its `fitted`."""
    return nested_laplace if isinstance(family, NestedLaplace) else adaptive_mixture
