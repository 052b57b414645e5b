"""Runs on all of the data, and their log densities."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from pyro.poutine.subsample_messenger import SubsampleMessenger

from vi_reparam_pyro.run import scaled

Array = Any


@contextlib.contextmanager
def full_data() -> Iterator[None]:
    """Switches the subsampling of plates off: their indices run over all of the data.

    A plate checks its indices against its own subsample size before any handler sees it, so
    handlers cannot do this.
    """
    host = SubsampleMessenger._subsample

    def whole(
        name: str,
        size: Any = None,
        subsample_size: Any = None,
        subsample: Any = None,
        use_cuda: Any = None,
        device: Any = None,
    ) -> Any:
        return host(name, size, None, None, use_cuda, device)

    SubsampleMessenger._subsample = staticmethod(whole)  # type: ignore[method-assign]
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(host)  # type: ignore[method-assign]


def total_log_prob(sites: dict[str, Any]) -> Array:
    """Sum of log densities, factors, masks and scales included."""
    total = torch.zeros(())
    for site in sites.values():
        total = total + scaled(site, torch.as_tensor(site["fn"].log_prob(site["value"]))).sum()
    return total
