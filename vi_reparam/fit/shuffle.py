"""A random order of many rows that takes little memory."""

from __future__ import annotations

from typing import Any

import numpy as np

ROUNDS = 6
SMALL = 1 << 20
"""Numbers up to which the order is written down, and exactly uniform."""


class Permutation:
    """A random permutation of the numbers below `size`; of many, a pseudo-random one, computed where it is asked for.

    That is a Feistel network over the next larger square; what falls beyond `size` is moved on until it does not
    (cycle walking; Black and Rogaway 2002).

    Args:
        size: how many numbers.
        seed: what `numpy.random.default_rng` takes.
    """

    def __init__(self, size: int, seed: Any) -> None:
        self.size, rng = size, np.random.default_rng(seed)
        self.written = rng.permutation(size) if size <= SMALL else None
        self.half = max(1, ((size - 1).bit_length() + 1) // 2)
        self.keys = rng.integers(0, 2**63, ROUNDS, dtype=np.uint64)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Where these numbers go."""
        if self.written is not None:
            return self.written[numbers]
        found = self._mixed(np.asarray(numbers, dtype=np.uint64))
        while (beyond := found >= self.size).any():
            found[beyond] = self._mixed(found[beyond])
        return found.astype(np.int64)

    def _mixed(self, x: np.ndarray) -> np.ndarray:
        shift, mask = np.uint64(self.half), np.uint64((1 << self.half) - 1)
        left, right = x >> shift, x & mask
        for key in self.keys:
            z = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((z ^ (z >> np.uint64(32))) & mask)
        return (left << shift) | right
