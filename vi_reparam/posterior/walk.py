"""Chains of Hamiltonian Monte Carlo in a guide's own coordinates, from its draws."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vi_reparam.guides.refined import Refined
from vi_reparam.numerics import hmc
from vi_reparam.numerics.special import LOG_2PI
from vi_reparam.posterior.modes import vectors
from vi_reparam.posterior.parts import by_parts
from vi_reparam.programs.mixture import DF, MixtureGuide

if TYPE_CHECKING:
    from vi_reparam.posterior.posterior import Posterior

TURNS = 25
"""Iterations between two looks."""

BUDGET = 4_000_000
"""Numbers that all chains' runs of the model may hold at once."""

FEWEST_CHAINS = 8
MOVES_SEED = 3

LARGEST_MATRIX = 500
"""Coordinates up to which those of a guide that is no bijection are whitened by a whole covariance."""


class Chart(NamedTuple):
    """The coordinates that the chains move in, as functions of (args, kwargs, params, frame).

    Attributes:
        frame: arrays that they need.
        maps: gives `Maps`.
        extra: normal numbers that a proposal takes beyond D.
        proposes: whether there are independent proposals.
    """

    frame: dict[str, Any]
    maps: Callable[..., Maps]
    extra: int = 0
    proposes: bool = True


class Maps(NamedTuple):
    """Functions of one row.

    Attributes:
        place: from the coordinates to a vector of the layout.
        log_p: log density in the coordinates, up to a constant.
        log_volume: that constant, which makes its integral the evidence.
        log_ratio: of it to the density of `propose`; None for no proposals.
        propose: coordinates from standard normal noise, shape ``[D]``, and uniform noise, shape ``[2]``.
    """

    place: Callable[[Any], Any]
    log_p: Callable[[Any], Any]
    log_volume: Any
    log_ratio: Callable[[Any], Any] | None = None
    propose: Callable[[Any, Any], Any] | None = None


class Walk:
    """Chains that start at draws of a posterior's guide, and move on from call to call.

    Args:
        most_chains: at the most; fewer where a run of the model is large.

    Attributes:
        target: a `JointGuide` that draws stored vectors, and knows how the latents are laid out.
        first: draws of the guide as vectors. Shape ``[N, D]``.
        size: D, coordinates of the latents.
        num_chains: C.

    Raises:
        SiteError: for discrete or masked latents.
    """

    def __init__(self, posterior: Posterior, seed: Any, most_chains: int) -> None:
        guided = posterior.guided.for_family(Refined())
        self.posterior, self.target = posterior, guided.base_guide
        self.ops = posterior.backend.ops
        self.size = self.target.layout(*posterior.scorer.data.call).size
        room = BUDGET // max(posterior.scorer.sites.scalars + 20 * self.size, 1)
        self.num_chains = int(np.clip(room, FEWEST_CHAINS, most_chains))
        self.first = vectors(posterior, posterior.draws(max(1_000, 4 * self.size), seed=MOVES_SEED), self.target)
        self.chart, starts = _chart(posterior, self.target, self.first, self.num_chains)
        self.state = hmc.begin(self.ops, self.ops.asarray(starts))
        self._key, self._looks = posterior.backend.engine.key(seed), 0
        self._name = self.target, getattr(posterior.guided, "base_guide", None), most_chains
        self._starts = starts

    def look(self, *, adapt: bool) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Move all chains by `TURNS` iterations.

        Args:
            adapt: whether to adapt the step size.

        Returns:
            What `hmc.run` gives beside the state; the chains' coordinates and their vectors. Shape ``[TURNS, C, D]``.
        """
        ops, posterior = self.ops, self.posterior
        own = ops.fold_in(self._key, self._looks)
        self._looks += 1
        move = functools.partial(_move, ops, self.chart)
        inputs = own, posterior.scorer.params, self.chart.frame, self.state, ops.xp.asarray(adapt)
        called = posterior.backend.engine.call(move, posterior.scorer.data, *inputs, name=(*self._name, "walk"))
        self.state, found, drawn = called
        at, reached = (np.asarray(ops.to_numpy(x), dtype=np.float64) for x in (found["at"], drawn))
        return found, at, reached

    @property
    def starts(self) -> np.ndarray:
        """Vectors where the chains began. Shape ``[C, D]``."""
        ops, posterior = self.ops, self.posterior
        inputs = posterior.scorer.params, self.chart.frame, ops.asarray(self._starts)
        place = functools.partial(_place, ops, self.chart)
        found = posterior.backend.engine.call(place, posterior.scorer.data, *inputs, name=(*self._name, "place"))
        return np.asarray(ops.to_numpy(found), dtype=np.float64)

    def rescale(self, found: dict[str, Any]) -> None:
        """Take the scales of what was found, and adapt the step size anew."""
        at = np.asarray(self.ops.to_numpy(found["at"]), dtype=np.float64).reshape(-1, self.size)
        scale = self.ops.asarray(_scale(at))
        self.state = {**self.state, "scale": scale, **hmc.fresh(self.ops, self.state["mean_step"])}

    def log_densities(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Of coordinates, shape ``[N, D]``: log p, whose integral is the evidence, and its log ratio to the proposals.

        The second is None where there are no proposals.
        """
        ops, posterior, score = self.ops, self.posterior, functools.partial(_score, self.ops, self.chart)

        def run(part: np.ndarray) -> tuple[np.ndarray, ...]:
            inputs = posterior.scorer.params, self.chart.frame, ops.asarray(part)
            pair = posterior.backend.engine.call(score, posterior.scorer.data, *inputs, name=(*self._name, "score"))
            return tuple(map(ops.to_numpy, pair))

        log_p, ratio = by_parts(run, at, TURNS * self.num_chains)
        return log_p, ratio if self.chart.proposes else None

    def propose(self, num: int, seed: int) -> np.ndarray:
        """Coordinates of independent proposals, shape ``[num, D]``; only where there are any."""
        ops, posterior, extra = self.ops, self.posterior, self.chart.extra
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(num, self.size + extra)), rng.uniform(size=(num, 2))

        draw = functools.partial(_propose, ops, self.chart)
        inputs = posterior.scorer.params, self.chart.frame, *map(ops.asarray, noise)
        found = posterior.backend.engine.call(draw, posterior.scorer.data, *inputs, name=(*self._name, "propose", num))
        return np.asarray(ops.to_numpy(found), dtype=np.float64)


