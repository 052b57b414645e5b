"""The search for coordinates: Newton paths from several starts, all at once where the model allows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Array
from vi_reparam.errors import NonFiniteError
from vi_reparam.gaussians import pathfinder
from vi_reparam.gaussians.preconditioner import Preconditioner
from vi_reparam.programs.layout import Layout
from vi_reparam.programs.rows import NOT_AT_ONCE, OneByOne

Function = Callable[[Array], Array]

FEW = 8
"""Places between which valleys are looked for, of a model of many numbers."""

STARTS, DRAWS = 4, 16
"""Where paths run one by one, for a thousandth of the seconds: those, and the draws behind a Gaussian's bound."""

MOST_TURNS, IDLE_TURNS = 6, 2
"""Of all paths: from the prior, then from where the posterior is unlike what was found, until two find nothing new."""

COSTLY, FEW_TURNS = 64, 3
"""Coordinates above which a step takes so long that there are fewer turns at the most: hierarchies have new places, all
along a funnel, in every turn."""

KNOWN = ("center", "root", "bound", "error")
Known = dict[str, Array]
"""The places known before, by `KNOWN`, repeated to a fixed number."""


class Place(NamedTuple):
    """A Gaussian that the search found.

    Attributes:
        frame: its location and scale.
        bound: its ELBO, in nats: about the logarithm of the mass there; `error`: its standard error.
        is_mode: whether the density has a valley on the straight way to each mode that is better.
    """

    frame: Preconditioner
    bound: float
    error: float
    is_mode: bool


