"""Exponential moments, and the weights of an Adams step: Lagrange polynomials against an exponential."""

from __future__ import annotations

import math
from collections.abc import Sequence


def unit_moment(n: int, z: float) -> float:
    """The integral of e^(-z v) v^n over v in [0, 1].

    Both series have terms of one sign, so nothing cancels at any z.
    """
    if z >= 0.0:  # e^(-z) sum_k z^k n! / (n + 1 + k)!
        term, total, k = 1.0 / (n + 1), 0.0, 0
        while term > 1e-18 * total:
            total += term
            k += 1
            term *= z / (n + 1 + k)
        return math.exp(-z) * total
    power, total, k = 1.0, 0.0, 0  # sum_k |z|^k / (k! (n + 1 + k))
    while power > 1e-18 * total:
        total += power / (n + 1 + k)
        k += 1
        power *= -z / k
    return total


def lagrange(nodes: Sequence[float]) -> list[list[float]]:
    """Coefficients, by power, of the polynomials that are 1 at one node and 0 at the others."""
    rows = []
    for j, own in enumerate(nodes):
        row = [1.0]
        for i, other in enumerate(nodes):
            if i != j:
                row = [(a - other * b) / (own - other) for a, b in zip([0.0, *row], [*row, 0.0], strict=True)]
        rows.append(row)
    return rows


def adams_weights(rate: float, h: float, nodes: Sequence[float]) -> list[float]:
    """The integral over u in [-h, 0] of e^(rate u) l_j(u), for each node's polynomial l_j.

    Args:
        rate: of the exponential.
        h: the step.
        nodes: in u, that is lambda - lambda_t.
    """
    # in units of h, so that small steps lose nothing
    scaled = lagrange([u / h for u in nodes])
    return [h * sum(c * (-1.0) ** n * unit_moment(n, rate * h) for n, c in enumerate(row)) for row in scaled]
