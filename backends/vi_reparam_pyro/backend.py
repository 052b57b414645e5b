"""Pyro as a backend."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam_pyro.engine.draws import Draws
from vi_reparam_pyro.host.statements import host
from vi_reparam_pyro.host.tracer import tracer
from vi_reparam_pyro.ops.ops import ops


def data_of(args: Any, kwargs: Any) -> Data:
    """Arguments as the core takes them."""
    return Data(args, kwargs, ops.form((args, kwargs)))


backend = Backend("pyro", host.title, ops, host, tracer, Draws())  # type: ignore[arg-type]