# what is compiled and kept holds no posterior


def _move(
    ops: Any, chart: Chart, args: Any, kwargs: Any, key: Any, params: Any, frame: Any, state: hmc.State, adapt: Any
) -> Any:
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


def _place(ops: Any, chart: Chart, args: Any, kwargs: Any, params: Any, frame: Any, at: Any) -> Any:
    return ops.vmap(chart.maps(args, kwargs, params, frame).place)(at)


def _score(ops: Any, chart: Chart, args: Any, kwargs: Any, params: Any, frame: Any, at: Any) -> tuple[Any, Any]:
    maps = chart.maps(args, kwargs, params, frame)
    return ops.vmap(maps.log_p)(at) + maps.log_volume, ops.vmap(maps.log_ratio or maps.log_p)(at)


def _propose(ops: Any, chart: Chart, args: Any, kwargs: Any, params: Any, frame: Any, normal: Any, uniform: Any) -> Any:
    propose = chart.maps(args, kwargs, params, frame).propose
    assert propose is not None
    return ops.vmap(propose)(normal, uniform)


def dense_root(vectors: np.ndarray, spread: np.ndarray, least: float = 1e-9) -> np.ndarray:
    """The triangular root of the covariance of vectors, shape ``[N, D]``.

    Args:
        spread: about their standard deviations; `least`: part of its square that is added to the variances.
    """
    return np.linalg.cholesky(np.atleast_2d(np.cov(vectors.T)) + least * np.diag(spread**2))


def _scale(draws: np.ndarray) -> np.ndarray:
    """Standard deviations of draws, or in few dimensions their covariance's triangular root."""
    spread = draws.std(0)
    spread = np.where(spread > 0.0, spread, 1.0)
    if draws.shape[1] > hmc.LARGEST_MATRIX:
        return spread
    return dense_root(draws, spread, 1e-6)


def _chart(posterior: Posterior, target: Any, drawn: np.ndarray, chains: int) -> tuple[Chart, np.ndarray]:
    """The noise of a guide that is a bijection of it; else coordinates in which its draws are about standard.

    Args:
        drawn: draws of the guide, shape ``[N, D]``.

    Returns:
        The chart, and starts in it, shape ``[chains, D]``.
    """
    guide, ops, size = getattr(posterior.guided, "base_guide", None), posterior.backend.ops, drawn.shape[1]
    if getattr(guide, "transports", False):
        key = posterior.backend.engine.key(MOVES_SEED)
        noise = ops.to_numpy(ops.normal(key, (chains, size), ops.float_dtype()))
        return Chart({}, functools.partial(_of_noise, guide, target)), noise
    within = drawn
    if isinstance(guide, MixtureGuide):
        within = drawn - guide.nearest_centers(posterior.params, ops.asarray(drawn))
    spread = np.maximum(within.std(0), 1e-12)
    root = np.diag(spread)
    if size <= LARGEST_MATRIX:
        root = dense_root(within, spread)
    center = drawn.mean(0)
    starts = np.linalg.solve(root, (drawn[:chains] - center).T).T
    frame = {"center": ops.asarray(center), "root": ops.asarray(root)}
    is_mixture = isinstance(guide, MixtureGuide)
    return Chart(frame, functools.partial(_affine, guide, target), DF * is_mixture, is_mixture), starts


def _of_noise(guide: Any, target: Any, args: Any, kwargs: Any, params: Any, frame: Any) -> Maps:
    draw = guide.transport(guide.layout(args, kwargs), args, kwargs, params)
    joint = target.log_joint(target.layout(args, kwargs), params, args, kwargs)

    def log_ratio(noise: Any) -> Any:
        z, log_q = draw(noise)
        return joint(z) - log_q

    def log_p(noise: Any) -> Any:
        return log_ratio(noise) - 0.5 * guide.ops.xp.sum(noise * noise)

    log_volume = -0.5 * LOG_2PI * target.layout(args, kwargs).size
    return Maps(lambda noise: draw(noise)[0], log_p, log_volume, log_ratio, lambda noise, uniform: noise)


def _affine(guide: Any, target: Any, args: Any, kwargs: Any, params: Any, frame: Any) -> Maps:
    layout = target.layout(args, kwargs)
    joint = target.log_joint(layout, params, args, kwargs)
    center, root = frame["center"], frame["root"]

    def place(y: Any) -> Any:
        return center + root @ y

    def log_p(y: Any) -> Any:
        return joint(place(y))

    log_volume = target.ops.xp.linalg.slogdet(root)[1]
    if not isinstance(guide, MixtureGuide):
        return Maps(place, log_p, log_volume)
    draw, log_q = guide.transport(layout, args, kwargs, params), guide.log_prob(params)
    inverse = target.ops.xp.linalg.inv(root)

    def propose(normal: Any, uniform: Any) -> Any:
        return inverse @ (draw((normal, uniform))[0] - center)

    return Maps(place, log_p, log_volume, lambda y: log_p(y) - log_q(place(y)), propose)
