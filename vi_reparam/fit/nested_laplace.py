"""Fits `NestedLaplace`: the globals' marginal posterior by adaptive importance sampling, the others at their mode.

As adaptive multiple importance sampling (Cornuet, Marin, Mira and Robert 2012): all draws of all rounds are weighted
under the mixture of all rounds' proposals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.errors import NonFiniteError, SiteError
from vi_reparam.fit import sharpening, weighted_mixture
from vi_reparam.fit.colouring import Pattern, of_pattern, pattern
from vi_reparam.fit.marginal import Marginal, Peaks, peaks
from vi_reparam.fit.matching import slopes_of
from vi_reparam.fit.sampled import Fit, why_not_of
from vi_reparam.fit.weighted_mixture import Mixture
from vi_reparam.gaussians import skew
from vi_reparam.guides.nested_laplace import MOST_GLOBALS, MOST_LOCALS, MOST_TIED, NestedLaplace
from vi_reparam.guides.structured import Structured
from vi_reparam.posterior.weights import Weights
from vi_reparam.programs.layout import Part
from vi_reparam.programs.nested_laplace import DF, WIDE, halves
from vi_reparam.sites.totals import total_log_prob

NUM_STARTS = 16
"""Places that are looked at, where there was no search."""

MOST_ROUNDS, WIDEST, FEWER = 16, 2.0, 4
"""Rounds at the most; of the last one, how wide it is, and by what its number of draws is divided."""

ENOUGH, KHAT = 1_000, 0.5
"""Effective draws and k-hat at which no further round is needed."""

FLAT = 0.6
"""Part of all draws that is effective, from which on k-hat does not matter."""

MOST_SPREAD = 0.7
"""Standard deviation of the others' log weights above which they are not nearly normal, and one round is enough."""

NEARLY_NORMAL, HOPELESS = 0.25, 1.5
"""The same, at the mode: below which no other global is needed, and above which no round is worth it."""

MOVED = 0.1
"""Part by which the others' curvature changes as a latent moves by one sd, for it to be a global."""

STEP = 0.1
"""In standard deviations, between slopes whose difference is that curvature."""

TAILS, NEXT_TO_NOTHING = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05), 0.005
"""Parts of the draws that may make wide tails, and what the weights' mean square may lose to the widest ones."""

WIDENED, FURTHEST = 0.04, 300.0
"""Part that they may add to the variance of a positive global; unconstrained units that are told apart."""

FAR_OUT = 1e4
"""The largest weight that counts in it."""

NUM_AWAY, LOST = 64, 0.03
"""Draws of wide tails at which the density is looked at, and nats that they may take from the ELBO."""

ALONE, LONE = 9.0, 2.5e-5
"""Sds at which one draw of thousands decides a sample's sd, and how often there may be one."""

NUM_BENT, TABLE = 4_000, np.linspace(-12.0, 12.0, 2_001)
"""Draws behind the one-sided tails, and where these are tabled."""

LESS, INSIDE = (1.0, 0.7, 0.5, 0.35, 0.2, 0.1, 0.0), 6.0
"""Parts of a bend, of which the largest is taken that leaves all draws within so many sds."""


def why_not(guided: Any, data: Data) -> str:
    """As `why_not_of`."""
    guide = guided.for_family(NestedLaplace()).base_guide
    return why_not_of(guide, data, NestedLaplace.__name__, MOST_GLOBALS + MOST_LOCALS)


def runs_at_once(guided: Any, data: Data) -> bool:
    """Whether many draws of a model can be looked at together, which reading a value in Python prevents."""
    backend = guided.backend

    def density(key: Any, args: Any, kwargs: Any) -> Any:
        return total_log_prob(backend, backend.tracer.run(guided.model, args, kwargs, key, alone=True))

    return bool(backend.engine.runs_at_once(density, data))


