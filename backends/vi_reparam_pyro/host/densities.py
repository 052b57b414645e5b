"""Log densities of the host's distributions, in lanes too by one operator where torch would take a textbook form."""

from __future__ import annotations

import warnings
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from torch.distributions.utils import broadcast_all

from vi_reparam.errors import short

Array = Any


def log_prob(d: Any, value: Array) -> Array:
    """``d.log_prob(value)``, for Bernoullis as torch computes it outside of lanes.

    In lanes torch writes the cross entropy out, as log(exp(-m) + exp(-x - m)) in 33 operations with
    those of its derivative, and loses what is below one part in 10^7 of its first term in float32.
    """
    if value.dtype == torch.bool:  # torch does not subtract them
        value = value.to(torch.get_default_dtype())
    if type(d) is torch.distributions.Independent or type(d) is dist.Independent:
        return sum_rightmost(log_prob(d.base_dist, value), d.reinterpreted_batch_ndims)
    if d._validate_args and isinstance(d, torch.distributions.Multinomial | dist.DirichletMultinomial):
        _tell_totals(type(d).__name__, value.sum(-1), d.total_count)
    if type(d) not in (dist.Bernoulli, torch.distributions.Bernoulli):
        return d.log_prob(value)
    if d._validate_args:
        d._validate_sample(value)
    logits, value = broadcast_all(d.logits, value)
    return torch.nn.functional.logsigmoid(logits) - (1.0 - value) * logits


def _tell_totals(kind: str, rows: Array, total: Any) -> None:
    """Pyro's densities take each row's own total, and its draws the one that was given."""
    if bool((rows != total).any()):
        warnings.warn(
            f"a {kind} of total_count={short(total)} has data whose rows hold from {rows.min():g} to {rows.max():g}: "
            "its density counts each row's own total, and predictions draw total_count",
            stacklevel=4,
        )
