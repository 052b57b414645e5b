"""One exact exponential step of the variance-controlled SDE, in data form and in noise form.

dx = [f x - (1 + tau^2) / 2 g^2 score] dt + tau g dW has the same marginals for every tau. Between
two points the linear part is solved exactly and what the drift predicts is interpolated
(SA-Solver, Xue et al. 2023, eqs. 9 to 16).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vi_reparam.checks import check_choice
from vi_reparam.errors import ArgumentError
from vi_reparam.sde.moments import adams_weights
from vi_reparam.sde.schedules import Schedule

FORMS = ("data", "noise")


@dataclass(frozen=True)
class Step:
    """x_t = keep x_s + sum_j weights_j prediction_j + sqrt(variance) xi.

    Attributes:
        keep: factor of x_s.
        weights: of the predictions at the nodes: of the data (data form) or of the noise (noise form).
        variance: of the injected noise.
    """

    keep: float
    weights: tuple[float, ...]
    variance: float


def exact_step(
    schedule: Schedule, low: float, high: float, tau: float, *, form: str = "data", nodes: Sequence[float] | None = None
) -> Step:
    """The step from lambda = `low` to `high`, towards the data.

    Args:
        tau: constant within the step.
        form: ``"data"`` or ``"noise"``: what is interpolated.
        nodes: lambdas at which predictions are known; ``[low]`` (order 1) unless given.

    Raises:
        ArgumentError: for a form that does not exist, or unless low < high.
    """
    check_choice("form", form, FORMS)
    if not low < high:
        raise ArgumentError(f"a step goes towards the data: expected low < high, got {low!r} and {high!r}")
    h = high - low
    shifted = [lam - high for lam in ([low] if nodes is None else nodes)]
    square = tau * tau
    alpha, sigma = schedule.alpha(high), schedule.sigma(high)
    if form == "data":
        weights = [(1.0 + square) * alpha * w for w in adams_weights(1.0 + square, h, shifted)]
        keep = sigma / schedule.sigma(low) * math.exp(-square * h)
    else:
        weights = [-(1.0 + square) * sigma * w for w in adams_weights(-1.0, h, shifted)]
        keep = alpha / schedule.alpha(low)
    return Step(keep, tuple(weights), noise_variance(schedule, low, high, tau, form=form))


def noise_variance(schedule: Schedule, low: float, high: float, tau: float, *, form: str = "data") -> float:
    """Variance of the noise that one step injects: the data form's is the smaller.

    1 - e^(-2 tau^2 h) <= 2 tau^2 h <= tau^2 (e^(2h) - 1): at tau = 1 they differ by a factor e^(2h).
    """
    h, sigma = high - low, schedule.sigma(high)
    if form == "data":
        return sigma * sigma * -math.expm1(-2.0 * tau * tau * h)
    return tau * tau * sigma * sigma * math.expm1(2.0 * h)


def noising(schedule: Schedule, low: float, high: float) -> Step:
    """The exact noising kernel from lambda = `high` back to `low`: x_s = keep x_t + sqrt(variance) xi."""
    keep = schedule.alpha(low) / schedule.alpha(high)
    # sigma_s^2 - keep^2 sigma_t^2 = sigma_s^2 (1 - e^(-2h)), without the cancellation
    return Step(keep, (), schedule.sigma(low) ** 2 * -math.expm1(-2.0 * (high - low)))
