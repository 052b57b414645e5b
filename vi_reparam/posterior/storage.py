"""Saves and loads posteriors: one npz file of plain arrays and a JSON text, never a pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vi_reparam.backend.ops import Args, Kwargs
from vi_reparam.errors import ArgumentError, first_line, short
from vi_reparam.posterior import npz
from vi_reparam.posterior.codec import Codec
from vi_reparam.posterior.program import near, program_of, what_differs
from vi_reparam.posterior.update import Updated, original
from vi_reparam.posterior.weights import Weights

if TYPE_CHECKING:
    from vi_reparam.posterior.posterior import Posterior

P = TypeVar("P", bound="Posterior")

FORMAT = "vi-reparam posterior"
VERSION = 1
METADATA = "metadata"
_FIRST, _BEFORE = "first/", "before"
STORED = ("seed", "record", "params", "args", "kwargs")


def save(posterior: Posterior, path: str | os.PathLike, *, data: bool = True) -> Path:
    """As `Posterior.save`."""
    if isinstance(posterior.guided.model, Updated) and not data:
        raise ArgumentError("save(data=False): an updated posterior needs the data before it too: leave data=True")
    arrays: dict[str, Any] = {}
    codec = posterior.backend.engine.codec
    metadata = {"format": FORMAT, "version": VERSION, "model": posterior.name, "form": form_of(posterior)}
    metadata["program"] = _program(posterior)
    metadata["lacks_data"] = not data and bool(posterior.args or posterior.kwargs)
    for name in STORED if data else STORED[:-2]:
        metadata[name] = _encode(getattr(posterior, name), arrays, name, codec)
    if isinstance(posterior.guided.model, Updated):
        metadata[_BEFORE] = _encode_before(posterior.guided.model, arrays, codec)
    arrays["losses"] = np.asarray(posterior.losses)
    if posterior.record.get("batches"):  # whoever loads it has no batches
        weights, heads = posterior._first
        arrays |= {_FIRST + "log_p": weights.log_p, _FIRST + "log_q": weights.log_q}
        arrays |= {f"{_FIRST}head/{name}": value for name, value in heads.items()}
    metadata["digest"] = npz.digest(arrays, metadata)
    text = {METADATA: np.array(json.dumps(metadata))}
    path = _path(path)
    try:
        npz.write(path, {**arrays, **text})
    except OSError as error:
        raise ArgumentError(f"cannot write {path}: {error.strerror}; give a file in a folder that exists") from error
    return path


def load(path: str | os.PathLike, model: Any, make: type[P], args: Args = (), kwargs: Kwargs | None = None) -> P:
    """As `Posterior.load`; `make` is the class of the posterior, `args` and `kwargs` the data that it lacks."""
    missing = [name for name in ("model", "guide") if not callable(getattr(model, name, None))]
    if missing:
        raise ArgumentError(f"the model has no .{missing[0]}; pass the guided model that the file was fitted with")
    metadata, arrays = _read(_path(path))
    backend = getattr(model, "backend", None) or make.backend
    codec = backend.engine.codec
    stored, given = metadata["model"], name_of(model)
    if stored != given:
        raise ArgumentError(
            f"{path} holds a posterior of {stored!r}, not of {given!r}; pass the model it was fitted with"
        )
    lacks = bool(metadata.get("lacks_data"))
    if lacks != bool(args or kwargs):
        what = "without its data: give those of the fit, as in load(path, model, x, y=y)"
        raise ArgumentError(f"{path} was saved {what if lacks else 'with all that it needs: give no data to load'}")
    try:
        fields = {"args": tuple(args), "kwargs": dict(kwargs or {})}
        fields |= _first_of(arrays)
        fields |= {key: _decode(metadata[key], arrays, codec) for key in STORED if key in metadata}
        if hasattr(model, "for_family_named"):  # of a ladder of families, the one that was kept
            model = model.for_family_named(fields["record"].get("family"))
    except Exception as error:  # what the file says of itself may be anything
        raise ArgumentError(f"{path} is not a saved posterior, or is damaged; save it again with .save") from error
    other = f"{path} holds a posterior of another {stored!r} than the given {given!r}"
    try:
        if _BEFORE in metadata:
            model = _updated(model, metadata[_BEFORE], arrays, make, codec)
        posterior = remade(make, model, {"losses": arrays["losses"], **fields})
        form, program = form_of(posterior), _program(posterior)
    except Exception as error:  # another model's code may fail in any way
        raise ArgumentError(f"{other}, which fails on the fit's data: {first_line(error)[:100]}") from error
    try:
        _check_form(metadata["form"], form, other)
        _check_program(metadata.get("program"), program, other)
    except ArgumentError:
        raise
    except Exception as error:  # what the file says of itself may be anything
        raise ArgumentError(f"{path} is not a saved posterior, or is damaged; save it again with .save") from error
    return posterior


def _encode_before(model: Updated, arrays: dict[str, Any], codec: Codec) -> dict[str, Any]:
    """The posterior that is the prior of an updated one."""
    before = {name: _encode(getattr(model.posterior, name), arrays, f"before {name}", codec) for name in STORED}
    return {"fresh": sorted(model.fresh), **before}


def _updated(guided: Any, stored: dict[str, Any], arrays: dict[str, np.ndarray], make: type[P], codec: Codec) -> Any:
    """The guided model whose prior is the posterior before."""
    fields = {name: _decode(stored[name], arrays, codec) for name in STORED}
    before = remade(make, guided, {"losses": np.zeros(0), **fields})
    return guided.with_model(Updated(original(guided.model), before, frozenset(stored["fresh"])))


def _check_form(stored: dict[str, dict[str, list]], ours: dict[str, dict[str, list]], other: str) -> None:
    for kind, expected in stored.items():
        for name in sorted({*expected, *ours[kind]}):
            if expected.get(name) != ours[kind].get(name):
                raise ArgumentError(
                    f"{other}: {kind} {name!r} is {_shown(expected.get(name))} in the file"
                    f" and {_shown(ours[kind].get(name))} in the model"
                )


def _program(posterior: Posterior) -> dict[str, Any]:
    """What tells its model, as fitted, from another."""
    sites, numbers = program_of(posterior.backend, posterior.guided.model, posterior.scorer.data, posterior.params)
    return {"sites": sites, "numbers": numbers, "dtype": str(posterior.backend.ops.float_dtype())}


def _check_program(stored: Any, ours: dict[str, Any], other: str) -> None:
    """Refuse another prior, likelihood or data; in another precision, the same key draws other numbers."""
    if not isinstance(stored, dict):  # of a version that stored none
        return
    if stored.get("sites") != ours["sites"]:
        raise ArgumentError(f"{other}: its sites, distributions or plates are others")
    if stored.get("dtype") == ours["dtype"] and not near(stored.get("numbers"), ours["numbers"]):
        raise ArgumentError(f"{other}: its numbers {what_differs(stored.get('numbers'), ours['numbers'])}")


def form_of(posterior: Posterior) -> dict[str, dict[str, list]]:
    """What makes a posterior's model that model: names and shapes of its sites and parameters."""
    sites = posterior.scorer.sites
    return {
        "latent site": {name: list(site.shape) for name, site in sites.latents.items()},
        "observed site": {name: list(site.shape) for name, site in sites.observed.items()},
        "parameter": _shapes(posterior.params),
    }


