"""Pyro as a backend."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam_pyro.host.params import isolated
from vi_reparam_pyro.host.statements import host
from vi_reparam_pyro.host.tracer import tracer
from vi_reparam_pyro.lanes.vmap import without_validation
from vi_reparam_pyro.ops.ops import ops


class _Calls:
    """`vi_reparam.backend.engine.Engine.call`."""

    def call(self, fn: Callable[..., Any], data: Data, *inputs: Any, name: Hashable) -> Any:
        with isolated(), torch.no_grad(), without_validation():
            return fn(*data.call, *inputs)


def data_of(args: Any, kwargs: Any) -> Data:
    """Arguments as the core takes them."""
    return Data(args, kwargs, ops.form((args, kwargs)))


backend = Backend("pyro", host.title, ops, host, tracer, _Calls())  # type: ignore[arg-type]
