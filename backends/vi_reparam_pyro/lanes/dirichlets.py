"""Draws of torch's Dirichlet and beta in lanes: its own function of autograd cannot run there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributions import dirichlet

Array = Any


class _Slope(torch.autograd.Function):
    """A draw as it is, with its slope in the concentrations (implicit reparameterization)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(drawn: Array, concentration: Array) -> Array:
        return drawn.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        drawn, concentration = ctx.saved_tensors
        total = concentration.sum(-1, keepdim=True).expand_as(concentration)
        slope = torch._dirichlet_grad(drawn, concentration, total)  # pyright: ignore[reportPrivateImportUsage]
        return None, slope * (grads[0] - (drawn * grads[0]).sum(-1, keepdim=True))


@contextlib.contextmanager
def in_lanes(noise_of: Callable[[Callable[[Array], Array], Array], Array]) -> Iterator[None]:
    """While this is open, torch's Dirichlet and beta draw for each lane by itself, by `vmap.noise_of`."""

    class InLanes:
        @staticmethod
        def apply(concentration: Array) -> Array:
            sample = torch._sample_dirichlet  # pyright: ignore[reportPrivateImportUsage]
            drawn = noise_of(sample, concentration.detach().contiguous())
            return _Slope.apply(drawn, concentration)

    held = dirichlet._Dirichlet
    dirichlet._Dirichlet = InLanes  # type: ignore[assignment]
    try:
        yield
    finally:
        dirichlet._Dirichlet = held
