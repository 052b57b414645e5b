"""From a guide's draws to draws of the posterior, by Hamiltonian Monte Carlo in the guide's coordinates."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from vi_reparam.guides.refined import Refined
from vi_reparam.numerics import hmc
from vi_reparam.posterior import arviz_lines
from vi_reparam.posterior.modes import vectors
from vi_reparam.posterior.sites import check_count
from vi_reparam.programs.mixture import DF, MixtureGuide

if TYPE_CHECKING:
    from vi_reparam.posterior.posterior import Posterior

TURNS = 25
"""Iterations between two looks."""

WARMUP = 8
"""Looks at which the step size and the scales are adapted; what is drawn before the last is thrown away."""

FEWEST, MOST = 3, 24
"""Looks at which draws are kept."""

RHAT = 1.01
BUDGET = 4_000_000
"""Numbers that all chains' runs of the model may hold at once."""

MOVES_SEED = 3

LARGEST_MATRIX = 500
"""Coordinates up to which those of a guide that is no bijection are whitened by a whole covariance."""


class Chart(NamedTuple):
    """The coordinates that the chains move in, as functions of (args, kwargs, params, frame).

    Attributes:
        frame: arrays that it needs.
        starts: shape ``[C, D]``.
        maps: gives `Maps`.
        extra: normal numbers that a proposal takes beyond D.
    """

    frame: dict[str, Any]
    starts: np.ndarray
    maps: Callable[..., Maps]
    extra: int = 0


class Maps(NamedTuple):
    """Functions of one row.

    Attributes:
        place: from the coordinates to a vector of the layout.
        log_p: log density in the coordinates, up to a constant.
        log_ratio: of it to the density of `propose`; None for no proposals.
        propose: coordinates from standard normal noise, shape ``[D]``, and uniform noise, shape ``[2]``.
    """

    place: Callable[[Any], Any]
    log_p: Callable[[Any], Any]
    log_ratio: Callable[[Any], Any] | None = None
    propose: Callable[[Any, Any], Any] | None = None


