"""The state of a fit as arrays, for `vi_reparam.fit.checkpoints`."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from vi_reparam.fit import checkpoints
from vi_reparam.fit.checkpoints import FitSignature
from vi_reparam.fit.convergence import Convergence


def mark_of(guided: Any, state: Any, num_steps: int, objective: str) -> FitSignature:
    """What a checkpoint of this fit belongs to."""
    shapes = {
        jax.tree_util.keystr(path): [list(jnp.shape(leaf)), str(jnp.result_type(leaf))]
        for path, leaf in jax.tree_util.tree_leaves_with_path(_plain(state))
    }
    return FitSignature(guided.name, json.dumps(shapes, sort_keys=True), num_steps, objective)


def _plain(state: Any) -> Any:
    return {**state, "key": random.key_data(state["key"])}


def save(
    path: Any, mark: FitSignature, state: Any, done: int, losses: np.ndarray, course: Convergence | None = None
) -> None:
    """Write the state after `done` steps, whole or not at all, with the course of a fit that ends by itself."""
    leaves = {f"leaf{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(_plain(state)))}
    checkpoints.save(path, mark, leaves, done, losses, course)


def load(
    path: Any, mark: FitSignature, state: Any, losses: np.ndarray, course: Convergence | None = None
) -> tuple[Any, int, np.ndarray]:
    """The state in the file, the steps done and their losses; what was given if there is no file.

    Raises:
        ArgumentError: if the file is no checkpoint, or one of another model or fit.
    """
    found = checkpoints.load(path, mark, course)
    if found is None:
        return state, 0, losses
    stored, done, losses = found
    plain = _plain(state)
    leaves = [jnp.asarray(stored[f"leaf{i}"]) for i in range(len(jax.tree.leaves(plain)))]
    restored = jax.tree.unflatten(jax.tree.structure(plain), leaves)
    restored["key"] = random.wrap_key_data(restored["key"])
    return restored, done, losses
