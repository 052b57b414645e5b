"""The Pyro backend, whole."""

from vi_reparam.backend.backend import Backend
from vi_reparam_pyro.engine.engine import engine
from vi_reparam_pyro.host.statements import host
from vi_reparam_pyro.host.tracer import tracer
from vi_reparam_pyro.ops.ops import ops

backend = Backend("pyro", "Pyro", ops, host, tracer, engine)
