"""The state of a fit in a file, so that a fit that was cut off goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Ops
from vi_reparam.errors import ArgumentError, first_line, short
from vi_reparam.fit.convergence import Convergence
from vi_reparam.sites.totals import scaled
from vi_reparam.sites.wrappers import innermost

Arrays = Mapping[str, np.ndarray]

_FORMAT = "vi-reparam-checkpoint/3"
_COURSE = "course/"
_CLOSE = {"rtol": 1e-4, "atol": 1e-4, "equal_nan": True}
"""How near the numbers of a program must come again: other machines round in other ways."""


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
    found = hashlib.blake2b(repr((len(data.args), sorted(data.kwargs))).encode(), digest_size=16)
    for leaf in ops.tree_leaves(data.call):
        try:
            value = np.ascontiguousarray(ops.to_numpy(leaf)) if hasattr(leaf, "shape") else None
        except TypeError:  # a random key
            value = None
        found.update((told(leaf) if value is None else f"{value.shape} {value.dtype}").encode())
        found.update(b"" if value is None else value.tobytes())
    return found.hexdigest()


def program_of(backend: Backend, model: Any, data: Data) -> tuple[str, dict[str, list[float]]]:
    """The sites of a model in words, and numbers that tell its priors and its likelihood from others."""
    ops, tracer = backend.ops, backend.tracer

    def run(args: Any, kwargs: Any, key: Any) -> Any:
        return tracer.run(model, args, kwargs, key, alone=True)

    def numbers(args: Any, kwargs: Any, key: Any) -> dict[str, list[Any]]:
        found = {n: r for n, r in run(args, kwargs, key).items() if r.kind == "sample"}
        return {
            n: [ops.xp.sum(ops.asarray(r.value) * 1.0), ops.xp.sum(scaled(r, ops.asarray(r.log_prob())))]
            for n, r in found.items()
        }

    sites = []
    for name, record in tracer.shapes(lambda key: run(*data.call, key)).items():
        kind = (
            record.kind if record.distribution is None else type(innermost(backend.host, record.distribution)).__name__
        )
        sites.append(f"{name}: {kind} {[tuple(plate) for plate in record.plates]} {record.observed}")
    try:
        values = backend.engine.call(numbers, data, ops.key(0))
    except ValueError:  # outside of a support: the fit says so
        values = {}
    return "; ".join(sites), {n: [float(ops.to_numpy(x)) for x in pair] for n, pair in values.items()}


def probe(path: Any) -> None:
    """Refuse a file that could not be written.

    Raises:
        ArgumentError: saying why.
    """
    if not isinstance(path, str | os.PathLike) or Path(path).is_dir():
        raise ArgumentError(f"fit(checkpoint={short(path)}): expected the path of a file")
    try:
        with _partial(Path(path)) as (_, name):
            pass
        os.unlink(name)
    except OSError as error:
        raise ArgumentError(
            f"fit(checkpoint={short(str(path))}): its folder cannot be written to ({error.strerror}); make it, or "
            "give another file"
        ) from None


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[tuple[BinaryIO, str]]:
    """A new file beside `target`, and its name, which no other process has."""
    number, name = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".partial", dir=target.parent)
    try:
        with os.fdopen(number, "wb") as file:
            yield file, name
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def save(
    path: Any, signature: FitSignature, arrays: Arrays, done: int, losses: np.ndarray, course: Convergence | None = None
) -> None:
    """Write the state after `done` steps, whole or not at all, with the course of a fit that ends by itself."""
    target = Path(path)
    members = {f"state/{name}": np.asarray(value) for name, value in arrays.items()}
    if course is not None:
        members |= {f"{_COURSE}{name}": np.asarray(value) for name, value in course.state().items()}
    about = {"format": _FORMAT, "done": done, "members": form_of(members), **dataclasses.asdict(signature)}
    with _partial(target) as (file, name):
        np.savez(file, allow_pickle=False, header=np.array(json.dumps(about)), losses=losses, **members)
    os.replace(name, target)


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
        with target.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            stored = {name: file[name] for name in file.files if name != "header"}
        losses, form, done = stored.pop("losses"), header.get("format"), header.get("done")
    except Exception as error:  # a damaged file fails in many ways
        raise ArgumentError(f"checkpoint {name} is not a vi-reparam checkpoint: {first_line(error)[:100]}") from None
    if form != _FORMAT:
        raise ArgumentError(
            f"checkpoint {name} has format {form!r}, and this version reads {_FORMAT!r} only: give another file, and "
            "the fit starts anew"
        )
    for field in dataclasses.fields(signature):
        theirs, ours = header.get(field.name), getattr(signature, field.name)
        if ours is not None and theirs != ours and not (field.name == "numbers" and _near(theirs, ours)):
            raise ArgumentError(
                f"checkpoint {name} is of another fit: its {field.name} {_is(theirs, ours)}; give another file"
            )
    if header.get("members") != form_of(stored) or np.shape(losses) != (signature.num_steps,):
        raise ArgumentError(f"checkpoint {name} is damaged: its members are not those that were saved; delete it")
    if signature.state is None:
        return None
    if course is not None:
        course.restore({n.removeprefix(_COURSE): value for n, value in stored.items() if n.startswith(_COURSE)})
    arrays = {name.removeprefix("state/"): value for name, value in stored.items() if name.startswith("state/")}
    return arrays, int(done), losses


def _near(theirs: Any, ours: Any) -> bool:
    """Whether two runs of a program gave the same numbers, but for rounding."""
    if not isinstance(theirs, dict) or theirs.keys() != ours.keys():
        return False
    return all(np.allclose(theirs[name], ours[name], **_CLOSE) for name in ours)


def _is(theirs: Any, ours: Any) -> str:
    """What differs, in words: of long texts and numbers, the first part that does."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = [
            n for n in {**ours, **theirs} if n not in ours or n not in theirs or not np.allclose(theirs[n], ours[n])
        ]
        return f"at site {names[0]!r} are others (another prior, likelihood or network)"
    return f"is {short(theirs)}, this one's {short(ours)}"
