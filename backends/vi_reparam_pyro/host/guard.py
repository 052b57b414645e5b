"""Who is asking: what of Pyro's runs on the call stack."""

from __future__ import annotations

import sys
from typing import Any

import torch
from pyro.infer import ELBO as HOST_ELBO
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO

HONOURING: tuple[type, ...] = (Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO)
"""Pyro's objectives that multiply a site's ``score_function`` with its cost."""


def running_objective() -> Any:
    """The Pyro objective on the call stack; None if there is none.

    Pyro does not tell a distribution which objective is asking, and some honour its
    ``score_parts`` and some do not.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, HOST_ELBO):
            return owner
        frame = frame.f_back
    return None


def wrapping_distribution(depth: int) -> Any:
    """The distribution whose method called the caller `depth` frames up; None if it was no distribution."""
    owner = sys._getframe(depth + 1).f_locals.get("self")
    return owner if isinstance(owner, torch.distributions.Distribution) else None
