"""NumPyro as a backend."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam_numpyro.arguments import Arguments, jit_once
from vi_reparam_numpyro.host.statements import host
from vi_reparam_numpyro.host.tracer import tracer
from vi_reparam_numpyro.ops.ops import ops

CACHE_SIZE = 32


class _Calls:
    """`vi_reparam.backend.engine.Engine.call`."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, Any] = {}

    def call(self, fn: Callable[..., Any], data: Data, *inputs: Any, name: Hashable) -> Any:
        known = name, data.form, jax.config.read("jax_enable_x64")
        if known not in self._programs:
            if len(self._programs) == CACHE_SIZE:
                del self._programs[next(iter(self._programs))]
            self._programs[known] = jit_once(functools.partial(_joined, fn, data.join), data.arrays)
        return self._programs[known](data.arrays, *inputs)


def _joined(fn: Callable[..., Any], join: Any, arrays: Any, *inputs: Any) -> Any:
    return fn(*join(arrays), *inputs)


def data_of(arguments: Arguments) -> Data:
    """Arguments as the core takes them."""
    return Data(*arguments.join(arguments.arrays), arguments.key, arguments.arrays, arguments.join)


backend = Backend("numpyro", host.title, ops, host, tracer, _Calls())  # type: ignore[arg-type]
