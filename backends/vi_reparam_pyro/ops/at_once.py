"""A rejection loop that reads no value: all the proposals that serve, made together."""

from __future__ import annotations

from typing import Any

import torch

from vi_reparam.samplers.base import Attempt
from vi_reparam_pyro.ops.lane_key import LaneKey

Array = Any

_PLACES = 2**22
"""Proposals that a round of `at_once` holds."""


def at_once(attempt: Attempt, key: int, params: tuple[Array, ...], rounds: int) -> Array:
    """Noise of accepted proposals: of all that a lane may make, the first that is accepted counts."""
    num = params[0].shape[0]
    each = max(1, min(rounds, _PLACES // max(num, 1)))
    wide = tuple(p.repeat(each) for p in params)
    noise = None
    for begin in range(0, rounds if num else 1, each):
        place = torch.arange(each * num, device=params[0].device) + begin * num
        fresh, u = attempt.propose(LaneKey(key, place), (each * num,), *wide)  # type: ignore[arg-type]
        taken = attempt.accepts(fresh, u, *wide).view(each, num)
        fresh = fresh.view(each, num, *fresh.shape[1:])
        first = taken.to(torch.int8).argmax(0, keepdim=True).view(1, num, *(1 for _ in fresh.shape[2:]))
        found = fresh.gather(0, first.expand(1, *fresh.shape[1:])).squeeze(0)
        own = taken.any(0).view(first.shape[1:])
        left = torch.full_like(found, float("nan")) if noise is None else noise
        noise = torch.where(own & left.isnan(), found, left)
    assert noise is not None
    return noise
