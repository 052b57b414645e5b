"""Backend name -> Backend, through entry points, each loaded only when asked for."""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.ops import Ops
from vi_reparam.errors import BackendError

GROUP = "vi_reparam.backends"

ARRAY_MODULES = {"numpyro": "jax", "pyro": "torch"}
"""Where the arrays of known backends come from; a backend that is not here is loaded to be asked."""

_ROOTS = {"jaxlib": "jax"}
"""Top-level modules whose arrays belong to another one."""


def backends() -> dict[str, EntryPoint]:
    """The registered backends by name, none of them imported."""
    return {point.name: point for point in entry_points(group=GROUP)}


@functools.cache
def load(name: str) -> Backend:
    """A backend.

    Raises:
        BackendError: if no such backend is registered, or its framework is not installed.
    """
    known = backends()
    if name not in known:
        raise BackendError(f"unknown backend {name!r}: registered are {sorted(known)}")
    try:
        return known[name].load()
    except ImportError as error:
        raise BackendError(
            f"backend {name!r} needs a framework that is not installed ({error}): pip install 'vi-reparam[{name}]'"
        ) from error


def load_package(name: str) -> Any:
    """The public face of a backend: the package whose entry point is `name`.

    Raises:
        BackendError: as `load`.
    """
    load(name)
    return importlib.import_module(backends()[name].module.partition(".")[0])


def host_package(thing: Any) -> Any:
    """The package of the backend whose host (numpyro, pyro) defines the class of `thing`.

    Raises:
        BackendError: if none does.
    """
    for base in type(thing).__mro__:
        root = base.__module__.partition(".")[0]
        if root in backends():
            return load_package(root)
    raise BackendError(f"{type(thing).__name__} is of no registered backend: expected one of {sorted(backends())}")


@functools.cache
def _by_array_module(array_module: str) -> Ops | None:
    """The Ops of arrays from a module; frameworks whose arrays these cannot be stay unimported."""
    for name in backends():
        if ARRAY_MODULES.get(name, array_module) != array_module:
            continue
        try:
            ops = load(name).ops
        except BackendError:
            continue
        if ops.array_module == array_module:
            return ops
    return None


@functools.cache
def _of_type(kind: type) -> Ops | None:
    for base in kind.__mro__:
        root = base.__module__.partition(".")[0]
        root = _ROOTS.get(root, root)
        if root in ("builtins", "numpy", "typing", "abc"):
            continue
        ops = _by_array_module(root)
        if ops is not None:
            return ops
    return None


def ops_of(*arrays: Any) -> Ops:
    """The Ops whose framework made the first recognizable array among `arrays`.

    Raises:
        BackendError: if none of them is an array of a registered, installed backend.
    """
    for array in arrays:
        ops = _of_type(type(array))
        if ops is not None:
            return ops
    kinds = sorted({type(array).__name__ for array in arrays})
    raise BackendError(
        f"no backend for arrays of type {kinds}: give jax or torch arrays (registered: {sorted(backends())})"
    )
