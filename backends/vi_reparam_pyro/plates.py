"""The model's plates, entered again in its guide."""

from __future__ import annotations

import contextlib
from typing import Any

import pyro

from vi_reparam_pyro.prototype import Plate


def enter(stack: contextlib.ExitStack, made: dict[str, Any], plate: Plate) -> Any:
    """Enter a plate, made once a run; its indices.

    Args:
        made: the plates of this run so far, by name.
    """
    if plate.name not in made:
        size = None if plate.size == plate.subsample_size else plate.subsample_size
        made[plate.name] = pyro.plate(plate.name, plate.size, subsample_size=size, dim=plate.dim)
    return stack.enter_context(made[plate.name])
