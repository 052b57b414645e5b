"""Control variates for posterior means: functions of mean 0, made of the gradient of log p."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.guides.refined import Refined
from vi_reparam.posterior.modes import vectors
from vi_reparam.posterior.parts import by_parts
from vi_reparam.posterior.weights import Estimate, weighted_mean_and_error

if TYPE_CHECKING:
    from vi_reparam.posterior.posterior import Posterior

DRAWS_A_CONTROL = 20
"""Effective draws that there must be for each control variate."""

AT_ONCE = 4_000_000
"""Numbers that the model's runs may hold at once."""


def controls_of(posterior: Posterior, latents: dict[str, Any]) -> np.ndarray:
    """Zero-variance control variates (Mira, Solgi and Imparato 2013) at draws of the latents, by site.

    For a polynomial P of the unconstrained coordinates, the Laplacian of P plus the product of its gradient with that
    of log p has the mean 0 under the posterior. Of a normal posterior those of degree 1 make the means of linear
    functions exact, and those of degree 2 the means of quadratic ones.

    Returns:
        Shape ``[N, K]``: degree 1, then as much of degree 2 as N allows.

    Raises:
        SiteError: for discrete or masked latents.
    """
    target, ops = posterior.guided.for_family(Refined()).base_guide, posterior.backend.ops
    z = vectors(posterior, latents, target)
    num, size = z.shape

    def slope(args: Any, kwargs: Any, params: Any, z: Any) -> Any:
        return ops.vmap(ops.grad(target.log_joint(target.layout(args, kwargs), params, args, kwargs)))(z)

    count = min(num, max(1, AT_ONCE // max(posterior.scorer.sites.scalars + 20 * size, 1)))

    def run(part: np.ndarray) -> tuple[np.ndarray, ...]:
        scorer, name = posterior.scorer, (target, "slope", count)
        called = posterior.backend.engine.call(slope, scorer.data, scorer.params, ops.asarray(part), name=name)
        return (ops.to_numpy(called),)

    (slopes,) = by_parts(run, z, count)
    scale = np.maximum(z.std(0), np.finfo(float).tiny)
    x, s = (z - z.mean(0)) / scale, slopes * scale  # the same law in coordinates of unit scale
    first, second = np.triu_indices(size)
    if len(first) * DRAWS_A_CONTROL > num:
        first = second = np.arange(size)  # squares alone
    if 2 * size * DRAWS_A_CONTROL > num:
        return s
    products = x[:, first] * s[:, second] + x[:, second] * s[:, first] + 2.0 * (first == second)
    return np.concatenate([s, products], axis=1)


def controlled_mean_and_error(x: np.ndarray, weights: np.ndarray, controls: np.ndarray) -> Estimate:
    """The weighted mean over the leading dimension, with control variates where they make its error smaller.

    Their coefficients come from one half of the draws and serve in the other, so that neither mean nor error is biased
    by the fit.

    Args:
        weights: they sum to 1, shape ``[N]``; `controls`: shape ``[N, K]``.
    """
    plain = weighted_mean_and_error(x, weights)
    flat = x.reshape(len(x), -1)
    effective = 1.0 / float((weights**2).sum())
    usable = np.isfinite(controls).all(axis=1)
    most = int(effective / DRAWS_A_CONTROL)
    own = controls[:, :most]
    if own.shape[1] == 0 or not usable.all():
        return plain
    rest = np.empty_like(flat)
    even = np.arange(len(flat)) % 2 == 0
    for half in (even, ~even):
        w = weights[half] / weights[half].sum()
        design = np.concatenate([np.ones((len(w), 1)), own[half]], axis=1)
        root = np.sqrt(w)[:, None]
        fitted, *_ = np.linalg.lstsq(root * design, root * flat[half], rcond=None)
        rest[~half] = flat[~half] - own[~half] @ fitted[1:]
    after = weighted_mean_and_error(rest, weights)
    better = after.error < plain.error.reshape(-1)
    mean = np.where(better, after.mean, plain.mean.reshape(-1))
    error = np.where(better, after.error, plain.error.reshape(-1))
    return Estimate(mean.reshape(plain.mean.shape), error.reshape(plain.mean.shape))
