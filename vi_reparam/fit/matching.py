"""A Gaussian by score matching in closed form: few gradients of log p, and no step to compile.

Batch and match (Cai, Modi, Pillaud-Vivien, Margossian, Gower, Blei and Saul 2024), begun in the frame of the search,
where scales are about one; from a cold start it is lost on badly scaled models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Array
from vi_reparam.gaussians.pathfinder import APART, WORSE, distance
from vi_reparam.programs.rows import NOT_AT_ONCE, OneByOne

if TYPE_CHECKING:
    from vi_reparam.programs.searcher import Place

Params = dict[str, Array]

NUM_UPDATES = 40
BATCH = 32
"""Draws behind an update."""

FEWEST = 8
"""Finite gradients that an update needs."""

LEAST_CURVATURE = 1e-2
"""In noise that is about standard normal, where a match begins."""

DIFFERENCE = 0.01
"""Of that noise, between slopes whose difference is a curvature."""

NUM_GRADIENTS = NUM_UPDATES * BATCH


def matched(guide: Any, data: Data, places: Sequence[Place], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A Gaussian at each place: location and triangular scale, of shapes ``[D]`` and ``[D, D]``, in its frame.

    Args:
        guide: a `JointGuide` of the model.
        places: from which the matching begins.
    """
    ops, slopes = guide.backend.ops, slopes_of(guide, data)
    rng = np.random.default_rng(abs(seed))
    found = []
    for place in places:
        center, root = (np.asarray(ops.to_numpy(x), dtype=np.float64) for x in (place.frame.center, place.frame.root))

        def slope(y: np.ndarray, center: np.ndarray = center, root: np.ndarray = root) -> np.ndarray:
            with np.errstate(all="ignore"):  # what is not finite is left out
                return slopes(center + y @ root.T) @ root

        found.append(match(slope, len(center), rng))
    return found


def slopes_of(guide: Any, data: Data) -> Callable[[np.ndarray], np.ndarray]:
    """The gradient of log p at vectors of all latents, both of shape ``[N, D]``."""
    ops, engine = guide.backend.ops, guide.backend.engine

    def slopes(args: Any, kwargs: Any, z: Any) -> Any:
        return _each(ops, ops.grad(guide.log_joint(guide.layout(args, kwargs), {}, args, kwargs)), z)

    def run(z: np.ndarray) -> np.ndarray:
        return np.asarray(ops.to_numpy(engine.call(slopes, data, ops.asarray(z), name=(guide, "slopes"))), np.float64)

    return run


def _each(ops: Any, fn: Callable[[Any], Any], rows: Any) -> Any:
    """`fn` of each row, at once where the model allows it."""
    try:
        return ops.vmap(fn)(rows)
    except NOT_AT_ONCE:
        return OneByOne(ops).vmap(fn)(rows)


def of_starts(guide: Any, data: Data, starts: Sequence[Mapping[str, Array]]) -> list[Params]:
    """Starts of a guide with their noise matched to the posterior: those that lie apart, the best first."""
    found = sorted((of_noise(guide, data, start) for start in starts), key=lambda pair: -pair[1])
    kept: list[Params] = []
    for params, bound in found:
        if bound > found[0][1] - WORSE and not any(are_near(guide, params, other) for other in kept):
            kept.append(params)
    return kept or [found[0][0]]


def are_near(guide: Any, one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    """Whether the guide with these parameters lies where it does with the others, as far as that is known."""
    here, there = guide.location(one), guide.location(other)
    if here is None or there is None:
        return True
    move, root = guide.ops.to_numpy(here.center) - guide.ops.to_numpy(there.center), guide.ops.to_numpy(there.root)
    return bool(distance(move, root, np.linalg.solve) <= APART)


def of_noise(guide: Any, data: Data, start: Mapping[str, Array]) -> tuple[Params, float]:
    """The same of a guide's standard normal noise, of a guide that transports all of it: parameters, and their ELBO.

    The posterior is matched in the guide's own coordinates, where hierarchies are about normal.

    Args:
        start: parameters of the guide, with no Gaussian of the noise among them.
    """
    ops, engine = guide.backend.ops, guide.backend.engine
    params = engine.first_params(guide.model, guide, data, engine.key(0), dict(start))

    def height(args: Any, kwargs: Any, params: Params) -> Any:
        layout = guide.layout(args, kwargs)
        log_p, move = guide.log_joint(layout, {}, args, kwargs), guide.transport(layout, args, kwargs, params)

        def of(n: Any) -> Any:
            value, log_q = move(n)
            return log_p(value) - log_q - 0.5 * ops.xp.sum(n * n)

        return of

    def look(args: Any, kwargs: Any, params: Params, noise: Any) -> Any:
        of = height(args, kwargs, params)
        return _each(ops, ops.grad(of), noise), _each(ops, of, noise)

    def seen(noise: np.ndarray) -> list[np.ndarray]:
        found = engine.call(look, data, params, ops.asarray(noise), name=(guide, "noise"))
        return [np.asarray(ops.to_numpy(x), np.float64) for x in found]

    def bound(mean: np.ndarray, root: np.ndarray) -> float:
        heights = seen(mean + normal @ root.T)[1]
        found = float(np.mean(heights + 0.5 * (normal * normal).sum(1))) + float(np.log(root.diagonal()).sum())
        return found if math.isfinite(found) else -math.inf

    size, rng = guide.layout(*data.call).size, np.random.default_rng(0)
    normal, eye = rng.normal(size=(BATCH, size)), np.eye(size)
    # by differences of slopes: another program would take longer to compile
    ways = np.resize(np.concatenate([eye, -eye]), (-(-2 * size // BATCH) * BATCH, size)) * DIFFERENCE
    slopes = np.concatenate([seen(rows)[0] for rows in np.split(ways, len(ways) // BATCH)])
    curvature = (slopes[size : 2 * size] - slopes[:size]) / (2.0 * DIFFERENCE)
    begun = [(np.zeros(size), eye), *_normal_at(curvature, seen(np.zeros((BATCH, size)))[0][0])]
    mean, root = match(lambda noise: seen(noise)[0], size, rng, max(begun, key=lambda pair: bound(*pair)))
    found = as_params(mean, root)
    found["lower"] *= size**0.5  # as `bases.Coupled` has it
    own = {name: ops.asarray(value) for name, value in found.items()}
    return {**start, **guide.named(own)}, bound(mean, root)


def _normal_at(curvature: np.ndarray, slope: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The normals with this curvature at zero, there and a Newton step away; none where it is not finite."""
    if not (np.isfinite(curvature).all() and np.isfinite(slope).all()):
        return []
    values, vectors = np.linalg.eigh(0.5 * (curvature + curvature.T))
    values = np.maximum(np.abs(values), LEAST_CURVATURE)
    root = np.linalg.cholesky((vectors / values) @ vectors.T)
    return [(np.zeros(len(slope)), root), (root @ (root.T @ slope), root)]


def match(
    slope: Callable[[np.ndarray], np.ndarray], size: int, rng: Any, begun: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Location and triangular scale of the Gaussian whose scores match, from the standard normal or from another on.

    Args:
        slope: gradients of log p at vectors, both of shape ``[N, D]``.
    """
    mean, root = begun or (np.zeros(size), np.eye(size))
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
