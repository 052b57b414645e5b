"""Rejection loops: one proposal for every lane, then only the few that were rejected go on."""

from __future__ import annotations

import math
from typing import Any

import torch

from vi_reparam.samplers.base import Attempt
from vi_reparam_pyro.lanes.seeding import mix
from vi_reparam_pyro.ops import kernels
from vi_reparam_pyro.ops.at_once import at_once
from vi_reparam_pyro.ops.lane_key import LaneKey

Array = Any

_BLOCK = 65_536
"""Lanes that make their first proposal together: intermediate results stay in the processor's cache."""


def accepted(
    attempt: Attempt, keys: tuple[int, int], shape: tuple[int, ...], params: tuple[Array, ...], most: int
) -> Array:
    """Noise of accepted proposals, as `vi_reparam.backend.ops.Ops.rejection_loop` says.

    On a GPU no value is read, if the sampler says how many proposals serve.

    Args:
        keys: of the first round and of the later ones.
    """
    flat = tuple(p.reshape((math.prod(shape),)) for p in params)
    rounds = attempt.sampler.rounds
    if params[0].device.type == "cpu" or rounds is None:
        noise = retry(attempt, keys, flat, most)
    elif kernels.chosen(attempt, flat[0]):
        noise = kernels.accepted(keys[0], flat[0], float(attempt.sampler.boost), most)  # type: ignore[attr-defined]
    else:
        noise = at_once(attempt, keys[0], flat, min(rounds, most))
    return noise.reshape((*shape, *noise.shape[1:]))


def retry(attempt: Attempt, keys: tuple[int, int], flat: tuple[Array, ...], most: int) -> Array:
    """As `accepted`, by rounds of those that are left, which Python counts."""
    num = flat[0].shape[0]
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
    return noise


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
