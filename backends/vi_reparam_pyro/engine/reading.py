"""Draws that a model reads as numbers of Python: no gradient goes through these, and torch says nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from vi_reparam.backend.data import Data
from vi_reparam.checks import tell_of_the_end
from vi_reparam.errors import ArgumentError
from vi_reparam_pyro.host.tracer import tracer

Array = Any

READING = {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__float__, torch.tensor}  # type: ignore[attr-defined]
"""Functions whose results have no gradient, whatever they are given."""

STEP, SHARE = 1e-2, 0.1
"""Of a difference, relative to a draw; and by how much of a slope the two ways to find it may differ."""


class _Reads(TorchFunctionMode):
    """Whether a value with a gradient goes into a function whose result has none, and rows count from the end."""

    found = from_the_end = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READING and any(getattr(x, "requires_grad", False) for x in pytree.tree_leaves(args)):
            self.found = True
        if func is torch.Tensor.__getitem__:
            rows = [x for x in pytree.tree_leaves(args[1:]) if isinstance(x, torch.Tensor) and x.dtype == torch.int64]
            self.from_the_end |= any(x.numel() > 1 and bool((x == -1).any()) and bool(x.max() > 0) for x in rows)
        return func(*args, **(kwargs or {}))


def refuse_reading(model: Callable[..., Any], data: Data, key: int) -> None:
    """Refuse a model whose density would be fitted as if it did not depend on a draw that it reads.

    Raises:
        ArgumentError: saying what to write.
    """
    try:
        wrong = _loses_a_slope(model, data, key)
    except Exception as error:  # whatever else is wrong, the check of the fit says so
        wrong = "that requires grad" in str(error)
    if wrong:
        raise ArgumentError(
            f"{_name(model)} makes a number of Python of a draw (float(x), x.item(), x.numpy() or torch.tensor([x])), "
            "through which no gradient goes: keep it a tensor, with torch.stack for several"
        )


def _name(model: Any) -> str:
    return str(getattr(model, "__name__", type(model).__name__))[:40]


def _loses_a_slope(model: Callable[..., Any], data: Data, key: int) -> bool:
    """Whether a draw is read, and the slope of the density is another by differences than by torch.

    Choosing a branch by a draw is no harm.
    """
    with torch.no_grad():
        found = tracer.run(model, *data.call, key, alone=True)
    values = {n: r.value.detach() for n, r in found.items() if r.is_latent}
    moved = {n: values[n] for n, r in found.items() if r.is_latent and not r.distribution.support.is_discrete}

    def log_p(given: Mapping[str, Array]) -> Array:
        run = tracer.run(model, *data.call, key, values={**values, **given}, alone=True)
        return sum((r.log_prob().sum() for r in run.values() if r.kind == "sample"), torch.zeros(()))

    reads, leaves = _Reads(), {n: x.clone().requires_grad_() for n, x in moved.items()}
    with torch.enable_grad(), reads:
        height = log_p(leaves)
    if reads.from_the_end:
        tell_of_the_end(_name(model))
    if not reads.found:
        return False
    if not height.requires_grad:
        return bool(moved)
    slopes = torch.autograd.grad(height, list(leaves.values()), allow_unused=True)
    slope = sum(float((s * x).sum()) for s, x in zip(slopes, moved.values(), strict=True) if s is not None)
    with torch.no_grad():
        up, down = (float(log_p({n: x * (1.0 + by) for n, x in moved.items()})) for by in (STEP, -STEP))
    seen = (up - down) / (2.0 * STEP)
    rounding = 10.0 * torch.finfo(torch.get_default_dtype()).eps * max(abs(up), abs(down), 1.0) / STEP
    return abs(seen - slope) > SHARE * (abs(seen) + abs(slope)) + rounding + STEP
