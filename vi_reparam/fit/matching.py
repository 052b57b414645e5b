"""A Gaussian by score matching in closed form: few gradients of log p, and no step to compile.

Batch and match (Cai, Modi, Pillaud-Vivien, Margossian, Gower, Blei and Saul 2024), begun in the frame of the search,
where scales are about one; from a cold start it is lost on badly scaled models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.backend.data import Data

if TYPE_CHECKING:
    from vi_reparam.programs.searcher import Place

NUM_UPDATES = 40
BATCH = 32
"""Draws behind an update."""

FEWEST = 8
"""Finite gradients that an update needs."""

NUM_GRADIENTS = NUM_UPDATES * BATCH


def matched(guide: Any, data: Data, places: Sequence[Place], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A Gaussian at each place: location and triangular scale, of shapes ``[D]`` and ``[D, D]``, in its frame.

    Args:
        guide: a `JointGuide` of the model.
        places: from which the matching begins.
    """
    ops, engine = guide.backend.ops, guide.backend.engine

    def slopes(args: Any, kwargs: Any, z: Any) -> Any:
        return ops.vmap(ops.grad(guide.log_joint(guide.layout(args, kwargs), {}, args, kwargs)))(z)

    rng = np.random.default_rng(abs(seed))
    found = []
    for place in places:
        center, root = (np.asarray(ops.to_numpy(x), dtype=np.float64) for x in (place.frame.center, place.frame.root))

        def slope(y: np.ndarray, center: np.ndarray = center, root: np.ndarray = root) -> np.ndarray:
            z = ops.asarray(center + y @ root.T)
            found = ops.to_numpy(engine.call(slopes, data, z, name=(guide, "slopes")))
            with np.errstate(all="ignore"):  # what is not finite is left out
                return np.asarray(found, np.float64) @ root

        found.append(match(slope, len(center), rng))
    return found


def match(slope: Callable[[np.ndarray], np.ndarray], size: int, rng: Any) -> tuple[np.ndarray, np.ndarray]:
    """Location and triangular scale of the Gaussian whose scores match, from the standard normal on.

    Args:
        slope: gradients of log p at vectors, both of shape ``[N, D]``.
    """
    mean, root = np.zeros(size), np.eye(size)
    for update in range(NUM_UPDATES):
        z = mean + rng.normal(size=(BATCH, size)) @ root.T
        g = slope(z)
        fine = np.isfinite(g).all(1)
        if fine.sum() < FEWEST:
            continue
        try:
            mean, root = _updated(mean, root, z[fine], g[fine], BATCH / (update + 1.0))
        except np.linalg.LinAlgError:  # gradients of very different sizes: what is known stays
            continue
    return mean, root


def _updated(
    mean: np.ndarray, root: np.ndarray, z: np.ndarray, g: np.ndarray, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """The Gaussian after one batch of draws and gradients."""
    part = rate / (1.0 + rate)
    z_mean, g_mean = z.mean(0), g.mean(0)
    z_moved, g_moved, moved = z - z_mean, g - g_mean, mean - z_mean
    u = rate * g_moved.T @ g_moved / len(g) + part * np.outer(g_mean, g_mean)
    v = root @ root.T + rate * z_moved.T @ z_moved / len(z) + part * np.outer(moved, moved)
    lower = np.linalg.cholesky(v)
    # S U S + S = V, with S = L X L^T: X (L^T U L) X + X = I
    values, vectors = np.linalg.eigh(lower.T @ u @ lower)
    x = 2.0 / (1.0 + np.sqrt(1.0 + 4.0 * np.maximum(values, 0.0)))
    covariance = lower @ (vectors * x) @ vectors.T @ lower.T
    after = np.linalg.cholesky(0.5 * (covariance + covariance.T))
    if not (np.isfinite(after).all() and (after.diagonal() > 0.0).all()):
        raise np.linalg.LinAlgError("a covariance that is not finite")
    return (1.0 - part) * mean + part * (covariance @ g_mean + z_mean), after


def as_params(location: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
    """The same as parameters of `vi_reparam.gaussians.bases.Full`."""
    diagonal = scale.diagonal()
    return {"loc": location, "log_scale": np.log(diagonal), "lower": np.tril(scale / diagonal[:, None], k=-1)}
