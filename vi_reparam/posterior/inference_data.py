"""What crosses over to ArviZ: Pareto smoothing, and a posterior as InferenceData."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.posterior.sites import Scored, Site

if TYPE_CHECKING:
    from arviz import InferenceData

# weights this close to one another have a tail of rounding only
FLAT_WEIGHTS = 1e-3


def import_arviz() -> Any:
    """ArviZ, without the announcement of its next major version that it makes on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def pareto_smooth(log_weights: np.ndarray, rounding: float = 0.0) -> tuple[np.ndarray, float]:
    """Pareto-smoothed importance sampling (Vehtari et al. 2024).

    Args:
        log_weights: shape ``[num_draws]``.
        rounding: how far rounding alone may move a log weight.

    Returns:
        The smoothed log weights, unnormalized, and k-hat. Weights above zero within a thousandth (or
        within their rounding) of one another come back as they are with a k-hat of 0: there is no tail
        to fit. A NaN or +inf anywhere makes k-hat NaN, no finite weight makes it infinite.
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
        return log_weights, float("nan")
    if not np.isfinite(log_weights).any():
        return log_weights, float("inf")
    if np.ptp(log_weights[np.isfinite(log_weights)]) <= max(FLAT_WEIGHTS, rounding):
        return log_weights, 0.0
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # what it warns of is in the k-hat
        smoothed, khat = import_arviz().psislw(log_weights, normalize=False)
    return np.asarray(smoothed), float(khat)


def everything(scored: Scored) -> Scored:
    """All of a scored draw."""
    return scored


def without_likelihood(scored: Scored) -> Scored:
    """A scored draw without its element-wise log likelihood."""
    return scored._replace(log_likelihood={})


def to_inference_data(
    scorer: Any, scored: Scored, *, predictive: dict[str, Any] | None, attrs: dict[str, Any]
) -> InferenceData:
    """A posterior as ArviZ knows it: one chain.

    Args:
        scored: stacked draws; `predictive`: the posterior predictive ones, if wanted.
        attrs: strings and numbers about the fit.
    """
    sites = scorer.sites
    posterior = _chain({**scored.latents, **scored.deterministics})
    log_p, log_q = np.asarray(scored.log_p), np.asarray(scored.log_q)
    stats = {"lp": log_p, "log_q": log_q, "log_weight": log_p.astype(np.float64) - log_q}
    observed = scorer.observed()
    constant = _constant(scorer.named_arrays(), list(observed.values()))
    groups = {
        "posterior": posterior,
        "sample_stats": _chain(stats),
        "log_likelihood": _chain(scored.log_likelihood),
        "posterior_predictive": _chain(predictive or {}),
        "observed_data": {safe_name(name): value for name, value in observed.items()},
        "constant_data": {safe_name(name): value for name, value in constant.items()},
    }
    named = {**sites.latents, **sites.deterministics, **sites.observed}
    dims = {safe_name(name): _dims(name, site) for name, site in named.items()}
    groups = {name: group for name, group in groups.items() if group}
    data = import_arviz().from_dict(**groups, dims=dims, save_warmup=False)
    for group in data.groups():
        data[group].attrs.update(attrs, inference_library="vi-reparam")
    return data


def safe_name(name: str) -> str:
    """A site's name without slashes, which netCDF takes for groups."""
    return name.replace("/", ".")


def _chain(values: dict[str, Any]) -> dict[str, np.ndarray]:
    return {safe_name(name): np.asarray(value)[None] for name, value in values.items()}


def _dims(name: str, site: Site) -> list[str]:
    # a dimension may not be named as a variable is
    plates = {dim: f"{safe_name(plate)}_plate" for dim, plate in site.plates.items()}
    return [plates.get(dim, f"{safe_name(name)}_dim_{dim}") for dim in range(len(site.shape))]


def _constant(arrays: dict[str, np.ndarray], observed: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {n: x for n, x in arrays.items() if not any(np.array_equal(x, other) for other in observed)}
