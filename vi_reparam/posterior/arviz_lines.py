"""Both lines of ArviZ, 0.x and 1.x, behind the few functions that this library asks of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

FLAT_WEIGHTS = 1e-3
"""Weights this close to one another have a tail of rounding only."""

FEWEST = 25
"""Weights below which there is no tail to fit."""


def import_arviz() -> Any:
    """ArviZ, without the announcement of its next major version that it makes on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def _is_first_line() -> bool:
    return "InferenceData" in vars(import_arviz())  # 1.x has a warning of that name


def pareto_smooth(log_weights: np.ndarray, rounding: float = 0.0) -> tuple[np.ndarray, float]:
    """Pareto-smoothed importance sampling (Vehtari et al. 2024).

    Args:
        log_weights: shape ``[num_draws]``.
        rounding: how far rounding alone may move a log weight.

    Returns:
        The smoothed log weights, unnormalized, and k-hat. Weights above zero within a thousandth (or
        within their rounding) of one another come back as they are with a k-hat of 0: there is no tail
        to fit. A NaN or +inf anywhere makes k-hat NaN; no finite weight, or too few in all, make it infinite.
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
        return log_weights, float("nan")
    finite = np.isfinite(log_weights)
    if not finite.any():
        return log_weights, float("inf")
    if np.ptp(log_weights[finite]) <= max(FLAT_WEIGHTS, rounding):
        return log_weights, 0.0
    if len(log_weights) < FEWEST:
        return log_weights, float("inf")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # what it warns of is in the k-hat
        smoothed, khat = _psislw(log_weights)
    lowest = int(np.argmin(np.where(finite, log_weights, np.inf)))  # of no tail: it says what they were divided by
    return np.asarray(smoothed) + (log_weights[lowest] - smoothed[lowest]), float(khat)


def _psislw(log_weights: np.ndarray) -> Any:
    if _is_first_line():
        return import_arviz().psislw(log_weights)
    from arviz_stats.base import array_stats  # type: ignore[import-not-found]

    return array_stats.psislw(-log_weights)  # it takes the log likelihood, whose inverse loo weights by


def summary_table(values: Mapping[str, np.ndarray], prob: float) -> pd.DataFrame:
    """Mean, sd and highest-density interval of draws by name, a row each, with 0.x's names of columns.

    Args:
        values: draws by name, shape ``[num_draws]``.
        prob: of the interval.
    """
    import xarray as xr

    arviz = import_arviz()
    numbered = {str(i): (("chain", "draw"), value[None]) for i, value in enumerate(values.values())}
    data = container({"posterior": xr.Dataset(numbered)})
    interval = {"hdi_prob": prob} if _is_first_line() else {"ci_prob": prob, "ci_kind": "hdi"}
    table = arviz.summary(data, kind="stats", round_to="none", **interval).loc[list(numbered)]
    table.columns = ["mean", "sd", *(f"hdi_{100 * edge:g}%" for edge in (0.5 - 0.5 * prob, 0.5 + 0.5 * prob))]
    table.index = list(values)
    return table


def container(groups: Mapping[str, xr.Dataset]) -> Any:
    """ArviZ's own holder of groups: `InferenceData` in 0.x, xarray's `DataTree` in 1.x."""
    if _is_first_line():
        return import_arviz().InferenceData(**groups, warn_on_custom_groups=False)
    import xarray as xr

    return xr.DataTree.from_dict(dict(groups))
