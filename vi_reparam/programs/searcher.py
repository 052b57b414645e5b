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
"""Starts where paths run one by one."""


class Place(NamedTuple):
    """A Gaussian that the search found.

    Attributes:
        frame: its location and scale.
        bound: its ELBO, in nats: about the logarithm of the mass there; `error`: its standard error.
    """

    frame: Preconditioner
    bound: float
    error: float


class Searcher:
    """Newton paths from several starts, for one guide.

    Args:
        guide: a `JointGuide`, whose latents are searched.
    """

    def __init__(self, backend: Backend, guide: Any) -> None:
        self.backend = backend
        self.guide = guide
        self._last: tuple[Data, list[Place]] | None = None

    def run(self, data: Data, key: Any) -> list[Place]:
        """Places that lie apart, the best first; none for a model with parameters to learn. The last ones are kept.

        Raises:
            NonFiniteError: if log p is not finite at any start.
        """
        if self._last is None or self._last[0] is not data:
            self._last = data, self._search(data, key)
        return self._last[1]

    def _search(self, data: Data, key: Any) -> list[Place]:
        ops = self.backend.ops
        structure = self.guide.latents.structure(*data.call)
        if structure.params or structure.mutable:  # their values are not known yet
            return []

        def paths(args: Any, kwargs: Any, key: Any) -> pathfinder.State:
            layout = self.guide.layout(args, kwargs)
            try:
                return self._paths(ops, layout, args, kwargs, key)
            except NOT_AT_ONCE:
                return self._paths(OneByOne(ops), layout, args, kwargs, key)

        state = self.backend.engine.call(paths, data, key, name=self)
        found = {name: ops.to_numpy(value) for name, value in state.items()}
        if not any(math.isfinite(value) for value in found["value"]):
            raise no_start(len(found["value"]), found["value"])
        frames = [
            Preconditioner(ops.asarray(c), ops.asarray(r)) for c, r in zip(found["center"], found["root"], strict=True)
        ]
        chosen = pathfinder.places_apart(found["bound"], found["distances"])
        return [Place(frames[i], float(found["bound"][i]), float(found["error"][i])) for i in chosen]

    def _paths(self, runs: Any, layout: Layout, args: Any, kwargs: Any, key: Any) -> pathfinder.State:
        """The ends of all paths. `runs` has `vmap` and `many`."""
        ops = self.backend.ops
        log_p = ops.compiled(self.guide.log_joint(layout, {}, args, kwargs))
        density = density_of(ops, runs, log_p)
        start_key, noise_key = ops.split(key, 2)
        most = FEW if isinstance(runs, OneByOne) else pathfinder.num_starts(layout.size)
        starts = self.starts(runs, layout, args, kwargs, start_key, most)
        noise = ops.normal(noise_key, (pathfinder.NUM_DRAWS, layout.size), starts.dtype)
        advance = runs.vmap(lambda state: pathfinder.advance(ops, density, noise, state))

        def step(paths: tuple[Array, Array, pathfinder.State]) -> tuple[Array, Array, pathfinder.State]:
            count, _, state = paths
            after = advance(state)
            return count + 1, ops.xp.any(after["at"] != state["at"]), after

        begun = (ops.xp.asarray(0), ops.xp.asarray(True), runs.vmap(lambda start: pathfinder.begin(ops, start))(starts))
        # where no path moves, the next step would be the same one
        found = ops.while_loop(lambda s: (s[0] < pathfinder.NUM_ITERATIONS) & s[1], step, begun)[2]
        return {**found, "distances": pathfinder.distances(ops, found["center"], found["root"])}

    def starts(self, runs: Any, layout: Layout, args: Any, kwargs: Any, key: Any, most: int) -> Array:
        """A sensible vector, draws of the prior, and vectors near the origin. Shape ``[most, D]``."""
        ops, tracer = self.backend.ops, self.backend.tracer
        first = self.guide.start(layout, args, kwargs)()
        prior_key, near_key = ops.split(key, 2)
        num = most // 2

        def draw(key: Any) -> Array:
            found = tracer.run(self.guide.model, args, kwargs, key, full_data=True, alone=True)
            return layout.pack({part.site.name: found[part.site.name].value for part in layout.parts})

        shape = (most - 1 - num, layout.size)
        near = 4.0 * ops.uniform(near_key, shape, first.dtype) - 2.0
        return ops.xp.concat([first[None], runs.many(draw, prior_key, num), near])


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
