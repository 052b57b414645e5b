"""The model's plates, entered again in its guide."""

from __future__ import annotations

import contextlib
from typing import Any

from vi_reparam.backend.host import Host
from vi_reparam.backend.tracer import PlateInfo


def enter(host: Host, stack: contextlib.ExitStack, made: dict[str, Any], plate: PlateInfo) -> Any:
    """Enter a plate; its indices. `made` holds the plates of this run so far, by name."""
    if plate.name not in made:
        size = plate.subsample_size if plate.is_subsampled else None
        made[plate.name] = host.plate(plate.name, plate.size, subsample_size=size, dim=plate.dim)
    return stack.enter_context(made[plate.name])
