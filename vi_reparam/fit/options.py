"""What a fit can be asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from vi_reparam.backend.engine import Engine
from vi_reparam.checks import check_integer
from vi_reparam.errors import ArgumentError

NAMES = ("num_steps", "num_particles", "optimizer", "seed", "progress", "checkpoint")
"""The options of a fit; a model's arguments have other names."""


def check_options(
    engine: Engine, *, num_steps: Any, num_particles: Any, optimizer: Any, seed: Any, progress: Any, checkpoint: Any
) -> None:
    """Refuse options of a fit that cannot be used.

    Raises:
        ArgumentError: naming the option.
    """
    for name, value in (("num_steps", num_steps), ("num_particles", num_particles)):
        if value is not None:
            check_integer(name, value, "fit")
    if optimizer is not None:
        engine.optimizer(optimizer)
    if not isinstance(progress, bool):
        raise ArgumentError(f"fit(progress={progress!r}): expected True or False")
    engine.key(seed)


def check_finite(name: str, array: np.ndarray) -> None:
    """Refuse data that hold NaN or infinite values.

    Args:
        name: of the argument, for the message.

    Raises:
        ArgumentError: naming the argument and how many of its values are not finite.
    """
    if not np.issubdtype(array.dtype, np.floating):
        return
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise ArgumentError(
            f"argument {name} holds {bad} NaN or infinite values of {array.size}: drop those rows, or model them with "
            "a mask"
        )
