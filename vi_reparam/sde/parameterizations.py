"""What a drift predicts: data, noise, score or velocity, with exact ways from each to the data.

With x = alpha x0 + sigma eps: score = -eps / sigma, velocity = alpha eps - sigma x0.
"""

from __future__ import annotations

from vi_reparam.backend.ops import Array
from vi_reparam.checks import check_choice

PARAMETERIZATIONS = ("data", "noise", "score", "velocity")


def weights(kind: str, alpha: Array, sigma: Array) -> tuple[Array | float, Array | float]:
    """(a, b) in x0 = a x + b prediction.

    Raises:
        ArgumentError: for a kind that does not exist.
    """
    check_choice("parameterization", kind, PARAMETERIZATIONS)
    if kind == "data":
        return 0.0, 1.0
    if kind == "noise":
        return 1.0 / alpha, -sigma / alpha
    if kind == "score":
        return 1.0 / alpha, sigma * sigma / alpha
    total = alpha * alpha + sigma * sigma
    return alpha / total, -sigma / total


def to_data(kind: str, x: Array, prediction: Array, alpha: Array, sigma: Array) -> Array:
    """The data x0 that a prediction at x implies. All arguments broadcast."""
    of_x, of_prediction = weights(kind, alpha, sigma)
    return of_x * x + of_prediction * prediction


def from_data(kind: str, x: Array, data: Array, alpha: Array, sigma: Array) -> Array:
    """The prediction at x that the data x0 implies: the inverse of `to_data`."""
    of_x, of_prediction = weights(kind, alpha, sigma)
    return (data - of_x * x) / of_prediction


def residual_scale(kind: str, alpha: float, sigma: float) -> float:
    """How far a residual in these terms moves the data; its sign is left to the network."""
    return abs(weights(kind, alpha, sigma)[1])
