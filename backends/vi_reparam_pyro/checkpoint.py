"""The state of a fit as arrays, for `vi_reparam.fit.checkpoints`."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import torch

from vi_reparam.fit import checkpoints
from vi_reparam.fit.checkpoints import FitSignature
from vi_reparam.fit.convergence import Convergence
from vi_reparam_pyro.arguments import to_numpy


def mark_of(guided: Any, state: Any, num_steps: int, objective: str) -> FitSignature:
    """What a checkpoint of this fit belongs to."""
    shapes = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in state.params.free.items()}
    shapes["optimizer"] = [[], type(state.optimizer).__name__]
    return FitSignature(guided.name, json.dumps(shapes, sort_keys=True), num_steps, objective)


def save(
    path: Any, mark: FitSignature, state: Any, done: int, losses: np.ndarray, course: Convergence | None = None
) -> None:
    """Write the state after `done` steps, whole or not at all, with the course of a fit that ends by itself."""
    arrays = {f"param/{name}": to_numpy(leaf) for name, leaf in state.params.free.items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        arrays |= {f"optimizer/{index}/{slot}": to_numpy(value) for slot, value in slots.items() if value is not None}
    for site, average in state.averages.items():
        arrays |= {f"average/{site}/{part}": to_numpy(value) for part, value in average.items()}
    checkpoints.save(path, mark, arrays, done, losses, course)


def load(
    path: Any, mark: FitSignature, state: Any, losses: np.ndarray, course: Convergence | None = None
) -> tuple[int, np.ndarray]:
    """Put the state in the file in place; the steps done and their losses. Nothing if there is no file.

    Raises:
        ArgumentError: if the file is no checkpoint, or one of another model or fit.
    """
    found = checkpoints.load(path, mark, course)
    if found is None:
        return 0, losses
    arrays, done, stored = found
    slots: dict[int, dict[str, Any]] = {}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        if kind == "param":
            with torch.no_grad():
                state.params.free[rest].copy_(torch.as_tensor(array))
        elif kind == "optimizer":
            index, _, slot = rest.partition("/")
            slots.setdefault(int(index), {})[slot] = torch.as_tensor(array)
        elif kind == "average":
            site, _, part = rest.rpartition("/")
            state.averages.setdefault(site, {})[part] = torch.as_tensor(array)
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": slots})
    if state.schedule is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it wants the optimizer to step first
            for _ in range(done):
                state.schedule.step()
    return done, stored
