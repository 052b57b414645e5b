"""The steps of a fit in JAX: one compiled loop, whose trip count is data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec
from numpyro.handlers import substitute
from numpyro.infer import SVI

from vi_reparam.backend.data import Data
from vi_reparam.backend.engine import Task
from vi_reparam.backend.lock import one_at_a_time
from vi_reparam.errors import ArgumentError
from vi_reparam.fit.loop import CHUNK
from vi_reparam.objectives.run import Runner
from vi_reparam_numpyro.ops.jit import jit_once, jit_steps

Array = Any


class State(NamedTuple):
    """What a step changes, beside the data.

    Attributes:
        tree: of arrays: parameters, optimizer, mutable sites, key, and what is watched.
        seen: steps that `tree["watch"]` sums over.
    """

    tree: dict[str, Any]
    data: Data
    seen: int = 0


@one_at_a_time
class Program:
    """`vi_reparam.backend.engine.Program` in JAX.

    Args:
        task: what is fitted.
        data: of the form that it is compiled for.
        optimizer: an optax transformation.
        watched: whether the iterates are summed up, and steps have a rate.
        long: whether the steps are worth all of XLA's optimization.
    """

    execution = "compiled"

    def __init__(self, task: Task, data: Data, optimizer: Any, watched: bool, *, long: bool) -> None:
        self.task, self.watched = task, watched
        self._join, self._optimizer = data.join, optimizer
        self._objective = task.objective.over(task.devices) if task.devices else task.objective
        self._svi = SVI(task.model, task.guide, optax.identity(), task.objective)
        self._unravel: Any = None
        self.init_tree = jit_once(self._init, data.arrays)
        everywhere = NamedSharding(self._objective.place.mesh, PartitionSpec()) if task.devices else None
        self.steps = jit_steps(self._steps, long=long, out_shardings=everywhere)
        self._looked_at = jit_once(_looked_at, ())

    def init(self, key: Any, values: Mapping[str, Array], data: Data) -> State:
        return State(self.init_tree(key, dict(values), data.arrays), data)

    def _init(self, key: Any, values: Any, arrays: Any) -> dict[str, Any]:
        args, kwargs = self._join(arrays)
        init_key, key = random.split(key)
        self._svi.model, self._svi.guide = (substitute(p, data=values) for p in (self.task.model, self.task.guide))
        start = self._svi.init(init_key, *args, **kwargs)
        for name, transform in getattr(self._svi.constrain_fn, "args", ({},))[0].items():
            if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(transform)):  # it outlives this trace
                raise ArgumentError(
                    f"parameter {name!r}: its constraint is made of the model's arguments; give it a fixed constraint, "
                    "such as the unit interval, and move it by the arguments in the model"
                )
        params = self._svi.optim.get_params(start.optim_state)
        tree = {"params": params, "opt": self._optimizer.init(params), "mutable": start.mutable_state, "key": key}
        if self.watched:
            zeros = jax.tree.map(jnp.zeros_like, params)
            tree["watch"] = {"rate": jnp.ones(()), "sum": zeros, "square": zeros}
        return tree

    def _constrained(self, params: Any, mutable: Any) -> dict[str, Any]:
        return {**self._svi.constrain_fn(params), **(mutable or {})}  # type: ignore[misc]  # known since `init`

    def _loss(self, params: Any, mutable: Any, key: Any, arrays: Any) -> Any:
        """The loss, and the mutable sites after it. The objective is called here alone."""
        args, kwargs = self._join(arrays)
        values = self._constrained(params, mutable)
        out = self._objective.loss_with_mutable_state(key, values, self.task.model, self.task.guide, *args, **kwargs)
        return out["loss"], mutable if out["mutable_state"] is None else {**(mutable or {}), **out["mutable_state"]}

    def _step(self, carry: Any) -> Any:
        i, limit, tree, losses, _, arrays = carry
        key, step_key = random.split(tree["key"])
        (value, mutable), grads = jax.value_and_grad(self._loss, has_aux=True)(
            tree["params"], tree["mutable"], step_key, arrays
        )
        finite = jnp.isfinite(value)
        for g in jax.tree.leaves(grads):
            finite = finite & jnp.all(jnp.isfinite(g))
        updates, opt = self._optimizer.update(grads, tree["opt"], tree["params"])
        if self.watched:
            updates = jax.tree.map(lambda u: tree["watch"]["rate"].astype(u.dtype) * u, updates)
        moved = {"params": optax.apply_updates(tree["params"], updates), "opt": opt, "mutable": mutable, "key": key}
        if self.watched:
            moved["watch"] = {
                "rate": tree["watch"]["rate"],
                "sum": jax.tree.map(jnp.add, tree["watch"]["sum"], moved["params"]),
                "square": jax.tree.map(lambda s, p: s + p * p, tree["watch"]["square"], moved["params"]),
            }
        # A step that is not finite is undone, so that the report can look at what led to it.
        tree = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, tree)
        return i + 1, limit, tree, losses.at[i].set(value), finite, arrays

    def _steps(self, tree: Any, limit: Any, arrays: Any) -> Any:
        carry = (0, limit, tree, jnp.zeros(CHUNK), jnp.array(True), arrays)
        i, _, tree, losses, finite, _ = lax.while_loop(lambda c: (c[0] < c[1]) & c[4], self._step, carry)
        return tree, losses, i, finite

    def advance(self, state: State, steps: int) -> tuple[State, np.ndarray, bool]:
        tree, losses, count, finite = self.steps(state.tree, min(steps, CHUNK), state.data.arrays)
        count = int(count)
        return State(tree, state.data, state.seen + count), np.asarray(losses)[:count], bool(finite)

    def feed(self, state: State, data: Data) -> State:
        return state._replace(data=data)

    def params(self, state: State) -> dict[str, Array]:
        values = self._constrained(state.tree["params"], state.tree["mutable"])
        return jax.device_put(values, self.task.devices[0]) if self.task.devices else values

    def moments(self, state: State) -> tuple[State, np.ndarray, np.ndarray]:
        watch = state.tree["watch"]
        found, empty = self._looked_at({name: watch[name] for name in ("sum", "square")})
        mean, square = (np.asarray(found[name]) / state.seen for name in ("sum", "square"))
        return State({**state.tree, "watch": {**watch, **empty}}, state.data), mean, square

    def move(self, state: State, vector: np.ndarray | None, rate: float) -> State:
        tree, watch = state.tree, state.tree["watch"]
        params = tree["params"] if vector is None else self._unflat(jnp.asarray(vector), tree["params"])
        watch = {**watch, "rate": jnp.asarray(rate, watch["rate"].dtype)}
        return state._replace(tree={**tree, "params": params, "watch": watch})

    def _unflat(self, vector: Array, like: Any) -> Any:
        if self._unravel is None:
            form = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)

            def unravel(vector: Array) -> Any:  # traced whole, or every zero and its reshaping would be compiled alone
                return ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), form))[1](vector)

            self._unravel = jit_once(unravel, ())
        return self._unravel(vector)

    def arrays(self, state: State) -> dict[str, np.ndarray]:
        leaves = jax.tree_util.tree_leaves_with_path({**state.tree, "key": random.key_data(state.tree["key"])})
        return {**{jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves}, "seen": np.asarray(state.seen)}

    def restore(self, state: State, arrays: Mapping[str, np.ndarray]) -> State:
        plain = {**state.tree, "key": random.key_data(state.tree["key"])}
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(plain)]
        tree = jax.tree.unflatten(jax.tree.structure(plain), [jnp.asarray(arrays[path]) for path in paths])
        return State({**tree, "key": random.wrap_key_data(tree["key"])}, state.data, int(arrays["seen"]))

    def non_finite(self, state: State) -> dict[str, str]:
        # traced, as the steps are: else NumPyro raises for a parameter out of its range, whose site is to be named
        tree, num = state.tree, self.task.objective.num_particles
        _, step_key = random.split(tree["key"])
        draws, costs = jax.jit(self._finite)(self.params(state), random.split(step_key, num), state.data.arrays)
        sites = {name: "its draw is not finite" for name, finite in draws.items() if not finite}
        for (side, name), finite in costs.items():
            if not finite.all() and name not in sites:
                bad = int((~finite).sum())
                sites[name] = f"log density in the {side} is not finite for {bad} of {finite.size} elements"
        if not sites:
            loss = jax.jit(jax.grad(lambda p, arrays: self._loss(p, tree["mutable"], step_key, arrays)[0]))
            for name, slope in loss(tree["params"], state.data.arrays).items():
                if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(slope)):
                    sites[name] = "its gradient is not finite"
        return sites

    def _finite(self, values: Any, keys: Any, arrays: Any) -> tuple[dict[str, Array], dict[tuple[str, str], Array]]:
        """Whether the draws of some runs, and each of their terms, are finite."""
        objective, call = self.task.objective, self._join(arrays)
        runner = Runner(objective.backend, self.task.model, self.task.guide, *call, objective.entropy, values)
        runs = [runner(key) for key in keys]
        draws = {n: jnp.all(jnp.stack([jnp.isfinite(r.draws[n].draw.value) for r in runs])) for n in runs[0].draws}
        return draws, {at: jnp.stack([jnp.isfinite(r.costs[at]) for r in runs]) for at in runs[0].costs}


def _looked_at(sums: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Trees of sums as vectors, and empty ones to go on with."""
    return {name: ravel_pytree(tree)[0] for name, tree in sums.items()}, jax.tree.map(jnp.zeros_like, sums)