def refine(posterior: Posterior, num_draws: int, seed: Any, *, progress: bool) -> Posterior:
    """As `Posterior.refine`."""
    num_draws = check_count("num_draws", num_draws)
    begun = time.perf_counter()
    guided = posterior.guided.for_family(Refined())
    target = guided.base_guide
    backend, data = posterior.backend, posterior.scorer.data
    ops, engine = backend.ops, backend.engine
    size = target.layout(*data.call).size
    chains = int(np.clip(BUDGET // max(posterior.scorer.sites.scalars + 20 * size, 1), 8, 64))
    key = engine.key(seed)
    first = vectors(posterior, posterior.draws(max(1_000, 4 * size), seed=MOVES_SEED), target)
    chart = _chart(posterior, target, first, chains)
    name = target, getattr(posterior.guided, "base_guide", None), "refine"

    def block(args: Any, kwargs: Any, key: Any, params: Any, frame: Any, state: hmc.State, adapt: Any) -> Any:
        maps = chart.maps(args, kwargs, params, frame)
        many, shape, dtype = ops.vmap, tuple(state["at"].shape), state["at"].dtype
        ratio = None if maps.log_ratio is None else many(maps.log_ratio)
        moves = hmc.Chains(many(maps.log_p), many(ops.grad(maps.log_p)), ratio)
        own, first, second = ops.split(key, 3)
        given = None
        if maps.propose is not None:
            noise = (
                ops.normal(first, (TURNS, shape[0], shape[1] + chart.extra), dtype),
                ops.uniform(second, (TURNS, shape[0], 2), dtype),
            )
            given = many(many(maps.propose))(*noise)
        noise = hmc.noise_of(ops, own, TURNS, shape, dtype, proposals=given)
        state, found = hmc.run(ops, moves, state, noise, adapt)
        return state, found, many(many(maps.place))(found["at"])

    state = hmc.begin(ops, ops.asarray(chart.starts))
    params = posterior.scorer.params
    kept: list[np.ndarray] = []
    figures: dict[str, float] = {}
    rhat = effective = math.nan
    wanted = max(FEWEST, math.ceil(num_draws / (chains * TURNS)))
    most = max(MOST, wanted)
    bar = tqdm(total=WARMUP + wanted, disable=not progress, desc=f"refine {posterior.name}")
    with bar:
        for look in range(WARMUP + most):
            own = ops.fold_in(key, look)
            adapt = ops.xp.asarray(look < WARMUP)
            state, found, drawn = engine.call(block, data, own, params, chart.frame, state, adapt, name=name)
            bar.update()
            if look < WARMUP:
                if look in (1, 3, 5):
                    scale = ops.asarray(_scale(np.asarray(ops.to_numpy(found["at"])).reshape(-1, size)))
                    state = {**state, "scale": scale, **hmc.fresh(ops, state["mean_step"])}
                continue
            kept.append(np.asarray(ops.to_numpy(drawn), dtype=np.float64))
            figures = {
                "acceptance": float(ops.to_numpy(ops.xp.mean(found["acceptance"]))),
                "jumps": float(ops.to_numpy(ops.xp.mean(found["taken"]))),
            }
            if len(kept) >= wanted:
                rhat, effective = mixing(np.concatenate(kept).transpose(1, 0, 2))
                if rhat < RHAT:
                    break
    flat = np.concatenate(kept).reshape(-1, size)
    sd = np.maximum(flat.std(0), np.finfo(float).tiny)
    record = {
        **posterior.record,
        "family": repr(Refined()),
        "rivals": [],
        "refined": {
            "from": str(posterior.record.get("family")),
            "rhat": rhat,
            "effective_draws": effective,
            "num_chains": chains,
            "num_draws": len(flat),
            "mean_moved": float(np.max(np.abs(flat.mean(0) - first.mean(0)) / sd)),
            "sd_moved": float(np.max(np.abs(np.log(np.maximum(first.std(0), np.finfo(float).tiny) / sd)))),
            "seconds": time.perf_counter() - begun,
            **figures,
        },
    }
    names = set(posterior.params) & set(target.latents.structure(*data.call).params)
    own = {**{n: posterior.params[n] for n in names}, **target.named({"vectors": ops.asarray(flat)})}
    fields = {"args": posterior.args, "kwargs": posterior.kwargs, "losses": posterior.losses, "record": record}
    return type(posterior)(guided, own, seed=posterior.seed, **fields)


def _scale(draws: np.ndarray) -> np.ndarray:
    """Standard deviations of draws, or in few dimensions their covariance's triangular root."""
    spread = draws.std(0)
    spread = np.where(spread > 0.0, spread, 1.0)
    if draws.shape[1] > hmc.LARGEST_MATRIX:
        return spread
    return np.linalg.cholesky(np.atleast_2d(np.cov(draws.T)) + 1e-6 * np.diag(spread**2))


def mixing(draws: np.ndarray) -> tuple[float, float]:
    """The largest R-hat and the smallest number of effective draws; draws of shape ``[chains, draws, D]``."""
    arviz = arviz_lines.import_arviz()
    data = arviz.convert_to_dataset({"x": draws})
    return float(np.max(arviz.rhat(data)["x"].values)), float(np.min(arviz.ess(data)["x"].values))


def _chart(posterior: Posterior, target: Any, drawn: np.ndarray, chains: int) -> Chart:
    """The noise of a guide that is a bijection of it; else coordinates in which its draws are about standard.

    Args:
        drawn: draws of the guide, shape ``[N, D]``.
    """
    guide, ops, size = getattr(posterior.guided, "base_guide", None), posterior.backend.ops, drawn.shape[1]
    if getattr(guide, "transports", False):
        key = posterior.backend.engine.key(MOVES_SEED)
        noise = ops.to_numpy(ops.normal(key, (chains, size), ops.float_dtype()))
        return Chart({}, noise, functools.partial(_of_noise, guide, target))
    within = drawn
    if isinstance(guide, MixtureGuide):
        within = drawn - guide.nearest_centers(posterior.params, ops.asarray(drawn))
    spread = np.maximum(within.std(0), 1e-12)
    root = np.diag(spread)
    if size <= LARGEST_MATRIX:
        root = np.linalg.cholesky(np.atleast_2d(np.cov(within.T)) + 1e-9 * np.diag(spread**2))
    center = drawn.mean(0)
    starts = np.linalg.solve(root, (drawn[:chains] - center).T).T
    frame = {"center": ops.asarray(center), "root": ops.asarray(root)}
    return Chart(frame, starts, functools.partial(_affine, guide, target), DF)


def _of_noise(guide: Any, target: Any, args: Any, kwargs: Any, params: Any, frame: Any) -> Maps:
    draw = guide.transport(guide.layout(args, kwargs), args, kwargs, params)
    joint = target.log_joint(target.layout(args, kwargs), params, args, kwargs)

    def log_ratio(noise: Any) -> Any:
        z, log_q = draw(noise)
        return joint(z) - log_q

    def log_p(noise: Any) -> Any:
        return log_ratio(noise) - 0.5 * guide.ops.xp.sum(noise * noise)

    return Maps(lambda noise: draw(noise)[0], log_p, log_ratio, lambda noise, uniform: noise)


def _affine(guide: Any, target: Any, args: Any, kwargs: Any, params: Any, frame: Any) -> Maps:
    layout = target.layout(args, kwargs)
    joint = target.log_joint(layout, params, args, kwargs)
    center, root = frame["center"], frame["root"]

    def place(y: Any) -> Any:
        return center + root @ y

    def log_p(y: Any) -> Any:
        return joint(place(y))

    if not isinstance(guide, MixtureGuide):
        return Maps(place, log_p)
    draw, log_q = guide.transport(layout, args, kwargs, params), guide.log_prob(params)
    inverse = target.ops.xp.linalg.inv(root)

    def propose(normal: Any, uniform: Any) -> Any:
        return inverse @ (draw((normal, uniform))[0] - center)

    return Maps(place, log_p, lambda y: log_p(y) - log_q(place(y)), propose)
