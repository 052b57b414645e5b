"""Noise by counting: words of a lane's own, in operators that need no generator."""

from __future__ import annotations

import math
from typing import Any

import torch

from vi_reparam_pyro.lanes.seeding import GOLDEN, mixed, shifted, signed, with_salt

Array = Any


class LaneKey:
    """A key for some lanes: noise follows from (key, lane), not from the place in a buffer.

    Args:
        key: the round's.
        lanes: integers, shape ``(m,)``.
    """

    def __init__(self, key: int, lanes: Array) -> None:
        salt = with_salt(key)
        self.key: Any = signed(salt) if isinstance(salt, int) else salt
        self.lanes, self.drawn = lanes, 0

    def _words(self, shape: tuple[int, ...]) -> Array:
        """64-bit words by splitmix64 (Steele et al. 2014), for a shape that begins or ends with the lanes."""
        num = self.lanes.shape[0]
        leading = shape[0] == num
        each = math.prod(shape[1:] if leading else shape[:-1])
        stream = torch.arange(self.drawn, self.drawn + each, device=self.lanes.device)
        self.drawn += each
        # Two rounds: streams of one lane, then lanes, are nowhere a shift of each other.
        x = mixed(stream * signed(GOLDEN) + self.key)
        lanes = self.lanes * signed(GOLDEN)
        return mixed(lanes.unsqueeze(1) + x if leading else x.unsqueeze(1) + lanes).reshape(shape)

    def uniform(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """On (0, 1]."""
        bits = 53 if dtype == torch.float64 else 32
        u = (shifted(self._words(shape), 64 - bits).to(torch.float64) + 0.5) * 2.0**-bits
        return u.to(dtype)

    def normal(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Standard normals, by their quantiles."""
        u = (shifted(self._words(shape), 12).to(torch.float64) + 0.5) * 2.0**-52
        return torch.special.ndtri(u).to(dtype)
