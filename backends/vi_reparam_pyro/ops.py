"""Torch's Ops. A key is an integer that seeds a generator; the root comes from torch's own state."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
from torch.utils.checkpoint import checkpoint as recompute

_MASK = (1 << 63) - 1


def _mix(seed: int) -> int:
    """One round of splitmix64: nearby integers become unrelated seeds."""
    seed = (seed + 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
    seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return (seed ^ (seed >> 31)) & _MASK


class TorchOps:
    """What the core asks of torch."""

    name = "pyro"
    array_module = "torch"
    xp: Any = xp
    gammaln = staticmethod(torch.lgamma)
    digamma = staticmethod(torch.digamma)
    log_ndtr = staticmethod(torch.special.log_ndtr)
    ndtri = staticmethod(torch.special.ndtri)

    def stop_gradient(self, x: Any) -> Any:
        return x.detach() if isinstance(x, torch.Tensor) else x

    def concrete(self, x: Any) -> Any:
        return None if torch.compiler.is_compiling() else self.stop_gradient(x)

    def key(self, seed: int) -> int:
        return _mix(seed)

    def root_key(self) -> int:
        """A key from torch's global state, so that `pyro.set_rng_seed` governs it."""
        return int(torch.randint(0, _MASK, ()).item())

    def split(self, key: int, num: int) -> list[int]:
        return [_mix(key ^ _mix(i + 1)) for i in range(num)]

    def _generator(self, key: int) -> torch.Generator:
        return torch.Generator().manual_seed(key)

    def normal(self, key: int, shape: tuple[int, ...], dtype: Any) -> Any:
        return torch.randn(shape, dtype=dtype, generator=self._generator(key))

    def uniform(self, key: int, shape: tuple[int, ...], dtype: Any) -> Any:
        return 1.0 - torch.rand(shape, dtype=dtype, generator=self._generator(key))

    def poisson(self, key: int, rate: Any, shape: tuple[int, ...]) -> Any:
        return torch.poisson(rate.detach().expand(shape), generator=self._generator(key))

    def while_loop(self, cond: Any, body: Any, state: Any) -> Any:
        with torch.no_grad():
            while cond(state):
                state = body(state)
        return state

    def scan(self, body: Any, state: Any, xs: Any, *, checkpoint: bool = False) -> Any:
        outputs = []
        for x in xs:
            state, out = recompute(body, state, x, use_reentrant=False) if checkpoint else body(state, x)
            outputs.append(out)
        return state, torch.stack(outputs)


ops = TorchOps()
