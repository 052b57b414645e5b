"""The search for a frame, compiled once for every shape of the arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro.handlers import block, trace

from vi_reparam.backend.data import Data
from vi_reparam.errors import NonFiniteError
from vi_reparam.gaussians import pathfinder as search
from vi_reparam.gaussians.preconditioner import Preconditioner
from vi_reparam_numpyro.engine.arguments import jit_once
from vi_reparam_numpyro.layout import Layout
from vi_reparam_numpyro.ops.ops import ops
from vi_reparam_numpyro.prototype import drawable
from vi_reparam_numpyro.scoring import full_data

if TYPE_CHECKING:
    from vi_reparam_numpyro.joint import JointGuide

Array = Any


class Searcher:
    """Newton paths from several starts, for one guide.

    Args:
        guide: whose latents.
    """

    def __init__(self, guide: JointGuide) -> None:
        self.guide = guide
        self._compiled: dict[Any, Any] = {}

    def run(self, layout: Layout, data: Data, key: Any) -> list[Preconditioner]:
        """The frames worth a fit of their own, the best first; none for a model with parameters to learn.

        Raises:
            NonFiniteError: if log p is not finite at any start.
        """
        known = data.form
        if known not in self._compiled:
            paths = jit_once(lambda key, arrays: self._paths(layout, data, key, arrays), data.call)
            self._compiled[known] = None if self._learns(data) else paths
        if self._compiled[known] is None:
            return []
        found = jax.tree.map(np.asarray, self._compiled[known](key, data.arrays))
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
        return [Preconditioner(found["center"][i], found["root"][i]) for i in chosen]

    def _learns(self, data: Data) -> bool:
        """Whether the model holds parameters or state, whose values the search does not know yet."""
        kinds: set[str] = set()

        def look(arrays: Any) -> Array:
            args, kwargs = data.join(arrays)
            with block():
                found = trace(drawable(self.guide.model, random.key(0))).get_trace(*args, **kwargs)
            kinds.update(site["type"] for site in found.values())
            return jnp.zeros(())

        jax.eval_shape(look, data.arrays)
        return bool(kinds & {"param", "mutable"})

    def _paths(self, layout: Layout, data: Data, key: Any, arrays: Any) -> search.State:
        args, kwargs = data.join(arrays)
        log_p = jax.jit(self.guide.log_joint(layout, {}, args, kwargs))  # the model is traced once for all its uses
        slope = jax.grad(log_p)

        def curvature(at: Array) -> tuple[Array, Array]:
            hessian, found = jax.jacfwd(lambda at: (slope(at),) * 2, has_aux=True)(at)
            return found, hessian

        density = search.Density(jax.vmap(log_p), curvature)
        start_key, noise_key = random.split(key)
        starts = self._starts(layout, args, kwargs, start_key)
        noise = random.normal(noise_key, (search.NUM_DRAWS, layout.size), starts.dtype)

        def path(start: Array) -> search.State:
            state = search.begin(ops, start)
            return lax.fori_loop(0, search.NUM_ITERATIONS, lambda _, s: search.advance(ops, density, noise, s), state)

        return jax.vmap(path)(starts)

    def _starts(self, layout: Layout, args: Any, kwargs: Any, key: Any) -> Array:
        """A sensible vector, draws of the prior, and vectors near the origin. Shape ``[S, D]``."""
        first = self.guide.start(layout, args, kwargs)()
        prior_key, near_key = random.split(key)
        num = (search.NUM_STARTS - 1) // 2

        def draw(key: Any) -> Array:
            with block():
                found = trace(full_data(drawable(self.guide.model, key))).get_trace(*args, **kwargs)
            return layout.pack({part.site.name: found[part.site.name]["value"] for part in layout.parts})

        drawn = jax.vmap(draw)(random.split(prior_key, num))
        shape = (search.NUM_STARTS - 1 - num, layout.size)
        near = random.uniform(near_key, shape, first.dtype, minval=-2.0, maxval=2.0)
        return jnp.concatenate([first[None], drawn, near])
