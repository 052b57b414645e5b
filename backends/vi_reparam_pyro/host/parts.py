"""A plate that holds a part of its elements, because a batch of them was given."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger

from vi_reparam_pyro.host.handlers import is_subsample


class PartOf(Messenger):
    """As `vi_reparam.backend.host.Host.part_of`."""

    def __init__(self, plate: str, size: int) -> None:
        super().__init__()
        self.plate, self.size = plate, size

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if is_subsample(fn) and msg["name"] == self.plate:
            msg["value"] = fn()  # all of the batch
            msg["fn"] = type(fn)(self.size, fn.size, device=fn.device)
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate:
                msg["scale"] = msg["scale"] * (self.size / frame.size)