def fitted(guided: Any, data: Data, seed: int, begin: Callable[[], Any]) -> Fit:
    """Fit, from several starts.

    Args:
        begin: gives a posterior to begin at, which is not needed here.

    Raises:
        SiteError: if there are too many globals, or nothing beside them.
        NonFiniteError: if log p is not finite at any start.
    """
    rng = np.random.default_rng(abs(seed))
    chosen = guided.family
    guide, ops = guided.base_guide, guided.backend.ops
    starts = np.asarray(guide.searcher.beginnings(data, seed, NUM_STARTS), np.float64)
    scalars = starts.shape[1] + sum(math.prod(x.shape) for x in ops.tree_leaves(data.call) if hasattr(x, "dtype"))
    names, known = chosen.globals or _likely(guided, data), None
    slopes = slopes_of(guided.for_family(Structured()).base_guide, data)
    entries = pattern(slopes, starts)
    while True:
        family = NestedLaplace(globals=names)
        target, own, other = _target(guided, family, data, scalars, entries, rng)
        found = peaks(target, starts[:, own], starts[:, other])
        mean, spread = np.empty(starts.shape[1]), np.empty(starts.shape[1])
        root = found.known.root[0]
        mean[own], mean[other] = found.best, found.others
        spread[own] = np.sqrt((root**2).sum(1))
        spread[other] = np.sqrt(found.widths**2 + ((found.slopes @ root) ** 2).sum(1))
        are_enough = found.spread < NEARLY_NORMAL and len(names) < len(_free(guided, data))
        moved = (
            names
            if chosen.globals or known is not None or are_enough
            else _globals(guided, data, slopes, mean, spread, rng)
        )
        if found.spread > HOPELESS:
            raise SiteError(
                f"{family!r}: given these globals, the other latents are far from normal (their log weights vary by "
                f"{found.spread:.3g}): use vr.Structured()"
            )
        if moved == names:
            return _sampled(target, family, found, rng)
        names, known, starts = moved, names, mean[None]


def _target(
    guided: Any, family: NestedLaplace, data: Data, scalars: int, entries: Pattern, rng: np.random.Generator
) -> tuple[Marginal, list[int], list[int]]:
    """The globals' marginal density, and the places of both halves' coordinates."""
    guide, names = guided.for_family(family).base_guide, family.globals or ()
    layout = guide.layout(*data.call)
    parts = halves(layout, names)
    lacking = set(names) - {part.site.name for part in layout.parts}
    num, size = parts.sizes
    if lacking or not num or not size or num > MOST_GLOBALS or size > MOST_LOCALS:
        raise SiteError(
            f"{family!r}: of {num + size} coordinates {num} would be globals (1 to {MOST_GLOBALS}) and {size} would "
            f"not (1 to {MOST_LOCALS}): name other globals" + (f"; it has no {sorted(lacking)}" if lacking else "")
        )
    own, other = parts.indices()
    form = of_pattern(entries.of(other), scalars)
    if form.sizes[2] > MOST_TIED:
        raise SiteError(
            f"{family!r}: {form.sizes[2]:,} of {size:,} latents know of most others (at most {MOST_TIED:,}), so that a "
            "draw would take too long: use vr.Structured()"
        )
    return Marginal(guide, data, scalars, form, rng), own, other


def _free(guided: Any, data: Data) -> list[Part]:
    """The latents outside plates."""
    split = guided.for_family(Structured()).base_guide.split(*data.call)
    free = {part.site.name for part in split.globals.parts} if split.globals else set()
    return [part for part in split.layout.parts if part.site.name in free]


def _likely(guided: Any, data: Data) -> tuple[str, ...]:
    """The globals to begin with: of the latents outside plates those that are not real, such as scales, or else all."""
    parts = _free(guided, data)
    return tuple(p.site.name for p in [p for p in parts if p.site.kind != "real"] or parts)


def _globals(
    guided: Any, data: Data, slopes: Any, mean: np.ndarray, spread: np.ndarray, rng: np.random.Generator
) -> tuple[str, ...]:
    """Of the latents outside plates, those on which the curvature of all others depends.

    The one on which it depends most, if there is no other.

    Args:
        mean: about the posterior's, of all latents; `spread`: its standard deviations. Shape ``[D]``.
    """
    parts = _free(guided, data)
    real = [part for part in parts if part.site.kind == "real"]
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


