"""The state of a fit in a file, so that a fit that was cut off goes on."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from vi_reparam.errors import ArgumentError

_FORMAT = "vi-reparam-checkpoint/1"


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a checkpoint belongs to: another model, length or objective must not go on from it."""

    model: str
    state: str
    num_steps: int
    objective: str

    @classmethod
    def of(cls, guided: Any, state: Any, num_steps: int, objective: str) -> Mark:
        shapes = {
            jax.tree_util.keystr(path): [list(jnp.shape(leaf)), str(jnp.result_type(leaf))]
            for path, leaf in jax.tree_util.tree_leaves_with_path(_plain(state))
        }
        return cls(guided.name, json.dumps(shapes, sort_keys=True), num_steps, objective)


def _plain(state: Any) -> Any:
    return {**state, "key": random.key_data(state["key"])}


def save(path: Any, mark: Mark, state: Any, done: int, losses: np.ndarray) -> None:
    """Write the state after `done` steps, whole or not at all."""
    target = Path(path)
    leaves = {f"leaf{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(_plain(state)))}
    header = json.dumps({"format": _FORMAT, "done": done, **dataclasses.asdict(mark)})
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, header=np.array(header), losses=losses, **leaves)
    os.replace(partial, target)


def load(path: Any, mark: Mark, state: Any, losses: np.ndarray) -> tuple[Any, int, np.ndarray]:
    """The state in the file, the steps done and their losses; what was given if there is no file.

    Raises:
        ArgumentError: if the file is no checkpoint, or one of another model or fit.
    """
    target = Path(path)
    if not target.exists():
        return state, 0, losses
    try:
        with np.load(target, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            stored = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError) as error:
        raise ArgumentError(f"checkpoint {str(target)!r} is not a vi-reparam checkpoint: {error}") from None
    if header.get("format") != _FORMAT:
        raise ArgumentError(f"checkpoint {str(target)!r} has format {header.get('format')!r}, expected {_FORMAT!r}")
    for field in dataclasses.fields(mark):
        if header[field.name] != getattr(mark, field.name):
            raise ArgumentError(
                f"checkpoint {str(target)!r} is of another fit: its {field.name} is {_short(header[field.name])}, "
                f"this one's {_short(getattr(mark, field.name))}; give another file"
            )
    plain = _plain(state)
    leaves = [jnp.asarray(stored[f"leaf{i}"]) for i in range(len(jax.tree.leaves(plain)))]
    restored = jax.tree.unflatten(jax.tree.structure(plain), leaves)
    restored["key"] = random.wrap_key_data(restored["key"])
    return restored, int(header["done"]), stored["losses"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
