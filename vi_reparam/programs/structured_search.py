"""Where a structured guide starts: Newton steps of the globals, the locals integrated at each.

Factors that stay as they are make a lower bound of log p(globals, data), which touches it where they fit. So the two
are improved in turns: the factors at the globals, by the expected slope and curvature of log p (Khan and Lin 2017),
then the globals, by a saddle-free Newton step on the bound.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Array
from vi_reparam.gaussians import pathfinder
from vi_reparam.numerics import conjugate_gradients
from vi_reparam.numerics.special import LOG_2PI
from vi_reparam.programs.conditionals import Conditionals, Drawn
from vi_reparam.programs.conjugate import LEAST
from vi_reparam.programs.priors import Factor
from vi_reparam.programs.rows import NOT_AT_ONCE, OneByOne
from vi_reparam.programs.searcher import Searcher, density_of, no_start
from vi_reparam.programs.split import Draws, Split
from vi_reparam.sites.totals import total_log_prob

State = dict[str, Array]


class FactorState(NamedTuple):
    """The factors of all locals.

    Attributes:
        loc: their locations at globals at hand; `log_precision`: of the same shape ``[L]``.
        slopes: of the locations in the globals, shape ``[L, G]``.
    """

    loc: Array
    log_precision: Array
    slopes: Array

    def moved(self, way: Array) -> FactorState:
        """The factors where the globals have moved."""
        return self._replace(loc=self.loc + self.slopes @ way)


NUM_TURNS = 30
NUM_PATHS = 4
NUM_DRAWS = 16
"""Of the globals, behind a bound."""

NUM_LOCAL_DRAWS = 4
SHARE = 0.5
"""Of the new factor in a turn; the rest is the one before."""

MOVES = (math.inf, 10.0, 3.0, 1.0)
"""The farthest that a turn moves a factor, in its standard deviations: the one with the highest bound is taken."""

NUM_GIVEN = 2
"""Paths that begin at the places that a search of all latents found, where there was one."""

COLOURS = 8
"""Parts of a vector site whose curvature is looked at apart."""

NUM_PRODUCTS = 24
"""Of the second derivatives with a vector, behind a Newton step of the locals."""

FINEST = 64.0
"""Units of rounding that a standard deviation must hold, for a density to be that of the draws."""

WEAKEST = 1e-3
"""Least precision of a factor, as a part of the prior's."""


class StructuredSearch:
    """Finds the frame of the globals and the factors of the locals, from several starts.

    Args:
        guide: a `StructuredGuide`.
    """

    def __init__(self, backend: Backend, guide: Any) -> None:
        self.backend, self.guide = backend, guide

    def run(self, data: Data, key: Any) -> list[State]:
        """Starts worth a fit of their own, the best first: parameters of the guide.

        Raises:
            NonFiniteError: if log p is not finite at any start.
        """
        ops = self.backend.ops

        def paths(args: Any, kwargs: Any, key: Any, given: list[Array]) -> State:
            split = self.guide.split(args, kwargs)
            try:
                return Paths(self.guide, ops, split, args, kwargs, key, given).run()
            except NOT_AT_ONCE:
                return Paths(self.guide, OneByOne(ops), split, args, kwargs, key, given).run()

        places = self.guide.searcher.known(data)
        given = [place.frame.center for place in [*places, *places[:1]][:NUM_GIVEN]]
        state = self.backend.engine.call(paths, data, key, given, name=(self.guide, len(given)))
        found = {name: ops.to_numpy(value) for name, value in state.items()}
        if not any(map(math.isfinite, found["bound"])):
            raise no_start(NUM_PATHS, found["bound"])
        chosen = pathfinder.places_apart(found["bound"], found["distances"])[: pathfinder.MOST_RUNS]
        names = ("place", "unit", "weight", *(("center", "root", "shift_slopes") if found["center"].shape[1] else ()))
        return [{name: ops.asarray(found[name][i]) for name in names} for i in chosen]


