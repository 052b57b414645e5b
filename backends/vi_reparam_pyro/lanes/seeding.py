"""From keys to generators, and torch's global random state held for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

MASK = (1 << 63) - 1

_FIRST, _SECOND, GOLDEN = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15

_SALT: list[Any] = [0]


def mix(seed: int) -> int:
    """One round of splitmix64 (Steele et al. 2014): nearby integers become unrelated seeds."""
    seed = (seed + GOLDEN) & ((1 << 64) - 1)
    seed = ((seed ^ (seed >> 30)) * _FIRST) & ((1 << 64) - 1)
    seed = ((seed ^ (seed >> 27)) * _SECOND) & ((1 << 64) - 1)
    return (seed ^ (seed >> 31)) & MASK


def signed(word: int) -> int:
    """The int64 of these 64 bits."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


def shifted(x: torch.Tensor, places: int) -> torch.Tensor:
    """An int64 tensor's bits moved to the right, zeros following."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def mixed(x: torch.Tensor) -> torch.Tensor:
    """`mix` of an int64 tensor that the constant was added to, all 64 bits of it."""
    x = (x ^ shifted(x, 30)) * signed(_FIRST)
    x = (x ^ shifted(x, 27)) * signed(_SECOND)
    return x ^ shifted(x, 31)


@contextlib.contextmanager
def salted(salt: Any) -> Iterator[None]:
    """Let all noise inside follow from its key and `salt`: equal keys then give other noise for another salt.

    A captured step holds its keys as constants; the salt is what changes from step to step. It is an int, or an int64
    tensor of no dimension, which a CUDA graph reads anew at each replay.
    """
    _SALT.append(salt)
    try:
        yield
    finally:
        _SALT.pop()


def salt_now() -> Any:
    """The salt of what runs now."""
    return _SALT[-1]


def generator(key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator from a key and the salt."""
    return torch.Generator(device=device).manual_seed(with_salt(key))


def with_salt(key: int) -> Any:
    """The key, made another by the salt; a tensor if that is one, and then the same number."""
    salt = _SALT[-1]
    if isinstance(salt, torch.Tensor):
        return mixed((salt ^ key) + signed(GOLDEN)) & MASK
    return mix(key ^ salt) if salt else key


@contextlib.contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed torch's global state from `key` and the salt, and give it back as it was."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices, enabled=True):
        torch.default_generator.manual_seed(with_salt(key))
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(with_salt(key))
        yield
