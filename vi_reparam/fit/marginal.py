"""The marginal density of a few globals, all other latents integrated about their mode, and where it is highest.

The modes are climbed to by differences, as in INLA (Rue, Martino and Chopin 2009): many globals are looked at together
by one compiled program.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.fit.colouring import cost_of
from vi_reparam.fit.weighted_mixture import Mixture
from vi_reparam.posterior.parts import by_parts
from vi_reparam.programs.curvature import Curvature
from vi_reparam.programs.leaning import lean
from vi_reparam.programs.nested_laplace import climb, halves
from vi_reparam.programs.searcher import no_start

FEWEST_DRAWS, MOST_DRAWS = 256, 1_024
"""Of the globals in a round; `ROUND`: numbers of the runs of the model behind its second derivatives, about."""

ROUND = 200_000_000
BUDGET, AT_ONCE = 500_000, 64
"""Numbers that the runs behind all second derivatives of one call may hold, and globals in it at the most."""

NUM_LOCAL_DRAWS = 16
"""Behind a marginal density."""

NUM_PROBES = 4
"""Behind the others' mean."""

NOTHING = 0.01
"""Standard deviation of log weights that a mean or a bend must save."""

MOST_TURNS = 12
CLOSE = 1e-2
"""Twice the nats that a Newton step still promises where it is the last one."""

NUM_PATHS, MOST_CLIMBS = 3, 30
"""Places from which a path climbs, and its steps."""

APART = 0.3
"""Of two differences' places at the start, in unconstrained units."""

FARTHEST = 2.0
"""A step, in unconstrained units."""

LITTLE = 0.02
"""Nats that a step still promises where it is the last one."""

SHARES = (1.0, 0.3, 0.1)
"""Of a step, of which the one that ends highest is taken."""

STEEPEST = 1e100
"""Curvature that is told from more."""

FAR_BELOW = 7.0
"""Nats by which a mode's mass may be below the best one's and still be sampled."""


class Looks(NamedTuple):
    """What is seen at N globals.

    Attributes:
        log_m: log densities of the globals, shape ``[N]``.
        at: the others' modes, shape ``[N, L]``.
        spreads: standard deviations of the others' log weights, a row for each Newton step taken, ``[turns, N]``.
        widths: standard deviations of the others, by a few draws, shape ``[N, L]``.
    """

    log_m: np.ndarray
    at: np.ndarray
    spreads: np.ndarray
    widths: np.ndarray


class Peaks(NamedTuple):
    """The modes of a marginal density.

    Attributes:
        known: a Gaussian at each, with the curvature there and its mass.
        best: the globals of the highest; `others`: the mode of all other latents there.
        slopes: of that mode in the globals, shape ``[L, G]``.
        widths: standard deviations of the others there, shape ``[L]``.
        spread: of the others' log weights there.
    """

    known: Mixture
    best: np.ndarray
    others: np.ndarray
    slopes: np.ndarray
    widths: np.ndarray
    spread: float