def _sampled(target: Marginal, family: NestedLaplace, begun: Peaks, rng: np.random.Generator) -> Fit:
    """The rounds."""
    known, slopes = begun.known, (begun.others - begun.slopes @ begun.best, begun.slopes)
    proposals: list[tuple[Mixture, float, int]] = []
    drawn, ends, masses, done = [], [], [], False
    for _ in range(MOST_ROUNDS):
        is_last = done  # a wide one, that sees the mass which the draws so far may not have reached
        wider, num = (WIDEST, target.num_draws // FEWER) if is_last else (weighted_mixture.WIDER, target.num_draws)
        proposals.append((known, wider, num))
        own = weighted_mixture.propose(known, num, rng, wider=wider)
        seen = target(own, _line(slopes, own))
        for rows, new in ((drawn, own), (ends, seen.at), (masses, seen.log_m)):
            rows.append(new)
        z, modes, heights = np.concatenate(drawn), np.concatenate(ends), np.concatenate(masses)
        if not np.isfinite(heights).any():
            text = (
                f"{family!r}: the density is not finite at any of {len(z):,} draws of the globals; use vr.Structured()"
            )
            raise NonFiniteError(text, step=0, sites={}, params={}, losses=np.zeros(0))
        known_weights = Weights(heights, _log_proposed(proposals, z))
        weights = known_weights.normalized()
        effective = 1.0 / (weights**2).sum()
        flat = effective >= FLAT * len(z)  # then what the largest ones say of a tail is nothing
        done = (flat or known_weights.khat < KHAT) and effective >= ENOUGH
        if not done:
            weights = weighted_mixture.tempered(known_weights.log, max(4.0 * z.shape[1], 20.0) + 10.0)
        slopes = _regressed(z, modes, weights)
        typical = np.median(seen.spreads, axis=1)
        if (done and is_last) or typical[-1] > MOST_SPREAD:
            break
        known = weighted_mixture.best_of(z, weights, rng, most=1 if done else 6)
    bends, curves = _bends(target, z, weights, rng)
    straight, log_rise = curves.back(z)
    log_evidence = known_weights.log_evidence()[0]
    near = Drawn(z, weights, straight, heights - log_evidence + log_rise)
    made = sharpening.best_of(near.y, near.log_m, weights, rng)
    turns = 1 + int(np.argmax(typical <= 1.1 * typical[-1] + 0.05))
    params = {
        **bends,
        "center": made.center,
        "root": made.root,
        "log_weight": made.log_weight,
        "place": slopes[0],
        "slopes": slopes[1],
        "turns": np.ones(turns),
        "probes": target.probes[target.probes.any(1)],
        "lean": np.asarray(target.lean),
        **target.form._asdict(),
    }
    params["tail"] = np.asarray(_tail(target, curves, made, near, slopes, log_evidence, rng))
    return Fit(family, params, target.gradients, len(proposals), target.num_draws)


def _log_proposed(proposals: list[tuple[Mixture, float, int]], z: np.ndarray) -> np.ndarray:
    """Log density of the mixture of all rounds' draws."""
    total = sum(num for *_, num in proposals)
    rows = [
        weighted_mixture.proposed_log_prob(known, z, wider=wider) + math.log(num / total)
        for known, wider, num in proposals
    ]
    return weighted_mixture.log_sums(np.stack(rows, axis=1))


def _regressed(g: np.ndarray, x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The affine function of globals that is nearest to the others: at zero, shape ``[L]``, and slopes ``[L, G]``."""
    root = np.sqrt(weights)[:, None]
    design = np.concatenate([np.ones((len(g), 1)), g], axis=1)
    found = np.linalg.lstsq(root * design, root * x, rcond=None)[0]
    return found[0], found[1:].T


def _line(slopes: tuple[np.ndarray, np.ndarray], g: np.ndarray) -> np.ndarray:
    """About the others' mode at globals, by what `_regressed` gives."""
    return slopes[0] + g @ slopes[1].T


class Curves(NamedTuple):
    """The one-sided tails of the globals, tabled.

    Attributes:
        loc: of each coordinate; `scale`: shape ``[G]``.
        bent: where the grid goes, in these units, shape ``[G, M]``.
    """

    loc: np.ndarray
    scale: np.ndarray
    bent: np.ndarray

    def back(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What globals were before their tails, shape ``[N, G]``, and the log determinant of the way from there."""
        ways = (z - self.loc) / self.scale
        y = np.stack([np.interp(way, curve, TABLE) for way, curve in zip(ways.T, self.bent, strict=True)], axis=1)
        rises = np.gradient(self.bent, TABLE, axis=1)
        steep = [np.interp(column, TABLE, rise) for column, rise in zip(y.T, rises, strict=True)]
        return y, np.log(np.maximum(steep, 1e-300)).sum(0) + np.log(self.scale).sum()

    def forth(self, y: np.ndarray) -> np.ndarray:
        """Globals of what is before their tails."""
        bent = [np.interp(column, TABLE, curve) for column, curve in zip(y.T, self.bent, strict=True)]
        return self.loc + self.scale * np.stack(bent, axis=1)


def _bends(
    target: Marginal, z: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], Curves]:
    """One-sided tails of each coordinate, as parameters and tabled: before them the globals are nearer to normal."""
    ops = target.ops

    def bends(args: Any, kwargs: Any, chosen: Any, grid: Any, less: Any) -> Any:
        loc, scale, bend = skew.match(ops, chosen, ops.xp.ones_like(chosen[0]))
        tried = ops.vmap(lambda part: ops.vmap(lambda y: skew.skew(ops, y + 0.0 * bend, part * bend)[0])(grid))(less)
        return loc, scale, bend, tried

    loc, scale, most, tried = target.call(bends, z[rng.choice(len(z), size=NUM_BENT, p=weights)], TABLE, np.array(LESS))
    near = (z[weights > weights.max() * sharpening.FARTHEST] - loc) / scale
    bend, curves = np.zeros_like(most), []
    for k in range(len(most)):  # a curve has an edge where it is bent most, and beyond it there is no density
        inside = [c for c in range(len(LESS)) if np.abs(np.interp(near[:, k], tried[c, :, k], TABLE)).max() < INSIDE]
        chosen = min(inside, default=len(LESS) - 1)
        bend[k] = LESS[chosen] * most[k]
        curves.append(tried[chosen, :, k])
    return {"loc": loc, "scale": scale, "bend": bend}, Curves(loc, scale, np.stack(curves))


class Drawn(NamedTuple):
    """Draws of the globals from all rounds.

    Attributes:
        z: shape ``[N, G]``; `weights`: that make them draws of the posterior, normalized.
        y: what they were before their one-sided tails; `log_m`: the log density of that, normalized.
    """

    z: np.ndarray
    weights: np.ndarray
    y: np.ndarray
    log_m: np.ndarray


def _tail(
    target: Marginal,
    curves: Curves,
    made: Mixture,
    drawn: Drawn,
    slopes: tuple[np.ndarray, np.ndarray],
    log_evidence: float,
    rng: np.random.Generator,
) -> float:
    """The part of the draws that makes wide tails: the largest at which the weights vary about the least.

    Args:
        made: the mixture before the one-sided tails.
        slopes: of all other latents' mode, as of `_regressed`.
    """
    tails = weighted_mixture.propose(made, NUM_BENT, rng, df=DF, wider=WIDE)
    away = curves.forth(tails)
    middle = drawn.weights @ drawn.z

    def latents(rows: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # few draws may decide the sd of a positive latent, of which this is the log
            return np.where(target.positive, np.exp(np.clip(rows - middle, -FURTHEST, FURTHEST)), rows)

    far, near = latents(away), latents(drawn.z)
    mean = drawn.weights @ near
    squares_out = (far - mean) ** 2 / (drawn.weights @ (near - mean) ** 2)
    added, lone = squares_out.mean(0).max(), (squares_out.max(1) > ALONE**2).mean()
    tails, away = tails[:NUM_AWAY], away[:NUM_AWAY]
    seen = target(away, _line(slopes, away)).log_m - log_evidence + curves.back(away)[1]

    def both(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log densities of the mixture and of its wide tails."""
        return weighted_mixture.log_sums(made.log_probs(y)), weighted_mixture.proposed_log_prob(made, y, DF, WIDE)

    def joined(of: tuple[np.ndarray, np.ndarray], part: float) -> np.ndarray:
        return np.logaddexp(of[0] + math.log1p(-part), of[1] + math.log(max(part, 1e-300)))

    squares, here, there = {}, both(drawn.y), both(tails)
    for part in TAILS:
        lost = part * (joined(there, part) - seen).mean() if part else 0.0
        if part * added < WIDENED and part * lone < LONE and lost < LOST:
            squares[part] = sharpening.mean_square(drawn.weights, drawn.log_m - joined(here, part), FAR_OUT)
    least = min(squares.values()) + NEXT_TO_NOTHING
    return max(part for part, square in squares.items() if square <= least)
