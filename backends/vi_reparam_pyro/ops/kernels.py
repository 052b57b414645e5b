"""Gammas on a GPU by one kernel, where that is the faster way there."""

from __future__ import annotations

import functools
from typing import Any

import torch

from vi_reparam.backend.kernel_choice import FastestWay, Run
from vi_reparam.backend.registry import ops_of
from vi_reparam.numerics import gamma_slope
from vi_reparam.samplers.base import Attempt
from vi_reparam.samplers.gamma import LogGamma
from vi_reparam_pyro.lanes.seeding import with_salt
from vi_reparam_pyro.ops.at_once import at_once
from vi_reparam_pyro.ops.home import at_home

Array = Any

CHOICE = FastestWay("gamma draws")

SMALLEST = 4_096
"""Lanes below which every way on a GPU takes the time of its launches."""

_MEASURED = 2**18
"""Lanes that are timed."""


def device_kind(a: Array) -> str | None:
    """The kind of GPU that holds `a`; None on anything else."""
    return torch.cuda.get_device_name(a.device) if a.is_cuda else None


def fastest(a: Array) -> bool:
    """Whether the kernels serve a float32 or float64 tensor: on a GPU on which they were the faster way.

    The ways are timed with the gradient, once for each kind of GPU; no time is taken where there is none.
    """
    if a.numel() < SMALLEST or a.dtype not in (torch.float32, torch.float64) or (kind := device_kind(a)) is None:
        return False
    ways = {"plain version": _by_operators, "kernel": _by_kernel}
    return CHOICE.among(kind, {name: functools.partial(_run, way, a.device) for name, way in ways.items()}) == "kernel"


def chosen(attempt: Attempt, a: Array) -> bool:
    """Whether a kernel holds the rejection loop of an attempt."""
    return type(attempt.sampler) is LogGamma and fastest(a)


def _by_kernel(attempt: Attempt, a: Array) -> Array:
    return slope(ratios(0, a), a)


def _by_operators(attempt: Attempt, a: Array) -> Array:
    sampler: Any = attempt.sampler
    eps = at_once(attempt, 0, (a,), sampler.rounds)
    return gamma_slope.log_slope(sampler.transform((eps, sampler.auxiliary(attempt.ops, 1, a.shape, a.dtype)), a), a)


def _run(way: Any, device: torch.device) -> Run:
    a = torch.linspace(0.1, 5.0, _MEASURED, dtype=torch.float32, device=device)

    def run() -> None:
        with torch.no_grad(), at_home(a):
            way(Attempt(ops_of(a), LogGamma(), a.dtype), a)
        if a.is_cuda:
            torch.cuda.synchronize(device)

    return run


def _kernels() -> Any:
    from vi_reparam_pyro.ops import triton_kernels  # here: Triton is there where torch has a GPU

    return triton_kernels


def accepted(key: int, a: Array, boost: float, most: int) -> Array:
    """Accepted normals of Marsaglia and Tsang's sampler."""
    return _kernels().draw(with_salt(key), a, boost=boost, most=most, ratio=False)


def ratios(key: int, a: Array) -> Array:
    """W = log(z / a) for z ~ Gamma(a, 1)."""
    return _kernels().draw(with_salt(key), a, boost=1.0, most=LogGamma.max_rounds, ratio=True)


def slope(w: Array, a: Array) -> Array:
    """`vi_reparam.numerics.gamma_slope.log_slope`: in float32 by one kernel."""
    return _kernels().slope(w, a) if w.dtype == torch.float32 else gamma_slope.log_slope(w, a)
