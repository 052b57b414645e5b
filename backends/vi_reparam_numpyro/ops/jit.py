"""Compilation of what runs a few times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

SMALL = 10_000
"""Numbers of data up to which a program that runs once is compiled longer than it runs."""


def jit_once(fn: Callable[..., Any], data: Any, *, size: int = 0) -> Any:
    """`jax.jit` for what runs a few times: on a CPU, and with few numbers, it is compiled without optimization.

    Args:
        data: a tree; its arrays are what counts.
        size: other numbers that it computes with.
    """
    count = size + sum(np.size(x) for x in jax.tree.leaves(data) if hasattr(x, "dtype"))
    small = jax.default_backend() == "cpu" and count <= SMALL
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0} if small else None)
