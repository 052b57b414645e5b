"""Rejection loops: one proposal for every lane, then only the few that were rejected go on."""

from __future__ import annotations

import math
from typing import Any

import torch

from vi_reparam.samplers.base import Attempt
from vi_reparam_pyro.lanes.seeding import mix, with_salt

Array = Any

_BLOCK = 65_536
"""Lanes that make their first proposal together: intermediate results stay in the processor's cache."""

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(word: int) -> int:
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


def _shifted(x: Array, places: int) -> Array:
    return (x >> places) & ((1 << (64 - places)) - 1)


class LaneKey:
    """A key for the retries of some lanes: noise follows from (key, lane), not from the place in a buffer.

    Args:
        key: the round's.
        lanes: integers, shape ``(m,)``.
    """

    def __init__(self, key: int, lanes: Array) -> None:
        self.key, self.lanes = with_salt(key), lanes
        self.drawn = 0

    def _words(self, shape: tuple[int, ...]) -> Array:
        """64-bit words by splitmix64 (Steele et al. 2014), for a shape that begins or ends with the lanes."""
        num = self.lanes.shape[0]
        leading = shape[0] == num
        each = math.prod(shape[1:] if leading else shape[:-1])
        stream = torch.arange(self.drawn, self.drawn + each, device=self.lanes.device)
        self.drawn += each
        # Two rounds: streams of one lane, then lanes, are nowhere a shift of each other.
        x = self._mix(stream * _signed(_GOLDEN) + _signed(self.key))
        lanes = self.lanes * _signed(_GOLDEN)
        x = self._mix(lanes[:, None] + x if leading else x[:, None] + lanes)
        return x.reshape(shape)

    @staticmethod
    def _mix(x: Array) -> Array:
        x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
        x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
        return x ^ _shifted(x, 31)

    def uniform(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """On (0, 1]."""
        bits = 53 if dtype == torch.float64 else 32
        u = (_shifted(self._words(shape), 64 - bits).to(torch.float64) + 0.5) * 2.0**-bits
        return u.to(dtype)

    def normal(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Standard normals, by their quantiles."""
        u = (_shifted(self._words(shape), 12).to(torch.float64) + 0.5) * 2.0**-52
        return torch.special.ndtri(u).to(dtype)


def retry(
    attempt: Attempt, keys: tuple[int, int], shape: tuple[int, ...], params: tuple[Array, ...], most: int
) -> Array:
    """Noise of accepted proposals, as `vi_reparam.backend.ops.Ops.rejection_loop` says, where Python may read values.

    Args:
        keys: of the first round and of the later ones.
    """
    num = math.prod(shape)
    flat = tuple(p.reshape((num,)) for p in params)
    noise, left = _first(attempt, keys[0], num, flat)
    if left.numel():
        never = torch.stack([torch.isnan(p[left]) for p in flat]).any(0)  # no proposal is accepted there
        noise[left[never]] = float("nan")
        left = left[~never]
    for count in range(1, most):
        if not left.numel():
            break
        some = tuple(p[left] for p in flat)
        key: Any = LaneKey(mix(keys[1] ^ count), left)
        fresh, u = attempt.propose(key, tuple(left.shape), *some)
        taken = attempt.accepts(fresh, u, *some)
        noise[left[taken]] = fresh[taken]
        left = left[~taken]
    noise[left] = float("nan")
    return noise.reshape((*shape, *noise.shape[1:]))


def _first(attempt: Attempt, key: int, num: int, params: tuple[Array, ...]) -> tuple[Array, Array]:
    """The first proposal of every lane, and the lanes whose proposal was rejected."""
    if num > _BLOCK:
        blocks = zip(*(p.split(_BLOCK) for p in params), strict=True)
        found = [_first(attempt, mix(key + i), block[0].shape[0], block) for i, block in enumerate(blocks)]
        rejected = [left + _BLOCK * i for i, (_, left) in enumerate(found)]
        return torch.cat([noise for noise, _ in found]), torch.cat(rejected)
    noise, u = attempt.propose(key, (num,), *params)  # type: ignore[arg-type]
    sure = attempt.sampler.squeeze(noise, u, *params)
    left = torch.arange(num, device=u.device) if sure is None else torch.nonzero(~sure)[:, 0]
    taken = attempt.accepts(noise[left], u[left], *(p[left] for p in params))
    return noise, left[~taken]
