"""Fits `NestedLaplace`: the globals' marginal posterior by adaptive importance sampling, the others at their mode.

As adaptive multiple importance sampling (Cornuet, Marin, Mira and Robert 2012): all draws of all rounds are weighted
under the mixture of all rounds' proposals.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.errors import NonFiniteError, SiteError
from vi_reparam.fit import weighted_mixture
from vi_reparam.fit.matching import slopes_of
from vi_reparam.fit.weighted_mixture import Mixture
from vi_reparam.gaussians import skew
from vi_reparam.guides.nested_laplace import MOST_GLOBALS, MOST_LOCALS, NestedLaplace
from vi_reparam.guides.structured import Structured
from vi_reparam.numerics.special import LOG_2PI
from vi_reparam.posterior.modes import vectors
from vi_reparam.posterior.parts import by_parts
from vi_reparam.posterior.psis import pareto_smooth
from vi_reparam.programs.nested_laplace import climb, density_at, halves
from vi_reparam.sites.totals import total_log_prob

FEWEST_DRAWS, MOST_DRAWS = 256, 1_024
"""Of the globals in a round; `ROUND`: numbers of the runs of the model behind its second derivatives, about."""

ROUND = 200_000_000
MOST_ROUNDS = 12
ENOUGH, KHAT = 2.0, 0.5
"""Effective draws, in rounds, and k-hat, at which no further round is needed."""

MOST_SPREAD = 0.7
"""Standard deviation of the others' log weights above which they are not nearly normal, and one round is enough."""

DF, WIDER = 4, 1.1
"""Of a proposal's Student-t, and how much wider it is than what is known."""

NUM_LOCAL_DRAWS = 8
"""Behind a marginal density."""

MOST_TURNS = 12
CLOSE = 1e-3
"""Twice the nats that a Newton step still promises where it is the last one."""

MOVED = 0.1
"""Part by which the others' curvature changes as a latent moves by one sd, for it to be a global."""

STEP = 0.1
"""In standard deviations, between slopes whose difference is that curvature."""

NEXT_TO_NOTHING = 0.01
"""Nats that wide tails may cost."""

NUM_START, NUM_BENT, GRID = 1_000, 4_000, 12.0
BUDGET = 8_000_000
"""Numbers that the runs behind all second derivatives of one call may hold."""


class Fit(NamedTuple):
    """What is found.

    Attributes:
        family: with the globals' names.
        params: of its guide, NumPy arrays by name.
        gradients: of log p that it took.
        rounds: of sampling; `num_draws`: in each.
    """

    family: NestedLaplace
    params: dict[str, np.ndarray]
    gradients: int
    rounds: int
    num_draws: int


def why_not(guided: Any, data: Data) -> str:
    """Why a model cannot be fitted so; empty where it can. Nothing is computed."""
    guide = guided.for_family(NestedLaplace()).base_guide
    structure, size = guide.latents.structure(*data.call), guide.layout(*data.call).size
    if structure.params or structure.mutable:
        return "the model has parameters of its own, which NestedLaplace() does not learn"
    if structure.subsampled:
        return "the model sees minibatches, and NestedLaplace() all data at each draw"
    return "" if size <= MOST_GLOBALS + MOST_LOCALS else f"{size:,} latents are too many for NestedLaplace()"


def runs_at_once(guided: Any, data: Data) -> bool:
    """Whether many draws of a model can be looked at together, which reading a value in Python prevents."""
    backend = guided.backend

    def density(key: Any, args: Any, kwargs: Any) -> Any:
        return total_log_prob(backend, backend.tracer.run(guided.model, args, kwargs, key, alone=True))

    return bool(backend.engine.runs_at_once(density, data))


