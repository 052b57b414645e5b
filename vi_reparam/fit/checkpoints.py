"""The state of a fit in a file, so that a fit that was cut off goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Ops
from vi_reparam.errors import ArgumentError, first_line, short
from vi_reparam.fit.convergence import Convergence
from vi_reparam.posterior import npz
from vi_reparam.posterior.program import near, what_differs

Arrays = Mapping[str, np.ndarray]

_FORMAT = "vi-reparam-checkpoint/5"
_COURSE = "course/"


@dataclasses.dataclass(frozen=True)
class FitSignature:
    """What a checkpoint belongs to: no other fit may go on from it.

    Attributes:
        model: its name; `program`: its sites, their distributions and plates; `numbers`: of a run from a fixed key.
        data: a digest of its arguments.
        family: of the guide, with its options.
        num_steps: of the whole fit, at the most.
        objective: as it is written.
        estimators: those that were asked for, by site.
        seed: of the fit.
        init: where it was told to start, a digest; empty where it was not.
        plan: how its steps are taken: the optimizer, as far as it can be told, and whether the fit ends by itself.
        state: names, shapes and dtypes of the first state's arrays, as JSON; None before they are known.
    """

    model: str
    program: str
    data: str
    numbers: dict[str, list[float]]
    family: str
    num_steps: int
    objective: str
    estimators: str
    seed: str
    init: str
    plan: str
    state: str | None = None


def form_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Names, shapes and dtypes of arrays, as JSON."""
    return json.dumps({n: [list(np.shape(x)), str(np.asarray(x).dtype)] for n, x in arrays.items()}, sort_keys=True)


def told(thing: Any) -> str:
    """A thing in words that are the same in another process."""
    return re.sub(r" at 0x\w+", "", repr(thing))


def digest(ops: Ops, data: Data) -> str:
    """Equal for equal arguments."""
    return _digest(ops, (len(data.args), sorted(data.kwargs)), data.call)


def digest_of_init(ops: Ops, init: Any) -> str:
    """Equal for starts at the same values, or at the same parameters."""
    if init is None:
        return ""
    if not hasattr(init, "params"):
        return _digest(ops, sorted(init), [init[name] for name in sorted(init)])
    names = sorted(init.params)
    return _digest(ops, (told(init.guided.family), names), [init.params[name] for name in names])


def _digest(ops: Ops, begins: Any, tree: Any) -> str:
    found = hashlib.blake2b(repr(begins).encode(), digest_size=16)
    for leaf in ops.tree_leaves(tree):
        try:
            value = np.ascontiguousarray(ops.to_numpy(leaf)) if hasattr(leaf, "dtype") else None
        except TypeError:  # a random key
            value = None
        found.update((told(leaf) if value is None else f"{value.shape} {value.dtype}").encode())
        found.update(b"" if value is None else value.tobytes())
    return found.hexdigest()


def probe(path: Any) -> None:
    """Refuse a file that could not be written.

    Raises:
        ArgumentError: saying why.
    """
    refused = f"fit(checkpoint={short(path)})"
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"{refused}: expected the path of a file")
    try:
        if Path(path).exists() and not Path(path).is_file():  # a folder, or a pipe, which would wait for ever
            raise ArgumentError(f"{refused}: expected the path of a file")
        with npz.partial(Path(os.path.realpath(path))) as (_, name):
            pass
        name.unlink()
    except ArgumentError:
        raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise ArgumentError(f"{refused}: cannot be written to ({why}); make its folder, or give another file") from None


def save(
    path: Any, signature: FitSignature, arrays: Arrays, done: int, losses: np.ndarray, course: Convergence | None = None
) -> None:
    """Write the state after `done` steps, whole or not at all, with the course of a fit that ends by itself."""
    target = Path(path)
    members = {f"state/{name}": np.asarray(value) for name, value in arrays.items()}
    if course is not None:
        members |= {f"{_COURSE}{name}": np.asarray(value) for name, value in course.state().items()}
    members["losses"] = losses
    about = {"format": _FORMAT, "done": done, **dataclasses.asdict(signature)}
    about["digest"] = npz.digest(members, about)
    npz.write(target, {"header": np.array(json.dumps(about)), **members})


def taken_by_another(path: Any, signature: FitSignature) -> str:
    """What is to be said of a file that another fit, of another process or thread, writes to; else nothing."""
    try:
        header = json.loads(str(npz.read(Path(path), only="header")["header"]))
        theirs = {field.name: header.get(field.name) for field in dataclasses.fields(signature)}
    except Exception:  # none, or nothing of worth
        return ""
    for name, value in theirs.items():
        ours = getattr(signature, name)
        if value != ours and not (name == "numbers" and near(value, ours)):
            what = f"its {name} {what_differs(value, ours)}"
            return f"another fit ({what[:120]}) writes to {short(str(path))}; give each fit a file of its own"
    return ""


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
    name = short(str(target))
    try:
        stored = npz.read(target)
        header = json.loads(str(stored.pop("header")))
        form, done = header.get("format"), header.get("done")
    except Exception as error:  # a damaged file fails in many ways
        raise ArgumentError(f"checkpoint {name} is not a vi-reparam checkpoint: {first_line(error)[:100]}") from None
    if form != _FORMAT:
        raise ArgumentError(
            f"checkpoint {name} has format {form!r}, and this version reads {_FORMAT!r} only: give another file, and "
            "the fit starts anew"
        )
    try:
        for field in dataclasses.fields(signature):
            theirs, ours = header.get(field.name), getattr(signature, field.name)
            if ours is not None and theirs != ours and not (field.name == "numbers" and near(theirs, ours)):
                what = f"its {field.name} {what_differs(theirs, ours)}"
                raise ArgumentError(f"checkpoint {name} is of another fit: {what}; give another file")
        losses = stored["losses"]
        right = losses.shape == (signature.num_steps,) and losses.dtype.kind == "f" and 0 <= done <= len(losses)
        if not right or header["digest"] != npz.digest(stored, header):
            raise ValueError("its members are not those that were saved")
        if signature.state is None:
            return None
        if course is not None:
            course.restore({n.removeprefix(_COURSE): value for n, value in stored.items() if n.startswith(_COURSE)})
        arrays = {name.removeprefix("state/"): value for name, value in stored.items() if name.startswith("state/")}
        return arrays, int(done), losses
    except ArgumentError:
        raise
    except Exception as error:
        raise ArgumentError(f"checkpoint {name} is damaged: {first_line(error)[:100]}; delete it") from None
