"""Torch's global random state, held for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed torch's global state from `key`, and give it back as it was."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices, enabled=True):
        torch.default_generator.manual_seed(key)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(key)
        yield
