"""A plate that holds a part of its elements, because a batch of them was given."""

from __future__ import annotations

from typing import Any

from numpyro.primitives import Messenger


class PartOf(Messenger):
    """As `vi_reparam.backend.host.Host.part_of`."""

    def __init__(self, plate: str, size: int) -> None:
        super().__init__()
        self.plate, self.size = plate, size

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "plate" and msg["name"] == self.plate:
            msg["args"], msg["is_part"] = (self.size, msg["args"][0]), True
        elif msg["type"] == "sample":
            for frame in msg["cond_indep_stack"]:
                if frame.name == self.plate:
                    msg["scale"] = (1.0 if msg["scale"] is None else msg["scale"]) * (self.size / frame.size)
