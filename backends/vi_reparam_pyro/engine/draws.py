"""Programs run once or many times, in lanes where they allow it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from vi_reparam.backend.data import Data
from vi_reparam.errors import ArgumentError
from vi_reparam_pyro.arguments import as_tensors, check_data, signature
from vi_reparam_pyro.engine.codec import TorchCodec
from vi_reparam_pyro.lanes.seeding import mix
from vi_reparam_pyro.lanes.vmap import vectorized

Array = Any

CHUNK_BUDGET = 2**22  # numbers held at once
MAX_CHUNK = 500


class ReadsValuesError(Exception):
    """A function or program reads a draw's value in Python."""


class Draws:
    """The part of `vi_reparam.backend.engine.Engine` that runs programs and steps no fit."""

    array_functions = "torch"
    codec = TorchCodec()
    reads_values: tuple[type[Exception], ...] = (ReadsValuesError,)

    def key(self, seed: Any) -> int:
        if isinstance(seed, int | np.integer) and not isinstance(seed, bool) and -(2**63) <= seed < 2**63:
            return mix(int(seed) & ((1 << 63) - 1))
        raise ArgumentError(f"seed is {seed!r}; give an int of at most 64 bits")

    def data(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        model: Any = None,
        *,
        inputs: tuple[Any, ...] = (),
        finite: bool = True,
    ) -> Data:
        if finite:
            check_data(args, dict(kwargs))
        call = as_tensors(args, dict(kwargs))
        return Data(*call, form=signature(*call), join=lambda arrays: call)

    def call(self, fn: Callable[..., Any], data: Data, *inputs: Any, name: Hashable) -> Any:
        with torch.no_grad():
            return fn(data.args, data.kwargs, *inputs)

    def runs_at_once(self, fn: Callable[..., Any], data: Data, *inputs: Any) -> bool:
        try:
            _lanes(lambda key: fn(key, data.args, data.kwargs, *inputs), 2, mix(0))
        except (ReadsValuesError, RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
            return False
        return True

    def many(
        self,
        fn: Callable[..., Any],
        data: Data,
        key: int,
        num: int,
        *inputs: Any,
        size: int,
        name: Hashable = None,
        at_once: bool = True,
    ) -> Any:
        def one(key: int) -> Any:
            return pytree.tree_map(torch.as_tensor, fn(key, data.args, data.kwargs, *inputs))

        if not at_once:
            with torch.no_grad():
                runs = [one(mix(key ^ mix(i + 1))) for i in range(num)]
            return pytree.tree_map(lambda *xs: torch.stack(xs), runs[0], *runs[1:])
        # chunks of one size, so that the noise of a run does not depend on how many there are
        chunk = int(np.clip(CHUNK_BUDGET // max(size, 1), 1, MAX_CHUNK))
        chunks = [_lanes(one, chunk, mix(key ^ mix(i + 1))) for i in range(-(-num // chunk))]
        return pytree.tree_map(lambda *xs: torch.cat(xs)[:num], chunks[0], *chunks[1:])


def _lanes(one: Callable[[int], Any], num: int, key: int) -> Any:
    """Runs at once, each with noise of its own.

    Raises:
        ReadsValuesError: if `one` reads a value in Python.
    """
    try:
        with torch.no_grad():
            return vectorized(lambda: one(key), num, key)
    except RuntimeError as error:
        if "vmap" in str(error) or ".item()" in str(error):
            raise ReadsValuesError(str(error)) from error
        raise