class Marginal:
    """The globals' marginal density, the others integrated about their mode.

    Args:
        guide: a `NestedLaplaceGuide` whose globals are named.
        scalars: numbers in a run of the model.
        form: of the others' second derivatives.
        rng: of the noise of the others, which is the same at all globals.

    Attributes:
        positive: which globals are a positive site's, shape ``[G]``.
        num_draws: in a round.
        signs: noise that may be behind the others' mean, shape ``[P, L]``.
        probes: these, or zeros; `lean`: whether the others are bent, as in `leaning.lean`.
        gradients: of log p taken so far.
    """

    def __init__(self, guide: Any, data: Data, scalars: int, form: Curvature, rng: np.random.Generator) -> None:
        self.form = form
        self.guide, self.data, self.ops = guide, data, guide.backend.ops
        layout = guide.layout(*data.call)
        parts = halves(layout, guide.family.globals)
        self.num, self.size = parts.sizes
        self.positive = np.asarray(layout.positive())[parts.indices()[0]]
        cost = cost_of(form, scalars)
        held = (len(form.seeds) + NUM_LOCAL_DRAWS) * max(scalars, self.size) + len(form.rows) * form.width
        half = rng.normal(size=(NUM_LOCAL_DRAWS // 2, self.size))
        self._noise = np.concatenate([half, -half])
        self.signs = np.where(rng.uniform(size=(NUM_PROBES, self.size)) < 0.5, -1.0, 1.0)
        self.probes, self.lean = 0.0 * self.signs, 0.0
        self.num_draws = int(np.clip(ROUND // cost, FEWEST_DRAWS, MOST_DRAWS))
        self._count = int(np.clip(BUDGET // held, 1, AT_ONCE))
        self.gradients = 0

    def __call__(self, g: np.ndarray, x: np.ndarray) -> Looks:
        """The others integrated at globals.

        Args:
            g: shape ``[N, G]``.
            x: about the others' modes, shape ``[N, L]``.
        """
        found = Looks(np.full(len(g), -np.inf), x.copy(), np.zeros((0, len(g))), np.zeros_like(x))
        open_ = np.arange(len(g))
        for _ in range(MOST_TURNS):
            at, gain, mass, spread, widths = self._look(np.concatenate([g[open_], found.at[open_]], axis=1))
            found.at[open_], found.widths[open_] = at, widths
            found.log_m[open_] = np.where(np.isfinite(mass), mass, -np.inf)
            last = found.spreads[-1:].copy() if len(found.spreads) else np.zeros((1, len(g)))
            last[0, open_] = np.where(np.isfinite(spread), spread, np.inf)
            found = found._replace(spreads=np.concatenate([found.spreads, last]))
            open_ = open_[~(gain < CLOSE)]
            if not len(open_):
                break
        return found

    def call(self, fn: Any, *given: Any) -> tuple[np.ndarray, ...]:
        """What a function of the model's arguments and these arrays gives; compiled once for their shapes."""
        ops, engine = self.ops, self.guide.backend.engine
        own = tuple({n: ops.asarray(v) for n, v in x.items()} if isinstance(x, dict) else ops.asarray(x) for x in given)
        found = engine.call(fn, self.data, *own, name=(self.guide, fn.__name__, ops.form(own)))
        return tuple(np.asarray(ops.to_numpy(x)) for x in found)

    def _look(self, rows: np.ndarray) -> list[np.ndarray]:
        guide, ops = self.guide, self.ops
        num = self.num

        def look(args: Any, kwargs: Any, rows: Any, noise: Any, probes: Any, much: Any, *form: Any) -> Any:
            layout = guide.layout(args, kwargs)
            unpack = functools.partial(halves(layout, guide.family.globals).unpack, layout)
            log_p = ops.compiled(guide.log_joint_of(unpack, {}, args, kwargs))

            def one(row: Any) -> Any:
                def height(x: Any) -> Any:
                    return log_p(row[:num], x)

                shape = Curvature(*form)
                found = climb(ops, height, row[num:], shape)
                others = lean(ops, height, found.at, found.root, shape, probes, much)
                trials, log_q = ops.vmap(lambda n: others.draw(ops, n))(noise)
                weights, ways = ops.vmap(height)(trials) - log_q, trials - others.mean[None]
                top = ops.xp.max(weights)
                mean = ops.xp.mean(ops.xp.exp(weights - top))
                widths = ops.xp.sqrt(ops.xp.mean(ways * ways, axis=0))
                return found.at, found.gain, top + ops.xp.log(mean), ops.xp.std(weights), widths

            return ops.vmap(one)(rows)

        def run(part: np.ndarray) -> tuple[np.ndarray, ...]:
            return self.call(look, part, self._noise, self.probes, np.asarray(self.lean), *self.form)

        self.gradients += len(rows) * (len(self.form.seeds) + 1 + 2 * NUM_PROBES)
        return by_parts(run, rows, self._count)


def peaks(target: Marginal, g: np.ndarray, x: np.ndarray) -> Peaks:
    """Climb from several globals by Newton steps, all paths together.

    Args:
        g: shape ``[N, G]``; the best ones are climbed from.
        x: about the others' modes, shape ``[N, L]``.

    Raises:
        NonFiniteError: if the density is not finite at any.
    """
    seen = target(g, x)
    chosen = np.argsort(-seen.log_m, kind="stable")[:NUM_PATHS]
    chosen = chosen[np.isfinite(seen.log_m[chosen])]
    if not len(chosen):
        raise no_start(len(g), seen.log_m)
    g, x, m = g[chosen], seen.at[chosen], seen.log_m[chosen]
    near = _climbed(target, g, x, m)
    best = int(np.argmax(m))
    _choose_leaning(target, g[best : best + 1], x[best : best + 1])
    if target.probes.any():  # their modes are known now, without which no slope around them says a thing
        seen = target(g, x)
        x, m = seen.at, seen.log_m
        near = _climbed(target, g, x, m)
    kept: list[tuple[float, np.ndarray, np.ndarray]] = []
    order = np.argsort(-m)
    for i in order:
        root = np.linalg.cholesky(near.covariance[i])
        mass = float(m[i] + np.log(root.diagonal()).sum())
        is_known = any(np.linalg.norm(np.linalg.solve(r, g[i] - c)) < 1.0 for _, c, r in kept)
        if not is_known and (not kept or mass > kept[0][0] - FAR_BELOW):
            kept.append((mass, g[i], root))
    masses = np.array([mass for mass, _, _ in kept])
    log_weight = masses - np.logaddexp.reduce(masses)
    known = Mixture(log_weight, np.stack([c for _, c, _ in kept]), np.stack([r for _, _, r in kept]))
    i = order[0]
    last = target(g[i : i + 1], x[i : i + 1])
    return Peaks(known, g[i], last.at[0], near.turns[i].T, last.widths[0], float(last.spreads[-1, 0]))


def _climbed(target: Marginal, g: np.ndarray, x: np.ndarray, m: np.ndarray) -> Surroundings:
    """Climb from places, in place, and what is around them at the end."""
    num, size = g.shape
    apart, open_ = np.full_like(g, APART), np.ones(num, dtype=bool)
    for _ in range(MOST_CLIMBS):
        at = np.flatnonzero(open_)
        near = _surroundings(target, g[at], x[at], m[at], apart[at])
        way = np.einsum("pij,pj->pi", near.covariance, near.slope)
        promised = 0.5 * (near.slope * way).sum(1)
        way *= np.minimum(1.0, FARTHEST / np.abs(way).max(1, keepdims=True).clip(1e-300))
        trials = g[at, None] + np.reshape(SHARES, (-1, 1)) * way[:, None]
        begun = x[at, None] + np.einsum("pgl,psg->psl", near.turns, trials - g[at, None])
        tried = target(trials.reshape(-1, size), begun.reshape(-1, x.shape[1]))
        heights = tried.log_m.reshape(len(at), -1)
        best, rows = heights.argmax(1), np.arange(len(at))
        better = heights[rows, best] > m[at]
        up = at[better]
        g[up], m[up] = trials[rows, best][better], heights[rows, best][better]
        x[up] = tried.at.reshape(*begun.shape)[rows, best][better]
        wanted = APART * np.sqrt(np.minimum(np.einsum("pii->pi", near.covariance), 1.0)).clip(1e-4)
        open_[at] = (promised > LITTLE) & (better | (wanted < 0.5 * apart[at]).any(1))
        apart[at] = wanted
        if not open_.any():
            break
    return _surroundings(target, g, x, m, apart)


def _choose_leaning(target: Marginal, g: np.ndarray, x: np.ndarray) -> None:
    """Choose how the others lean, by what leaves the least of their log weights at these globals."""
    tried = []
    for own, much in ((0.0 * target.signs, 0.0), (target.signs, 0.0), (target.signs, 1.0)):
        target.probes, target.lean = own, much
        tried.append((float(target(g, x).spreads[-1, 0]), own, much))
    least = min(spread for spread, _, _ in tried) + NOTHING
    _, target.probes, target.lean = next(row for row in tried if not row[0] > least)


class Surroundings(NamedTuple):
    """What differences say of P places.

    Attributes:
        slope: of the log density, shape ``[P, G]``.
        covariance: that of a Gaussian with the curvature there, whose sign is left out, shape ``[P, G, G]``.
        turns: slopes of the others' modes, shape ``[P, G, L]``.
    """

    slope: np.ndarray
    covariance: np.ndarray
    turns: np.ndarray


def _surroundings(target: Marginal, g: np.ndarray, x: np.ndarray, m: np.ndarray, apart: np.ndarray) -> Surroundings:
    """Differences of places that are `apart`, shape ``[P, G]``."""
    num, size = g.shape
    own, (first, second) = apart[:, :, None] * np.eye(size), np.triu_indices(size, 1)
    ways = np.concatenate([own, -own, own[:, first] + own[:, second]], axis=1)
    seen = target((g[:, None] + ways).reshape(-1, size), np.repeat(x, ways.shape[1], axis=0))
    heights, at = seen.log_m.reshape(num, -1), seen.at.reshape(num, ways.shape[1], -1)
    up, down, both = heights[:, :size], heights[:, size : 2 * size], heights[:, 2 * size :]
    with np.errstate(invalid="ignore"):
        slope, curve = (up - down) / (2.0 * apart), (2.0 * m[:, None] - up - down) / apart**2
        across = (up[:, first] + up[:, second] - both - m[:, None]) / (apart[:, first] * apart[:, second])
    fine = np.isfinite(slope)
    away = np.where(np.isfinite(up), 1.0, -1.0) * np.isfinite(np.maximum(up, down))  # from where there is no density
    curve = np.clip(np.where(fine, curve, apart**-2.0), -STEEPEST, STEEPEST)
    precision = curve[:, :, None] * np.eye(size)
    precision[:, first, second] = precision[:, second, first] = np.where(np.isfinite(across), across, 0.0)
    values, vectors = np.linalg.eigh(precision)
    values = np.maximum(np.abs(values), FARTHEST**-2)
    covariance = np.einsum("pik,pk,pjk->pij", vectors, 1.0 / values, vectors)
    turns = np.where(fine[:, :, None], (at[:, :size] - at[:, size : 2 * size]) / (2.0 * apart[:, :, None]), 0.0)
    return Surroundings(np.where(fine, slope, away / apart), covariance, turns)
