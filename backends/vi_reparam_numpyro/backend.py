"""NumPyro as a backend."""

from __future__ import annotations

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam_numpyro.arguments import Arguments
from vi_reparam_numpyro.engine.draws import Draws
from vi_reparam_numpyro.host.statements import host
from vi_reparam_numpyro.host.tracer import tracer
from vi_reparam_numpyro.ops.ops import ops


def data_of(arguments: Arguments) -> Data:
    """Arguments as the core takes them."""
    return Data(*arguments.join(arguments.arrays), arguments.key, arguments.arrays, arguments.join)


backend = Backend("numpyro", host.title, ops, host, tracer, Draws())  # type: ignore[arg-type]