def fitted(guided: Any, start: Any, data: Data, seed: int) -> Fit:
    """Fit, from the draws of another posterior of the same model and data.

    Raises:
        SiteError: if there are too many globals, or nothing beside them.
        NonFiniteError: if no draw has a finite density.
    """
    rng = np.random.default_rng(abs(seed))
    chosen = guided.family if isinstance(guided.family, NestedLaplace) else NestedLaplace()
    guide = guided.for_family(chosen).base_guide
    layout = guide.layout(*data.call)
    first = vectors(start, start.draws(NUM_START, seed=seed), guide)
    first = first[np.isfinite(first).all(1)]
    names = chosen.globals or _globals(guided, data, first, rng)
    family = NestedLaplace(globals=names)
    parts = halves(layout, names)
    lacking = set(names) - {part.site.name for part in layout.parts}
    num, size = parts.sizes
    if lacking or not size or num > MOST_GLOBALS or size > MOST_LOCALS:
        raise SiteError(
            f"{family!r}: of {num + size} coordinates {num} would be globals (at most {MOST_GLOBALS}) and {size} would "
            f"not (1 to {MOST_LOCALS}): name other globals" + (f"; it has no {sorted(lacking)}" if lacking else "")
        )
    own, other = parts.indices()
    target = Target(guided.for_family(family).base_guide, data, start.scorer.sites.scalars, rng)
    return _sampled(target, family, first[:, own], first[:, other], rng)


def _globals(guided: Any, data: Data, first: np.ndarray, rng: np.random.Generator) -> tuple[str, ...]:
    """Of the latents outside plates, those on which the curvature of all others depends.

    The one on which it depends most, if there is no other.

    Args:
        first: about draws of the posterior, vectors of all latents. Shape ``[N, D]``.
    """
    guide = guided.for_family(Structured()).base_guide
    split, slopes = guide.split(*data.call), slopes_of(guide, data)
    free = {part.site.name for part in split.globals.parts} if split.globals else set()
    parts = [part for part in split.layout.parts if part.site.name in free]
    real = [part for part in parts if part.site.kind == "real"]
    mean, spread = first.mean(0), first.std(0)
    inside = np.ones(len(mean), dtype=bool)  # the latents that would be no globals
    for part in parts:
        if part not in real:
            inside[part.offset : part.offset + part.size] = False
    signs = np.where(rng.uniform(size=len(mean)) < 0.5, -1.0, 1.0) * spread
    places = [mean]
    for part in real:
        place = mean.copy()
        place[part.offset : part.offset + part.size] += signs[part.offset : part.offset + part.size]
        places.append(place)
    way = STEP * signs * inside
    rows = np.concatenate([[place + way, place - way] for place in places])
    found = slopes(rows)
    curvatures = (found[::2] - found[1::2]) * spread * inside
    changes = np.linalg.norm(curvatures[1:] - curvatures[0], axis=1)
    least = MOVED * np.linalg.norm(curvatures[0])
    if len(real) == len(parts) and len(real) and changes.max() < least:
        least = changes.max()
    moved = {part.site.name for part, change in zip(real, changes, strict=True) if not change < least}
    return tuple(part.site.name for part in parts if part not in real or part.site.name in moved)


