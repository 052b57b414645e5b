"""The state of a fit in a file, so that a fit that was cut off goes on."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from vi_reparam.errors import ArgumentError
from vi_reparam.fit.convergence import Convergence

_FORMAT = "vi-reparam-checkpoint/1"
_COURSE = "course/"


@dataclasses.dataclass(frozen=True)
class FitSignature:
    """What a checkpoint belongs to: another model, length or objective must not go on from it.

    Attributes:
        state: names, shapes and dtypes of the state's arrays, as JSON.
    """

    model: str
    state: str
    num_steps: int
    objective: str


def save(
    path: Any,
    mark: FitSignature,
    arrays: dict[str, np.ndarray],
    done: int,
    losses: np.ndarray,
    course: Convergence | None = None,
) -> None:
    """Write the state after `done` steps, whole or not at all, with the course of a fit that ends by itself."""
    target = Path(path)
    if course is not None:
        arrays = arrays | {f"{_COURSE}{name}": np.asarray(value) for name, value in course.state().items()}
    header = json.dumps({"format": _FORMAT, "done": done, **dataclasses.asdict(mark)})
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, header=np.array(header), losses=losses, **arrays)
    os.replace(partial, target)


def load(
    path: Any, mark: FitSignature, course: Convergence | None = None
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
        raise ArgumentError(f"checkpoint {str(target)!r} has format {header.get('format')!r}, expected {_FORMAT!r}")
    for field in dataclasses.fields(mark):
        if header[field.name] != getattr(mark, field.name):
            raise ArgumentError(
                f"checkpoint {str(target)!r} is of another fit: its {field.name} is {_short(header[field.name])}, "
                f"this one's {_short(getattr(mark, field.name))}; give another file"
            )
    if course is not None:
        course.restore({n.removeprefix(_COURSE): value for n, value in stored.items() if n.startswith(_COURSE)})
    return stored, int(header["done"]), stored["losses"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
