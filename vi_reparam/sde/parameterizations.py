"""What a drift predicts: data, noise, score or velocity, with exact ways from each to the data.

With x = alpha x0 + sigma eps: score = -eps / sigma, velocity = alpha eps - sigma x0.
"""

from __future__ import annotations

from vi_reparam.backend.ops import Array
from vi_reparam.checks import check_choice

PARAMETERIZATIONS = ("data", "noise", "score", "velocity")


def to_data(kind: str, x: Array, prediction: Array, alpha: Array, sigma: Array) -> Array:
    """The data x0 that a prediction at x implies. All arguments broadcast."""
    if kind == "data":
        return prediction
    if kind == "noise":
        return (x - sigma * prediction) / alpha
    if kind == "score":
        return (x + sigma * sigma * prediction) / alpha
    check_choice("parameterization", kind, PARAMETERIZATIONS)
    return (alpha * x - sigma * prediction) / (alpha * alpha + sigma * sigma)


def from_data(kind: str, x: Array, data: Array, alpha: Array, sigma: Array) -> Array:
    """The prediction at x that the data x0 implies: the inverse of `to_data`."""
    if kind == "data":
        return data
    if kind == "noise":
        return (x - alpha * data) / sigma
    if kind == "score":
        return (alpha * data - x) / (sigma * sigma)
    check_choice("parameterization", kind, PARAMETERIZATIONS)
    return (alpha * x - (alpha * alpha + sigma * sigma) * data) / sigma


def residual_scale(kind: str, alpha: float, sigma: float) -> float:
    """c in x0 = alpha x / (alpha^2 + sigma^2) + c r: how far a residual r moves the data; signs are the network's."""
    if kind == "data":
        return 1.0
    if kind == "noise":
        return sigma / alpha
    if kind == "score":
        return sigma * sigma / alpha
    check_choice("parameterization", kind, PARAMETERIZATIONS)
    return sigma / (alpha * alpha + sigma * sigma)