def _shapes(value: Any, path: str = "") -> dict[str, list[int]]:
    """The shapes of a tree's leaves, by their paths."""
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: shape for key, part in parts for k, shape in _shapes(part, f"{path}[{key!r}]").items()}
    return {path: list(np.shape(value))}


def remade(make: type[P], guided: Any, fields: dict[str, Any]) -> P:
    """The posterior of these fields."""
    backend, fields = getattr(guided, "backend", None) or make.backend, dict(fields)
    first = fields.pop("first", None)
    params, key = fields["params"], backend.ops.key(0)
    # Some guides learn the model's form in their first call, which must not be an abstract one.
    backend.tracer.run(guided.guide, fields["args"], fields["kwargs"], key, params=params, alone=True)
    made = make(guided, **fields)
    if first is not None:
        made.__dict__["_first"] = first
    return made


def _first_of(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The figures' draws, where a file has them."""
    if _FIRST + "log_p" not in arrays:
        return {}
    heads = {n.removeprefix(_FIRST + "head/"): x for n, x in arrays.items() if n.startswith(_FIRST + "head/")}
    log_p, log_q = (np.asarray(arrays[_FIRST + name], dtype=np.float64) for name in ("log_p", "log_q"))
    return {"first": (Weights(log_p, log_q), heads)}


def _path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"{short(path)} is no path: give that of a file")
    return Path(path)