class Target:
    """The globals' marginal density, the others integrated about their mode.

    Args:
        guide: a `NestedLaplaceGuide` whose globals are named.
        scalars: numbers in a run of the model.

    Attributes:
        num_draws: in a round.
        gradients: of log p taken so far.
    """

    def __init__(self, guide: Any, data: Data, scalars: int, rng: np.random.Generator) -> None:
        self.guide, self.data, self.ops = guide, data, guide.backend.ops
        self.num, self.size = halves(guide.layout(*data.call), guide.family.globals).sizes
        scalars = max(scalars, self.size)
        half = rng.normal(size=(NUM_LOCAL_DRAWS // 2, self.size))
        self._noise = self.ops.asarray(np.concatenate([half, -half]))
        self.num_draws = int(np.clip(ROUND // (self.size * scalars), FEWEST_DRAWS, MOST_DRAWS))
        self._count = int(np.clip(BUDGET // (self.size * scalars), 1, self.num_draws))
        self.gradients = 0

    def __call__(self, g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log densities of globals, shape ``[N]``; the others' modes, ``[N, L]``; and the spread of their log weights.

        Args:
            g: shape ``[N, G]``.
            x: about the others' modes.

        Returns:
            The spread has a row for each Newton step that was taken, shape ``[turns, N]``.
        """
        log_m, x = np.full(len(g), -np.inf), x.copy()
        spreads, open_ = [], np.arange(len(g))
        for _ in range(MOST_TURNS):
            at, gain, mass, spread = self._look(np.concatenate([g[open_], x[open_]], axis=1))
            x[open_], log_m[open_] = at, np.where(np.isfinite(mass), mass, -np.inf)
            spreads.append(spreads[-1].copy() if spreads else np.zeros(len(g)))
            spreads[-1][open_] = np.where(np.isfinite(spread), spread, np.inf)
            open_ = open_[~(gain < CLOSE)]
            if not len(open_):
                break
        return log_m, x, np.stack(spreads)

    def _look(self, rows: np.ndarray) -> list[np.ndarray]:
        guide, ops = self.guide, self.ops
        num = self.num

        def look(args: Any, kwargs: Any, rows: Any, noise: Any) -> Any:
            layout = guide.layout(args, kwargs)
            log_p, parts = ops.compiled(guide.log_joint(layout, {}, args, kwargs)), halves(layout, guide.family.globals)

            def one(row: Any) -> Any:
                def height(x: Any) -> Any:
                    return log_p(parts.join(ops, layout, row[:num], x))

                found = climb(ops, height, row[num:])
                ways = ops.vmap(lambda n: ops.solve_triangular(found.root.T, n, lower=False))(noise)
                weights = ops.vmap(height)(found.at[None] + ways) - density_at(ops, found.root, noise)
                top = ops.xp.max(weights)
                mean = ops.xp.mean(ops.xp.exp(weights - top))
                return found.at, found.gain, top + ops.xp.log(mean), ops.xp.std(weights)

            return ops.vmap(one)(rows)

        def run(part: np.ndarray) -> tuple[np.ndarray, ...]:
            name = (guide, "marginal", len(part))
            found = guide.backend.engine.call(look, self.data, ops.asarray(part), self._noise, name=name)
            return tuple(map(ops.to_numpy, found))

        self.gradients += len(rows) * (self.size + 1)
        return by_parts(run, rows, self._count)


def _sampled(target: Target, family: NestedLaplace, g: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> Fit:
    """The rounds; `g` and `x` are the globals and the others of about the posterior's draws."""
    flat = np.full(len(g), 1.0 / len(g))
    known, slopes = weighted_mixture.best_of(g, flat, rng, most=3), _regressed(g, x, flat)
    proposals: list[Mixture] = []
    drawn, ends, masses, rounds = [], [], [], 0
    for rounds in range(1, MOST_ROUNDS + 1):
        proposals.append(known)
        own = _draw(known, target.num_draws, rng)
        log_m, at, spreads = target(own, slopes[0] + own @ slopes[1].T)
        for rows, new in ((drawn, own), (ends, at), (masses, log_m)):
            rows.append(new)
        z, modes, heights = np.concatenate(drawn), np.concatenate(ends), np.concatenate(masses)
        log_q = np.logaddexp.reduce([_log_prob(p, z) for p in proposals], axis=0) - math.log(rounds)
        if not np.isfinite(heights).any():
            text = (
                f"{family!r}: the density is not finite at any of {len(z):,} draws of the globals; use vr.Structured()"
            )
            raise NonFiniteError(text, step=0, sites={}, params={}, losses=np.zeros(0))
        smoothed, khat = pareto_smooth(heights - log_q)
        weights = _normalized(smoothed)
        done = khat < KHAT and 1.0 / (weights**2).sum() >= ENOUGH * target.num_draws
        if not done:
            weights = _tempered(heights - log_q, max(4.0 * z.shape[1], 20.0) + 10.0)
        slopes = _regressed(z, modes, weights)
        typical = np.median(spreads, axis=1)
        if done or rounds == MOST_ROUNDS or typical[-1] > MOST_SPREAD:
            break
        known = weighted_mixture.best_of(z, weights, rng, most=3)
    bends, straight = _straightened(target.ops, z, weights, rng)
    made = weighted_mixture.best_of(straight, weights, rng)
    evidence = float(np.logaddexp.reduce(smoothed)) - math.log(len(z))
    made = _with_tails(made, target, bends, slopes, evidence, rng)
    turns = 1 + int(np.argmax(typical <= 1.1 * typical[-1] + 0.05))
    params = {
        **bends,
        "center": made.center,
        "root": made.root,
        "log_weight": made.log_weight,
        "place": slopes[0],
        "slopes": slopes[1],
        "turns": np.ones(turns),
    }
    return Fit(family, params, target.gradients, rounds, target.num_draws)


def _regressed(g: np.ndarray, x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The affine function of globals that is nearest to the others: at zero, shape ``[L]``, and slopes ``[L, G]``."""
    root = np.sqrt(weights)[:, None]
    design = np.concatenate([np.ones((len(g), 1)), g], axis=1)
    found = np.linalg.lstsq(root * design, root * x, rcond=None)[0]
    return found[0], found[1:].T


def _straightened(
    ops: Any, z: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One-sided tails of each coordinate, as parameters, and the draws before these: nearer to normal ones."""
    chosen = z[rng.choice(len(z), size=NUM_BENT, p=weights)]
    matched = skew.match(ops, ops.asarray(chosen), ops.asarray(np.ones(z.shape[1])))
    loc, scale, bend = (np.asarray(ops.to_numpy(x), np.float64) for x in matched)
    grid = np.linspace(-GRID, GRID, 2_001)
    straight = np.empty_like(z)
    for i, raw in enumerate(bend):
        values = _bent(ops, {"loc": 0.0, "scale": 1.0, "bend": np.full_like(grid, raw)}, grid)[0]
        straight[:, i] = np.interp((z[:, i] - loc[i]) / scale[i], values, grid)
    return {"loc": loc, "scale": scale, "bend": bend}, straight


def _bent(ops: Any, bends: dict[str, Any], y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """With these one-sided tails, and the logarithm of the slope of each coordinate."""
    raw = ops.asarray(np.broadcast_to(bends["bend"], y.shape).copy())
    value, rise = (np.asarray(ops.to_numpy(x), np.float64) for x in skew.skew(ops, ops.asarray(y), raw)[:2])
    return bends["loc"] + bends["scale"] * value, rise + np.log(bends["scale"])


def _with_tails(
    made: Mixture,
    target: Target,
    bends: dict[str, np.ndarray],
    slopes: tuple[np.ndarray, np.ndarray],
    evidence: float,
    rng: np.random.Generator,
) -> Mixture:
    """The mixture with wide tails, so that few weights are large, where these cost next to nothing of its bound."""
    wide = weighted_mixture.with_tails(made)
    y = wide.center[-1] + rng.normal(size=(target.num_draws, len(bends["loc"]))) @ wide.root[-1].T
    g, rise = _bent(target.ops, bends, y)
    log_m, _, _ = target(g, slopes[0] + g @ slopes[1].T)
    log_q = np.logaddexp.reduce(wide.log_probs(y), axis=1) - rise.sum(1)
    cost = weighted_mixture.TAIL * float(np.mean(log_q - (log_m - evidence)))
    return wide if cost < NEXT_TO_NOTHING else made


def _draw(known: Mixture, num: int, rng: np.random.Generator) -> np.ndarray:
    """Draws of Student-t's at the components. Shape ``[num, G]``."""
    chosen = rng.choice(len(known.log_weight), size=num, p=np.exp(known.log_weight))
    noise = rng.normal(size=(num, known.center.shape[1])) * np.sqrt(DF / rng.chisquare(DF, size=num))[:, None]
    return known.center[chosen] + WIDER * np.einsum("nij,nj->ni", known.root[chosen], noise)


def _log_prob(known: Mixture, z: np.ndarray) -> np.ndarray:
    """Their log density. Shape ``[N]``."""
    squares, scores = known.standardized(z)
    size = z.shape[1]
    norm = math.lgamma(0.5 * (DF + size)) - math.lgamma(0.5 * DF) - 0.5 * size * math.log(DF)
    norm -= 0.5 * size * (LOG_2PI - math.log(2.0)) + size * math.log(WIDER)
    terms = scores + norm - 0.5 * (DF + size) * np.log1p(squares / (WIDER**2 * DF))
    return np.logaddexp.reduce(terms, axis=1)


def _normalized(log_weights: np.ndarray) -> np.ndarray:
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def _tempered(log_weights: np.ndarray, least: float) -> np.ndarray:
    """Weights to the highest power, at most one, at which so many draws are effective."""
    for power in 0.8 ** np.arange(40):
        weights = _normalized(power * np.maximum(log_weights, -1e300))
        if 1.0 / (weights**2).sum() >= min(least, 0.5 * len(log_weights)):
            break
    return weights
