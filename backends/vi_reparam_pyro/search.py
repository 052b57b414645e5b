"""The search for a frame: all starts at once where the model allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vi_reparam.backend.data import Data
from vi_reparam.errors import NonFiniteError
from vi_reparam.gaussians import pathfinder as search
from vi_reparam.gaussians.preconditioner import Preconditioner
from vi_reparam_pyro.engine.arguments import to_numpy
from vi_reparam_pyro.host.params import isolated
from vi_reparam_pyro.lanes.vmap import keyed, without_validation
from vi_reparam_pyro.layout import Layout
from vi_reparam_pyro.ops.ops import ops
from vi_reparam_pyro.prototype import look, parameters_of
from vi_reparam_pyro.scoring import full_data

if TYPE_CHECKING:
    from vi_reparam_pyro.joint import JointGuide

Array = Any
Function = Callable[[Array], Array]


class Searcher:
    """Newton paths from several starts, for one guide.

    Args:
        guide: whose latents.
    """

    def __init__(self, guide: JointGuide) -> None:
        self.guide = guide

    def run(self, layout: Layout, data: Data, key: int) -> list[Preconditioner]:
        """The frames worth a fit of their own, the best first; none for a model with parameters to learn.

        Raises:
            NonFiniteError: if log p is not finite at any start.
        """
        args, kwargs = data.call
        with without_validation():
            if parameters_of(self.guide.model, args, kwargs):  # their values are not known yet
                return []
        start_key, noise_key, run_key = ops.split(key, 3)
        with isolated(), torch.no_grad(), without_validation(), keyed(run_key):
            log_p = self.guide.log_joint(layout, args, kwargs)
            starts = self._starts(layout, args, kwargs, start_key)
            noise = ops.normal(noise_key, (search.NUM_DRAWS, layout.size), starts.dtype)
            try:
                state = _together(log_p, starts, noise)
            except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
                state = _one_by_one(log_p, starts, noise)  # the model reads a value in Python, or has no such rule
        found = {name: to_numpy(value) for name, value in state.items()}
        if not np.isfinite(found["value"]).any():
            raise NonFiniteError(
                f"log p of the model is not finite at any of {search.NUM_STARTS} starts (near its prior's center, at "
                "draws of the prior, and within 2 of the unconstrained origin): look at its densities and data there",
                step=0,
                sites={},
                params={},
                losses=np.zeros(0),
            )
        chosen = search.worth_a_run(found["bound"], found["center"], found["root"], np.linalg.solve)
        return [Preconditioner(state["center"][i], state["root"][i]) for i in chosen]

    def _starts(self, layout: Layout, args: Any, kwargs: Any, key: int) -> Array:
        """A sensible vector, draws of the prior, and vectors near the origin. Shape ``[S, D]``."""
        prior_key, near_key = ops.split(key, 2)
        num = (search.NUM_STARTS - 1) // 2
        vectors = [self.guide.start(layout, args, kwargs)()]
        for own in ops.split(prior_key, num):
            with full_data():
                found = look(self.guide.model, args, kwargs, own)
            vectors.append(layout.pack({part.site.name: found[part.site.name]["value"] for part in layout.parts}))
        shape = (search.NUM_STARTS - 1 - num, layout.size)
        near = 4.0 * ops.uniform(near_key, shape, vectors[0].dtype) - 2.0
        return torch.cat([torch.stack(vectors), near])


def _together(log_p: Function, starts: Array, noise: Array) -> search.State:
    slope = torch.func.grad(log_p)  # type: ignore[attr-defined]
    values = torch.func.vmap(log_p, randomness="different")

    def curvature(at: Array) -> tuple[Array, Array]:
        hessian, found = torch.func.jacrev(lambda at: (slope(at),) * 2, has_aux=True)(at)  # type: ignore[attr-defined]
        return found, hessian

    density = search.Density(values, curvature)
    begin = torch.func.vmap(lambda start: search.begin(ops, start))
    advance = torch.func.vmap(lambda state: search.advance(ops, density, noise, state), randomness="different")
    state = begin(starts)
    for _ in range(search.NUM_ITERATIONS):
        last, state = state, advance(state)
        if torch.equal(last["at"], state["at"]):  # then the next step would be the same one
            break
    return state


def _one_by_one(log_p: Function, starts: Array, noise: Array) -> search.State:
    def values(vectors: Array) -> Array:
        return torch.stack([log_p(vector) for vector in vectors])

    def curvature(vector: Array) -> tuple[Array, Array]:
        vector = vector.detach().requires_grad_()
        with torch.enable_grad():
            slope = torch.autograd.grad(log_p(vector), vector)[0]
            return slope, torch.autograd.functional.hessian(log_p, vector.detach())

    density = search.Density(values, curvature)
    ends = []
    for start in starts:
        state = search.begin(ops, start)
        for _ in range(search.NUM_ITERATIONS):
            last, state = state, search.advance(ops, density, noise, state)
            if torch.equal(last["at"], state["at"]):
                break
        ends.append(state)
    return {name: torch.stack([end[name] for end in ends]) for name in ends[0]}
