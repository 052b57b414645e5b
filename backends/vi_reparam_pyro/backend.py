"""Pyro as a backend."""

from vi_reparam.backend.backend import Backend
from vi_reparam_pyro.engine.draws import Draws
from vi_reparam_pyro.host.families import reader
from vi_reparam_pyro.host.tracer import tracer
from vi_reparam_pyro.ops.ops import ops

backend = Backend("pyro", "Pyro", ops, reader, tracer, Draws())  # type: ignore[arg-type]
