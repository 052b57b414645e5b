"""The NumPyro backend, whole."""

from vi_reparam.backend.backend import Backend
from vi_reparam_numpyro.engine.engine import engine
from vi_reparam_numpyro.host.statements import host
from vi_reparam_numpyro.host.tracer import tracer
from vi_reparam_numpyro.ops.ops import ops

backend = Backend("numpyro", "NumPyro", ops, host, tracer, engine)
