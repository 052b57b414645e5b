"""What a fit can be asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from vi_reparam.backend.engine import Engine
from vi_reparam.checks import check_integer
from vi_reparam.errors import ArgumentError
from vi_reparam.fit import checkpoints
from vi_reparam.fit.warm import check_init

MOST_STEPS = 10**9
"""Steps whose losses take 8 GB."""


@dataclass(frozen=True)
class Options:
    """How to fit: as in `vi_reparam.fit.guided.Guided.fit`. A model's arguments have other names."""

    num_steps: int | None = None
    num_particles: int | None = None
    optimizer: Any = None
    seed: Any = 0
    progress: bool = False
    checkpoint: Any = None
    init: Any = None
    devices: Any = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_particles"):
            value = getattr(self, name)
            if isinstance(value, np.integer):
                object.__setattr__(self, name, int(value))
        if isinstance(self.checkpoint, str | os.PathLike):  # the program may go to another folder meanwhile
            object.__setattr__(self, "checkpoint", os.path.join(os.getcwd(), self.checkpoint))

    def check(self, engine: Engine) -> None:
        """Refuse options that cannot be used.

        Raises:
            ArgumentError: naming the option.
        """
        for name, value in (("num_steps", self.num_steps), ("num_particles", self.num_particles)):
            if value is not None:
                check_integer(name, value, "fit")
        if self.num_steps is not None and self.num_steps > MOST_STEPS:
            raise ArgumentError(f"fit(num_steps={self.num_steps}): expected at most {MOST_STEPS:,}")
        if self.optimizer is not None:
            engine.optimizer(self.optimizer)
        if not isinstance(self.progress, bool):
            raise ArgumentError(f"fit(progress={self.progress!r}): expected True or False")
        engine.key(self.seed)
        if self.devices is not None:
            engine.devices(self.devices)
        check_init(self.init)
        if self.checkpoint is not None:
            checkpoints.probe(self.checkpoint)
