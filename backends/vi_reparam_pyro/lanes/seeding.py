"""From keys to generators, and torch's global random state held for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

MASK = (1 << 63) - 1

_SALT = [0]


def mix(seed: int) -> int:
    """One round of splitmix64: nearby integers become unrelated seeds."""
    seed = (seed + 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
    seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return (seed ^ (seed >> 31)) & MASK


@contextlib.contextmanager
def salted(salt: int) -> Iterator[None]:
    """Let all noise inside follow from its key and `salt`: equal keys then give other noise for another salt.

    A captured step holds its keys as constants; the salt is what changes from step to step.
    """
    _SALT.append(salt)
    try:
        yield
    finally:
        _SALT.pop()


def generator(key: int) -> torch.Generator:
    """A generator on torch's default device, from a key and the salt."""
    return torch.Generator(device=torch.get_default_device()).manual_seed(with_salt(key))


def with_salt(key: int) -> int:
    """The key, made another by the salt."""
    return mix(key ^ _SALT[-1]) if _SALT[-1] else key


@contextlib.contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed torch's global state from `key` and the salt, and give it back as it was."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices, enabled=True):
        torch.default_generator.manual_seed(with_salt(key))
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(with_salt(key))
        yield