class Look(NamedTuple):
    """What log p says at a draw of the locals.

    Attributes:
        drawn: the draw; `at`: all latents' vector of it; `x`: its coordinates, shape ``[L]``.
        slope: of log p in them; `curvature`: minus the second derivatives.
        mixed: of the slope in the globals; `pulled`: of the priors' part of it, which is left out of the factors. Both
            of shape ``[G, L]``.
    """

    drawn: Drawn
    at: Array
    x: Array
    slope: Array
    curvature: Array
    mixed: Array
    pulled: Array


class Paths:
    """The turns of all paths, as one program.

    Args:
        runs: has `vmap` and `many`: the framework's, or one by one.
        given: vectors of all latents to begin at, beside others.
    """

    def __init__(
        self, guide: Any, runs: Any, split: Split, args: Any, kwargs: Any, key: Any, given: list[Array]
    ) -> None:
        self.backend, self.ops, self.runs, self.split = guide.backend, guide.ops, runs, split
        self.conditionals = Conditionals(guide.backend, guide.model, split, args, kwargs, {})
        self.log_p = self.ops.compiled(guide.log_joint(split.layout, {}, args, kwargs))
        start_key, own_key, local_key = self.ops.split(key, 3)
        starts, _ = Searcher(guide.backend, guide).starts(runs, split.layout, args, kwargs, start_key, NUM_PATHS)
        dtype = starts.dtype
        own = [self.ops.xp.astype(at, dtype)[None] for at in given]
        self.starts = self.ops.xp.concat([starts[: NUM_PATHS - len(own)], *own])
        self.noise = self.ops.normal(own_key, (NUM_DRAWS, split.num_globals), dtype)
        self.local_noise = self.ops.normal(local_key, (NUM_LOCAL_DRAWS, split.num_locals), dtype)

    def run(self) -> State:
        """The ends of all paths."""
        turn = self.runs.vmap(self._turn)

        def step(paths: tuple[Array, State]) -> tuple[Array, State]:
            return paths[0] + 1, turn(paths[1])

        begun = (self.ops.xp.asarray(0), self.runs.vmap(self._begin)(self.starts))
        found = self.ops.while_loop(lambda paths: paths[0] < NUM_TURNS, step, begun)[1]
        found["distances"] = pathfinder.distances(self.ops, found["center"], found["root"])
        unit = self.ops.xp.exp(-0.5 * found["kept_log_precision"])
        slopes = (found["kept_slopes"] @ found["root"]) / unit[..., None]
        others = self.ops.xp.zeros((*unit.shape, self.split.num_small), dtype=unit.dtype)
        slopes = (
            self.ops.xp.concat([slopes, others], axis=-1) * max(found["root"].shape[-1] + others.shape[-1], 1) ** 0.5
        )
        found |= {"place": found["kept_loc"], "unit": unit, "weight": 0.0 * unit, "shift_slopes": slopes}
        return found | (self.runs.vmap(self._conjugate)(found) if self.split.rows else {})

    def _conjugate(self, found: State) -> State:
        """The factors of gammas and betas, as `Conjugate.times` takes them: exact where log p is conjugate."""
        ops, xp, split, g = self.ops, self.ops.xp, self.split, found["center"]
        factors = FactorState(*(found[f"kept_{name}"] for name in FactorState._fields))
        conditionals = dataclasses.replace(self.conditionals, key=ops.key(0))
        no_factor = Factor(xp.zeros(()), xp.zeros(()))

        def look(noise: Array) -> dict[str, tuple[Array, Array]]:
            seen = self._look(g, factors, noise)
            priors = conditionals.draw(
                split.named(g), lambda name, drawn: no_factor, noise, held=seen.drawn.values
            ).priors
            added = {}
            for name, row in split.rows.items():
                own = (split.cut(ops, name, v) for v in (seen.x, seen.slope, seen.curvature))
                first, second = row.added(xp, *own)
                added[name] = first - priors[name].first, second - priors[name].second
            return added

        added = self.runs.vmap(look)(self.local_noise)
        new: dict[str, dict[str, Array]] = {"place": {}, "unit": {}, "weight": {}}
        for part in split.locals:
            name = part.site.name
            for kind, own in new.items():
                own[name] = xp.reshape(split.cut(ops, name, found[kind]), (-1,))
            if name in split.rows:
                means = (xp.reshape(xp.mean(a, axis=0), (-1,)) for a in added[name])
                first, second = (xp.log(xp.where(a > LEAST, a, xp.full_like(a, LEAST))) for a in means)
                unit = (1.0 + xp.exp(first)) ** -0.5
                own = {"place": -second, "unit": unit, "weight": first + 2.0 * xp.log(unit)}
                for kind, value in own.items():
                    new[kind][name] = value
        return {kind: xp.concat(list(own.values())) for kind, own in new.items()}

    def _begin(self, start: Array) -> State:
        xp = self.ops.xp
        g, x = self.split.parted(self.ops, start)
        flat = xp.zeros_like(x)
        own = FactorState(x, flat, flat[:, None] * g[None])
        precision = self._precise(self._drawn(g, own, flat), xp.ones_like(x))
        weight = xp.log(xp.where(precision > 0.0, precision, xp.ones_like(precision)))
        own = own._replace(log_precision=weight)._asdict()
        return {**pathfinder.begin(self.ops, g), **own, **{f"kept_{name}": value for name, value in own.items()}}

    def _turn(self, state: State) -> State:
        xp, at = self.ops.xp, state["at"]
        before = FactorState(*(state[name] for name in FactorState._fields))
        factors = self._cut_short(at, before, self._refit(at, before)) if self.split.num_locals else before

        def bound(g: Array) -> Array:
            return self._mean_bound(g, factors.moved(g - at))

        density = density_of(self.ops, self.runs, bound)
        after = pathfinder.advance(self.ops, density, self.noise, state)
        better = after["bound"] > state["bound"]
        kept = {f"kept_{n}": xp.where(better, new, state[f"kept_{n}"]) for n, new in factors._asdict().items()}
        return {**after, **factors.moved(after["at"] - at)._asdict(), **kept}

    def _mean_bound(self, g: Array, factors: FactorState) -> Array:
        return self.ops.xp.mean(self.runs.vmap(lambda noise: self._bound(g, factors, noise))(self.local_noise))

    def _cut_short(self, g: Array, before: FactorState, after: FactorState) -> FactorState:
        """The factors after a turn, with their way cut short by the best of `MOVES`: far steps may overshoot."""
        xp = self.ops.xp
        scale = xp.exp(-0.5 * xp.where(before[1] < after[1], before[1], after[1]))
        way = xp.abs(after.loc - before.loc) / scale
        parts = xp.stack([xp.where(way > most, most / way, xp.ones_like(way)) for most in MOVES])

        def cut(part: Array) -> FactorState:
            loc, log_precision = (b + part * (a - b) for a, b in zip(after[:2], before[:2], strict=True))
            return FactorState(loc, log_precision, after.slopes)

        bounds = self.runs.vmap(lambda part: self._mean_bound(g, cut(part)))(parts)
        bounds = xp.where(xp.isfinite(bounds), bounds, xp.full_like(bounds, -math.inf))
        return cut(xp.take(parts, xp.reshape(xp.argmax(bounds), (1,)), axis=0)[0])

    def _drawn(
        self, g: Array, factors: FactorState, noise: Array, *, whole: bool = False, held: Draws | None = None
    ) -> Drawn:
        def factor(name: str, drawn: Draws) -> Factor:
            return Factor(*(self.split.cut(self.ops, name, part) for part in factors[:2]))

        return self.conditionals.draw(self.split.named(g), factor, noise, whole=whole, held=held)

    def _bound(self, g: Array, factors: FactorState, noise: Array) -> Array:
        """log p of all less log q of the locals, at one draw of these."""
        ops, xp, layout = self.ops, self.ops.xp, self.split.layout
        drawn = self._drawn(g, factors, noise, whole=True)
        values = {**self.split.named(g), **drawn.values}
        total = total_log_prob(self.backend, drawn.records)
        for part in layout.parts:
            total = total + ops.xp.sum(layout.place(part, values[part.site.name])[1])
        for name, normal in drawn.normals.items():
            fine, lost = self._is_resolved(values[name], normal.log_det), xp.full_like(normal.log_det, -math.inf)
            total = total + xp.where(fine, normal.log_det, lost)
        return total + 0.5 * ops.xp.sum(noise * noise) + 0.5 * self.split.num_locals * LOG_2PI

    def _is_resolved(self, value: Array, log_det: Array) -> Array:
        """Whether draws are not so near to one another that what rounds them decides the density there."""
        xp, size = self.ops.xp, max(math.prod(value.shape), 1)
        finest = FINEST * xp.finfo(value.dtype).eps * xp.mean(xp.abs(value))
        return log_det / size > xp.log(finest + xp.finfo(value.dtype).smallest_normal)

    def _precise(self, drawn: Drawn, v: Array, *, around: bool = False) -> Array:
        """The locals' prior precisions times a vector, end to end; `around`: times its way from the priors' means."""
        xp, found = self.ops.xp, [v[:0]]
        for part in self.split.locals:
            prior = drawn.priors[part.site.name]
            own = self.split.cut(self.ops, part.site.name, v)
            found.append(xp.reshape(prior.precise(self.ops, own - prior.mean if around else own), (-1,)))
        return xp.concat(found)

    def _look(self, g: Array, factors: FactorState, noise: Array) -> Look:
        """What log p says at one draw of the locals."""
        ops, xp = self.ops, self.ops.xp
        slope = ops.grad(self.log_p)
        directions = xp.eye(self.split.num_globals, dtype=g.dtype)
        drawn = self._drawn(g, factors, noise)
        at = self.split.joined(ops, {**self.split.named(g), **drawn.values})
        x = self._own(at)
        signs = xp.where(noise < 0.0, -xp.ones_like(noise), xp.ones_like(noise))

        def along(way: Array) -> Array:  # the locals' part of the matrix of second derivatives times a vector
            return self._own(ops.grad(lambda v: xp.sum(slope(v) * way))(at))

        def pull(g: Array, own: Array) -> Array:
            held = self._drawn(g, factors, noise, held=drawn.values)
            return xp.sum(own * self._precise(held, x, around=True))

        def pulled(way: Array) -> Array:  # the slope along the globals of the prior's part of the rise
            return ops.grad(lambda own: xp.sum(ops.grad(lambda g: pull(g, own))(g) * way))(x)

        probes = self._masks() * signs[None]  # signs of coordinates that seldom know of each other
        ways = xp.concat([self.runs.vmap(lambda own: self._among_all(g, own))(probes), self._beside(directions)])
        found = self.runs.vmap(along)(ways)
        mixed = found[probes.shape[0] :]
        prior = self.runs.vmap(pulled)(directions) if self.split.num_globals else mixed
        curvature = -xp.sum(probes * found[: probes.shape[0]], axis=0)
        return Look(drawn, at, x, self._own(slope(at)), curvature, mixed, prior)

    def _refit(self, g: Array, factors: FactorState) -> FactorState:
        """The factors, nearer to what log p asks for at these globals."""
        xp = self.ops.xp

        def look(noise: Array) -> tuple[Array, ...]:
            found = self._look(g, factors, noise)
            signs = xp.where(noise < 0.0, -xp.ones_like(noise), xp.ones_like(noise))
            prior = signs * self._precise(found.drawn, signs)
            pull = self._precise(found.drawn, found.x, around=True)
            rises = found.slope[None], found.mixed
            return found.at, found.x, xp.concat(rises), pull, found.curvature - prior, xp.abs(prior), found.pulled

        seen = self.runs.vmap(look)(self.local_noise)
        at, (x, rises, pull, weight, prior, pulled) = seen[0], (xp.mean(v, axis=0) for v in seen[1:])
        least = WEAKEST * xp.where(prior > 0.0, prior, xp.ones_like(prior))
        weight = xp.where(weight > least, weight, least)
        drawn = self._drawn(g, factors, self.local_noise[0])
        steps = self._newton(at, rises, drawn, weight)
        asked = self.runs.vmap(lambda step: weight * step + self._precise(drawn, step))(steps)
        pull, mixed = weight * x + asked[0] + pull, asked[1:] + pulled  # weight times location, and its slopes
        old = (1.0 - SHARE) * xp.exp(factors.log_precision)
        new = old + SHARE * weight
        loc = (old * factors.loc + SHARE * pull) / new
        slopes = (old[:, None] * factors.slopes + SHARE * mixed.T) / new[:, None]
        fine = xp.isfinite(loc) & xp.isfinite(new) & xp.all(xp.isfinite(slopes), axis=1)
        return FactorState(
            xp.where(fine, loc, factors.loc),
            xp.where(fine, xp.log(new), factors.log_precision),
            xp.where(fine[:, None], slopes, factors.slopes),
        )

    def _newton(self, at: Array, rises: Array, drawn: Drawn, weight: Array) -> Array:
        """Newton steps of all locals together, a row for each row of `rises`.

        Args:
            at: draws of all latents, over which the second derivatives are averaged.
            rises: slopes of log p in the locals, and the slopes of these in the globals.
            drawn: with the priors; `weight`: about the precisions of the factors.
        """
        ops, xp, zero = self.ops, self.ops.xp, self.noise[0] * 0.0
        slope, still = ops.grad(self.log_p), self._pulled(drawn, weight, xp.zeros_like(weight))

        def product(own: Array) -> Array:
            way = self._among_all(zero, own)
            along = self.runs.vmap(lambda at: self._own(ops.grad(lambda v: xp.sum(slope(v) * way))(at)))
            return -xp.mean(along(at), axis=0)

        def about(own: Array) -> Array:  # as if locals knew of each other through their own priors alone
            return self._pulled(drawn, weight, own / weight) - still

        if isinstance(self.runs, OneByOne):  # each product would be a run of the model in Python
            return self.runs.vmap(about)(rises)
        return self.runs.vmap(lambda rise: conjugate_gradients.solve(ops, product, rise, about, NUM_PRODUCTS))(rises)

    def _pulled(self, drawn: Drawn, weight: Array, loc: Array) -> Array:
        """The means of the priors times factors of these precisions and locations, end to end."""
        ops, cut, found = self.ops, self.split.cut, [loc[:0]]
        for part in self.split.locals:
            name = part.site.name
            factor = Factor(cut(ops, name, loc), ops.xp.log(cut(ops, name, weight)))
            product = drawn.priors[name].times(ops, factor)
            found.append(ops.xp.reshape(product.place(ops.xp.zeros_like(factor.loc)), (-1,)))
        return ops.xp.concat(found)

    def _beside(self, directions: Array) -> Array:
        """Rows of the globals' coordinates at their place among all latents; locals are zero."""
        flat = self.ops.xp.zeros_like(self.local_noise[0])
        zeros = {part.site.name: self.split.cut(self.ops, part.site.name, flat) for part in self.split.locals}
        return self.runs.vmap(lambda own: self.split.joined(self.ops, {**self.split.named(own), **zeros}))(directions)

    def _own(self, vector: Array) -> Array:
        """The locals' coordinates of a vector of all latents."""
        return self.split.parted(self.ops, vector)[1]

    def _among_all(self, g: Array, own: Array) -> Array:
        """The locals' coordinates at their place among all latents; globals are zero."""
        cut = {part.site.name: self.split.cut(self.ops, part.site.name, own) for part in self.split.locals}
        return self.split.joined(self.ops, {**self.split.named(self.ops.xp.zeros_like(g)), **cut})

    def _masks(self) -> Array:
        """Rows of zeros and ones: one a site, several a vector site, whose coordinates may know of each other."""
        xp, dtype, rows = self.ops.xp, self.starts.dtype, []
        for part in self.split.locals:
            colours = min(part.shape[-1], COLOURS) if part.site.event_dim else 1
            flat = xp.arange(part.size) % (part.shape[-1] if part.shape else 1) % colours
            for colour in range(colours):
                own = {p.site.name: xp.zeros(p.size, dtype=dtype) for p in self.split.locals}
                own[part.site.name] = xp.astype(flat == colour, dtype)
                rows.append(xp.concat(list(own.values())))
        return xp.stack(rows)