def _read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    try:
        arrays = npz.read(path)
        metadata = json.loads(str(arrays.pop(METADATA)))
        if metadata["format"] != FORMAT:
            raise KeyError("format")
        if metadata["version"] > VERSION:
            raise ArgumentError(f"{path} was written by a later version; update vi-reparam to read it")
        if not metadata.keys() >= {"model", "form", *STORED[:-2]} or arrays["losses"].dtype.kind != "f":
            raise KeyError("metadata")
        known = npz.digest(arrays, metadata)
        if metadata.get("digest", known) != known:
            raise ValueError("its contents are not those that were saved")
    except ArgumentError:
        raise
    except OSError as error:
        raise ArgumentError(
            f"cannot read {path}: {error.strerror or 'not an npz file'}; give a saved posterior"
        ) from error
    except Exception as error:  # damage and malice show in many ways
        raise ArgumentError(f"{path} is not a saved posterior, or is damaged; save it again with .save") from error
    return metadata, arrays


def _encode(value: Any, arrays: dict[str, np.ndarray], where: str, codec: Codec) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str | int):
                raise ArgumentError(f"{where} has the key {key!r}, which cannot be stored; use text or int keys")
        return {"dict": [[key, _encode(item, arrays, f"{where}[{key!r}]", codec)] for key, item in value.items()]}
    if type(value) in (list, tuple):
        kind = type(value).__name__
        return {kind: [_encode(item, arrays, f"{where}[{i}]", codec) for i, item in enumerate(value)]}
    own = codec.pack(value)
    if own is not None:
        content, about = own
        return {"own": _encode(content, arrays, where, codec), "about": about}
    array = codec.array(value)
    if array is not None and not array.dtype.hasobject:
        name = f"array_{len(arrays)}"
        arrays[name] = array
        return {"array": name, "dtype": array.dtype.name}
    raise ArgumentError(
        f"{where} is of type {type(value).__name__}, which cannot be stored; bind it to the model, and fit with arrays,"
        " numbers and text"
    )


def _decode(value: Any, arrays: dict[str, np.ndarray], codec: Codec) -> Any:
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {key: _decode(item, arrays, codec) for key, item in value["dict"]}
    if "list" in value:
        return [_decode(item, arrays, codec) for item in value["list"]]
    if "tuple" in value:
        return tuple(_decode(item, arrays, codec) for item in value["tuple"])
    if "own" in value:
        return codec.unpack(_decode(value["own"], arrays, codec), value["about"])
    return codec.restore(arrays[value["array"]], value["dtype"])


def name_of(model: Any) -> str:
    """A guided model's name, or its function's where it has none."""
    return str(getattr(model, "name", None) or getattr(model.model, "__name__", type(model.model).__name__))


def _shown(shape: list | None) -> str:
    return "absent" if shape is None else f"of shape {tuple(shape)}"
