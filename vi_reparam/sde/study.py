"""A row of the study of parameterization, variance and gradient."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One fitted guide.

    Attributes:
        elbo: with its standard `error`, in nats.
        gradient_variance: total, over the guide's parameters, of one step's gradient at the end.
        seconds: of the fit, compilation included.
    """

    parameterization: str
    variance: str
    gradient: str
    elbo: float
    error: float
    gradient_variance: float
    seconds: float
