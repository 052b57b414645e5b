"""How much a program is optimized: compilation is most of a short fit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

SMALL = 10_000
"""Numbers of data up to which a program that runs once is compiled longer than it runs."""

UNOPTIMIZED: dict[str, Any] = {"xla_backend_optimization_level": 1}
"""At 0 the slope of a maximum is NaN: XLA computes the largest value twice, and no value equals it to the last bit."""

OLDER = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
QUICKEST = {**UNOPTIMIZED, **OLDER}
"""A third of the CPU seconds of `UNOPTIMIZED` alone."""

BALANCED = {**OLDER, "xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": True}
"""Half of the CPU seconds that XLA takes by itself, for programs that run up to a fifth longer."""


def jit_once(fn: Callable[..., Any], data: Any, *, size: int = 0) -> Any:
    """`jax.jit` for what runs a few times: on a CPU, and with few numbers, it is compiled without optimization.

    Args:
        data: a tree; its arrays are what counts.
        size: other numbers that it computes with.
    """
    count = size + sum(np.size(x) for x in jax.tree.leaves(data) if hasattr(x, "dtype"))
    if count > SMALL:
        return jit_steps(fn, long=False)
    on_cpu = jax.default_backend() == "cpu"
    return jax.jit(fn, compiler_options=_known(QUICKEST, UNOPTIMIZED) if on_cpu else None)


def jit_steps(fn: Callable[..., Any], *, long: bool, **options: Any) -> Any:
    """`jax.jit` for the steps of a fit; `long`: they take so long that all of XLA's optimization pays."""
    quickest = jax.config.read("jax_disable_most_optimizations")  # as in tests
    balanced = jax.default_backend() == "cpu" and not long and not quickest
    return jax.jit(fn, compiler_options=_known(BALANCED, {}) if balanced else None, **options)


def _known(options: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """These options, or the other ones where this XLA does not know a name."""
    return options if _knows(tuple(options.items())) else other


@functools.cache
def _knows(options: tuple[tuple[str, Any], ...]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=dict(options)).lower(np.float32(0)).compile()
    except Exception:
        return False
    return True
