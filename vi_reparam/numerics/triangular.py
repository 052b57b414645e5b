"""Many small matrices: written out, since a library call for each of them takes longer than its work."""

from __future__ import annotations

from typing import Any

Array = Any

MOST = 8
"""Rows up to which the operations are written out."""


def cholesky(xp: Any, a: Array) -> Array:
    """The lower triangular L with L L^T = a, for positive definite matrices of shape ``[..., K, K]``."""
    size = a.shape[-1]
    if size > MOST:
        return xp.linalg.cholesky(a)
    rows: list[list[Array]] = []
    for i in range(size):
        own: list[Array] = []
        for j in range(i):
            own.append((a[..., i, j] - _dot(own, rows[j], j)) / rows[j][j])
        own.append(xp.sqrt(a[..., i, i] - _dot(own, own, i)))
        rows.append(own)
    return _stacked(xp, rows)


def inverse(xp: Any, lower: Array) -> Array:
    """The inverse of lower triangular matrices of shape ``[..., K, K]``."""
    size = lower.shape[-1]
    if size > MOST:
        return xp.linalg.inv(lower)
    rows: list[list[Array]] = []
    for i in range(size):
        one = 1.0 / lower[..., i, i]
        sums = (sum(lower[..., i, k] * rows[k][j] for k in range(j, i)) for j in range(i))
        rows.append([*(-one * total for total in sums), one])
    return _stacked(xp, rows)


def _dot(a: list[Array], b: list[Array], num: int) -> Any:
    return sum((a[k] * b[k] for k in range(num)), 0.0)


def _stacked(xp: Any, rows: list[list[Array]]) -> Array:
    zero = xp.zeros_like(rows[0][0])
    full = [[*row, *(zero for _ in range(len(rows) - len(row)))] for row in rows]
    return xp.stack([xp.stack(row, axis=-1) for row in full], axis=-2)
