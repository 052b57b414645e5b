"""NumPyro as a backend."""

from vi_reparam.backend.backend import Backend
from vi_reparam_numpyro.engine.draws import Draws
from vi_reparam_numpyro.host.families import reader
from vi_reparam_numpyro.host.tracer import tracer
from vi_reparam_numpyro.ops.ops import ops

backend = Backend("numpyro", "NumPyro", ops, reader, tracer, Draws())  # type: ignore[arg-type]
