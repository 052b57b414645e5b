"""The state of a fit in a file, so that a fit that was cut off goes on."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vi_reparam.errors import ArgumentError
from vi_reparam.fit.convergence import Convergence

Arrays = Mapping[str, np.ndarray]

_FORMAT = "vi-reparam-checkpoint/2"
_COURSE = "course/"


@dataclasses.dataclass(frozen=True)
class FitSignature:
    """What a checkpoint belongs to: no other fit may go on from it.

    Attributes:
        model: its name.
        num_steps: of the whole fit, at the most.
        objective: as it is written.
        estimators: those that were asked for, by site.
        seed: of the fit.
        plan: how its steps are taken: the optimizer, and whether the fit ends by itself.
        state: names, shapes and dtypes of the first state's arrays, as JSON.
    """

    model: str
    num_steps: int
    objective: str
    estimators: str
    seed: str
    plan: str
    state: str


def form_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Names, shapes and dtypes of arrays, as JSON."""
    return json.dumps({n: [list(np.shape(x)), str(np.asarray(x).dtype)] for n, x in arrays.items()}, sort_keys=True)


def save(
    path: Any, signature: FitSignature, arrays: Arrays, done: int, losses: np.ndarray, course: Convergence | None = None
) -> None:
    """Write the state after `done` steps, whole or not at all, with the course of a fit that ends by itself."""
    target = Path(path)
    members = {f"state/{name}": value for name, value in arrays.items()}
    if course is not None:
        members |= {f"{_COURSE}{name}": np.asarray(value) for name, value in course.state().items()}
    header = json.dumps({"format": _FORMAT, "done": done, **dataclasses.asdict(signature)})
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, header=np.array(header), losses=losses, **members)
    os.replace(partial, target)


def load(
    path: Any, signature: FitSignature, course: Convergence | None = None
) -> tuple[dict[str, np.ndarray], int, np.ndarray] | None:
    """The arrays in the file, the steps done and their losses; None if there is no file. The course is restored.

    Raises:
        ArgumentError: if the file is no checkpoint, or one of another model or fit.
    """
    target = Path(path)
    if not target.exists():
        return None
    try:
        with np.load(target, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            stored = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError) as error:
        raise ArgumentError(f"checkpoint {str(target)!r} is not a vi-reparam checkpoint: {error}") from None
    if header.get("format") != _FORMAT:
        raise ArgumentError(
            f"checkpoint {str(target)!r} has format {header.get('format')!r}, and this version reads {_FORMAT!r} only: "
            "give another file, and the fit starts anew"
        )
    for field in dataclasses.fields(signature):
        if header[field.name] != getattr(signature, field.name):
            raise ArgumentError(
                f"checkpoint {str(target)!r} is of another fit: its {field.name} is {_short(header[field.name])}, "
                f"this one's {_short(getattr(signature, field.name))}; give another file"
            )
    if course is not None:
        course.restore({n.removeprefix(_COURSE): value for n, value in stored.items() if n.startswith(_COURSE)})
    arrays = {name.removeprefix("state/"): value for name, value in stored.items() if name.startswith("state/")}
    return arrays, int(header["done"]), stored["losses"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
