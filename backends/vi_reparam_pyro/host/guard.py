"""A derivative rule that raises: for gradients that would silently be wrong."""

from __future__ import annotations

import sys
from typing import Any

import torch
from pyro.infer import ELBO as HOST_ELBO
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO

from vi_reparam.errors import GradientError

HONOURING: tuple[type, ...] = (Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO)
"""Pyro's objectives that multiply a site's ``score_function`` with its cost."""


class _Refuse(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Any, message: str, *operands: Any) -> Any:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.message = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise GradientError(ctx.message)


def refuse_gradient(message: str, value: Any, *operands: Any) -> Any:
    """`value`, which raises if it is differentiated with respect to anything behind it or `operands`.

    Evaluation and prediction work as ever.
    """
    return _Refuse.apply(value, message, *operands)


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
