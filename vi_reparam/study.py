"""A row of the comparison of guide families."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GuideRow:
    """One family, fitted, under one gradient.

    Attributes:
        family: as it is written.
        gradient: whose variance this is, at the fitted parameters.
        elbo: with its standard `error`, in nats.
        khat: Pareto shape of the importance weights' tail.
        gradient_variance: total, over the guide's parameters, of one step's gradient.
        seconds: of the fit, compilation included.
    """

    family: str
    gradient: str
    elbo: float
    error: float
    khat: float
    gradient_variance: float
    seconds: float
