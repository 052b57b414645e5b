"""Factors and solutions of many matrices at once: on a CPU one after the other.

Several batched factorizations at once each take a thread of XLA's pool and wait there for their parts, which wait for a
thread. On two cores that lasts for ever (JAX 0.10: within some hundred calls of two batched Cholesky factors).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


@custom_vmap
def _cholesky(a: Any) -> Any:
    return jnp.linalg.cholesky(a)


@_cholesky.def_vmap
def _(axis_size: int, batched: list[bool], a: Any) -> tuple[Any, bool]:
    return jax.lax.map(_cholesky, a), True


def _solution(lower: bool) -> Any:
    @custom_vmap
    def solve(a: Any, b: Any) -> Any:
        return jax.scipy.linalg.solve_triangular(a, b, lower=lower)

    @solve.def_vmap
    def _(axis_size: int, batched: list[bool], a: Any, b: Any) -> tuple[Any, bool]:
        if not batched[0]:  # one solution of many columns
            rows = jnp.moveaxis(b, 0, -1)
            found = solve(a, rows.reshape(rows.shape[0], -1)).reshape(rows.shape)
            return jnp.moveaxis(found, -1, 0), True
        if not batched[1]:
            return jax.lax.map(lambda matrix: solve(matrix, b), a), True
        return jax.lax.map(lambda pair: solve(*pair), (a, b)), True

    return solve


_SOLUTIONS = {lower: _solution(lower) for lower in (True, False)}


BLOCK = 32
"""Rows that LAPACK factors at once: with more it takes threads of its own, which wait for cores that XLA holds."""


def cholesky(a: Any) -> Any:
    """As `jnp.linalg.cholesky`, of one matrix."""
    return _in_blocks(a) if jax.default_backend() == "cpu" else jnp.linalg.cholesky(a)


def _in_blocks(a: Any) -> Any:
    size, columns = a.shape[-1], []
    for start in range(0, size, BLOCK):
        root = _cholesky(a[:BLOCK, :BLOCK])
        inverse = _SOLUTIONS[True](root, jnp.eye(root.shape[0], dtype=a.dtype))
        below = a[BLOCK:, :BLOCK] @ inverse.T
        a = a[BLOCK:, BLOCK:] - below @ below.T
        columns.append(jnp.concatenate([jnp.zeros((start, root.shape[0]), a.dtype), root, below]))
    return jnp.concatenate(columns, axis=1)


def solve_triangular(a: Any, b: Any, *, lower: bool) -> Any:
    """As `jax.scipy.linalg.solve_triangular`, of one matrix."""
    if jax.default_backend() == "cpu":
        return _SOLUTIONS[lower](a, b)
    return jax.scipy.linalg.solve_triangular(a, b, lower=lower)