class Searcher:
    """Newton paths from several starts, for one guide.

    Args:
        guide: a `JointGuide`, whose latents are searched.

    Attributes:
        prior: draws of the prior that the last search began from and others, shape ``[N, D]``, on the host; None where
            nothing was searched.
    """

    def __init__(self, backend: Backend, guide: Any) -> None:
        self.backend = backend
        self.guide = guide
        self._last: tuple[Data, list[Place]] | None = None
        self._starts: tuple[Data, Any] | None = None
        self.prior: Array | None = None
        self._one_by_one = False

    def run(self, data: Data, key: Any) -> list[Place]:
        """Places that lie apart, the best first; none for a model with parameters to learn. The last ones are kept.

        Raises:
            NonFiniteError: if log p is not finite at any start.
        """
        if self._last is None or self._last[0] is not data:
            self._last = data, self._search(data, key)
        return self._last[1]

    def known(self, data: Data) -> list[Place]:
        """The places of the last run, where it was of these data; nothing is searched."""
        return self._last[1] if self._last is not None and self._last[0] is data else []

    def beginnings(self, data: Data, seed: int, num: int) -> Any:
        """Vectors to begin at, on the host, shape ``[N, D]``: the last search's, if of these data, or `num` others."""
        if self._starts is None or self._starts[0] is not data:
            ops, engine = self.backend.ops, self.backend.engine

            def drawn(args: Any, kwargs: Any, key: Any) -> Array:
                return self.starts(ops, self.guide.layout(args, kwargs), args, kwargs, key, num)[0]

            found = engine.call(drawn, data, engine.key(seed), name=(self, "beginnings", num))
            self._starts = data, ops.to_numpy(found)
        return self._starts[1]

    def _search(self, data: Data, key: Any) -> list[Place]:
        ops = self.backend.ops
        structure = self.guide.latents.structure(*data.call)
        if structure.params or structure.mutable:  # their values are not known yet
            return []

        num = sum(math.prod(leaf.shape) for leaf in ops.tree_leaves(data.call) if hasattr(leaf, "dtype"))

        def paths(args: Any, kwargs: Any, key: Any, known: Known, again: Array) -> pathfinder.State:
            layout = self.guide.layout(args, kwargs)
            try:
                return self._paths(ops, layout, args, kwargs, key, known, again, max(num, layout.size))
            except NOT_AT_ONCE:
                self._one_by_one = True
                return self._paths(OneByOne(ops), layout, args, kwargs, key, known, again, max(num, layout.size))

        size = self.guide.layout(*data.call).size
        dtype = ops.float_dtype()
        found = {name: ops.to_numpy(ops.asarray(rows, dtype)) for name, rows in nothing_known(size).items()}
        chosen: list[int] = []
        idle = 0
        for turn in range(MOST_TURNS if size <= COSTLY else FEW_TURNS):
            known = {name: ops.asarray(found[name][_padded(chosen)]) for name in KNOWN}
            again, own_key = ops.asarray(turn > 0, bool), ops.fold_in(key, turn)
            state = self.backend.engine.call(paths, data, own_key, known, again, name=self)
            found = {name: ops.to_numpy(value) for name, value in state.items()}
            if not turn:
                self._starts, self.prior = (data, found.pop("starts")), found.pop("prior")
            if not any(math.isfinite(value) for value in found["value"]):
                raise no_start(len(found["value"]), found["value"])
            distances = pathfinder.with_widths(found["distances"], found["root"])
            before, chosen = len(chosen), pathfinder.places_apart(found["bound"], distances)
            idle = idle + 1 if len(chosen) == before else 0
            if idle == IDLE_TURNS or self._one_by_one:
                break
        frames = {i: Preconditioner(ops.asarray(found["center"][i]), ops.asarray(found["root"][i])) for i in chosen}
        modes = self._modes(data, found["center"], chosen if num < pathfinder.MANY else chosen[:FEW])
        return [Place(frames[i], float(found["bound"][i]), float(found["error"][i]), i in modes) for i in chosen]

    def _modes(self, data: Data, centers: Array, chosen: list[int]) -> set[int]:
        """Which places are modes of their own; the best is one."""
        ops = self.backend.ops
        if len(chosen) < 2:
            return set(chosen)

        def heights(args: Any, kwargs: Any, points: Array) -> Array:
            log_p = self.guide.log_joint(self.guide.layout(args, kwargs), {}, args, kwargs)
            try:
                return ops.vmap(log_p)(points)
            except NOT_AT_ONCE:
                return OneByOne(ops).vmap(log_p)(points)

        num = next(few for few in (2, 4, FEW, 16, pathfinder.MOST_PLACES) if few >= len(chosen))  # few programs
        points = ops.asarray(pathfinder.between(centers[_padded(chosen)[:num]].tolist()), ops.float_dtype())
        found = ops.to_numpy(self.backend.engine.call(heights, data, points, name=(self, "heights")))
        depth = pathfinder.valleys(found.tolist(), num)
        modes: list[int] = []
        for i in range(len(chosen)):
            if all(depth[i][j] > pathfinder.VALLEY for j in modes):
                modes.append(i)
        return {chosen[i] for i in modes}

    def _paths(
        self, runs: Any, layout: Layout, args: Any, kwargs: Any, key: Any, known: Known, again: Array, scalars: int
    ) -> pathfinder.State:
        """The places known before, and the ends of all paths. `runs` has `vmap` and `many`."""
        ops, xp = self.backend.ops, self.backend.ops.xp
        log_p = ops.compiled(self.guide.log_joint(layout, {}, args, kwargs))
        density = density_of(ops, runs, log_p)
        start_key, pool_key, noise_key = ops.split(key, 3)
        slow = isinstance(runs, OneByOne)
        most = STARTS if slow else pathfinder.num_starts(layout.size, scalars)
        starts, prior = self.starts(runs, layout, args, kwargs, start_key, most)
        noise = ops.normal(noise_key, (DRAWS if slow else pathfinder.NUM_DRAWS, layout.size), starts.dtype)
        if not slow:
            per_path = pathfinder.num_tried(layout.size, scalars)
            around = ops.normal(pool_key, (most * per_path, layout.size), starts.dtype)
            starts = xp.where(again, pathfinder.unlike(ops, density.values, known, around, most), starts)
        advance = runs.vmap(lambda state: pathfinder.advance(ops, density, noise, state))

        def step(paths: tuple[Array, Array, pathfinder.State]) -> tuple[Array, Array, pathfinder.State]:
            count, _, state = paths
            after = advance(state)
            return count + 1, xp.any(after["at"] != state["at"]), after

        begun = (xp.asarray(0), xp.asarray(True), runs.vmap(lambda start: pathfinder.begin(ops, start))(starts))
        # where no path moves, the next step would be the same one
        found = ops.while_loop(lambda s: (s[0] < pathfinder.NUM_ITERATIONS) & s[1], step, begun)[2]
        both = {name: xp.concat([known[name], found[name]]) for name in known}
        distances = pathfinder.distances(ops, both["center"], both["root"])
        return {**both, "value": found["value"], "distances": distances, "starts": starts, "prior": prior}

    def starts(self, runs: Any, layout: Layout, args: Any, kwargs: Any, key: Any, most: int) -> tuple[Array, Array]:
        """A sensible vector, draws of the prior, and vectors near the origin, shape ``[most, D]``; all these draws."""
        ops, tracer = self.backend.ops, self.backend.tracer
        first, draws = self.guide.start_and_draws(layout, args, kwargs)
        prior_key, near_key = ops.split(key, 2)
        num = most // 2

        def draw(key: Any) -> Array:
            found = tracer.run(self.guide.model, args, kwargs, key, full_data=True, alone=True)
            return layout.pack({part.site.name: found[part.site.name].value for part in layout.parts})

        shapes = {part.site.name: part.site.shape for part in layout.parts}
        if {n: tuple(draws[n].shape[1:]) for n in shapes if n in draws} == shapes:  # drawn already: a model less
            prior = runs.vmap(layout.pack)({n: draws[n] for n in shapes})
        else:
            prior = runs.many(draw, prior_key, num)
        near = 4.0 * ops.uniform(near_key, (most - 1 - num, layout.size), first.dtype) - 2.0
        return ops.xp.concat([first[None], prior[:num], near]), prior


def nothing_known(size: int) -> dict[str, Any]:
    """The places before the first turn, as lists."""
    eye = [[float(i == j) for j in range(size)] for i in range(size)]
    return {"center": [[0.0] * size], "root": [eye], "bound": [-math.inf], "error": [0.0]}


def _padded(chosen: list[int]) -> list[int]:
    """These rows (none: the first), repeated to `MOST_PLACES`."""
    return [(chosen or [0])[i % max(len(chosen), 1)] for i in range(pathfinder.MOST_PLACES)]


def density_of(ops: Any, runs: Any, log_p: Function) -> pathfinder.Density:
    """A log density of one vector, with its derivatives. `runs` has `vmap`."""
    slope = ops.grad(log_p)
    derivatives = ops.jacobian(lambda at: (slope(at),) * 2, has_aux=True)

    def curvature(at: Array) -> tuple[Array, Array]:
        hessian, found = derivatives(at)
        return found, hessian

    return pathfinder.Density(runs.vmap(log_p), curvature)


def no_start(num: int, values: Any) -> NonFiniteError:
    """The refusal of a model whose log density is not finite at any of `num` starts; `values`: an array on the host."""
    text = (
        f"log p of the model is not finite at any of {num} starts (near its prior's center, at draws of the prior, and "
        "within 2 of the unconstrained origin): look at its densities and data there"
    )
    return NonFiniteError(text, step=0, sites={}, params={}, losses=values[:0])
