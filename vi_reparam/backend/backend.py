"""A backend: five small things."""

from __future__ import annotations

from dataclasses import dataclass

from vi_reparam.backend.engine import Engine
from vi_reparam.backend.host import Host
from vi_reparam.backend.ops import Ops
from vi_reparam.backend.tracer import Tracer


@dataclass(frozen=True)
class Backend:
    """What an entry point of the group ``vi_reparam.backends`` gives.

    Attributes:
        name: of the entry point; `title`: for messages, as in ``"NumPyro"``.
        ops: array functions and noise.
        host: declares programs.
        tracer: runs programs.
        engine: compiles and steps.
    """

    name: str
    title: str
    ops: Ops
    host: Host
    tracer: Tracer
    engine: Engine
