"""Torch's Ops. A key is an integer that seeds a generator; the root comes from torch's own state."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint as recompute

from vi_reparam_pyro import lanes

_functorch: Any = torch._C._functorch  # type: ignore[attr-defined]

_MASK = (1 << 63) - 1


def mix(seed: int) -> int:
    """One round of splitmix64: nearby integers become unrelated seeds."""
    seed = (seed + 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
    seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return (seed ^ (seed >> 31)) & _MASK


class TorchOps:
    """What the core asks of torch. Noise is made on torch's default device.

    Inside `lanes.vectorized` every lane gets its own noise from one key.
    """

    name = "pyro"
    array_module = "torch"
    xp: Any = xp
    gammaln: Any = staticmethod(torch.lgamma)
    digamma: Any = staticmethod(torch.digamma)
    log_ndtr: Any = staticmethod(torch.special.log_ndtr)
    ndtri: Any = staticmethod(torch.special.ndtri)

    def stop_gradient(self, x: Any) -> Any:
        return x.detach() if isinstance(x, torch.Tensor) else x

    def concrete(self, x: Any) -> Any:
        if torch.compiler.is_compiling():
            return None
        while isinstance(x, torch.Tensor) and _functorch.is_functorch_wrapped_tensor(x):
            x = _functorch.get_unwrapped(x)  # all lanes at once
        return self.stop_gradient(x)

    def key(self, seed: int) -> int:
        return mix(seed)

    def root_key(self) -> int:
        """A key from torch's global state, so that `pyro.set_rng_seed` governs it."""
        held = lanes.keys()
        if held is not None:
            return mix(held.next())
        return int(torch.randint(0, _MASK, (), device="cpu").item())

    def split(self, key: int, num: int) -> list[int]:
        return [mix(key ^ mix(i + 1)) for i in range(num)]

    def _generator(self, key: int) -> torch.Generator:
        return torch.Generator(device=torch.get_default_device()).manual_seed(key)

    def normal(self, key: int, shape: tuple[int, ...], dtype: Any) -> Any:
        generator = self._generator(key)
        return lanes.noise(lambda lead: torch.randn((*lead, *shape), dtype=dtype, generator=generator))

    def uniform(self, key: int, shape: tuple[int, ...], dtype: Any) -> Any:
        generator = self._generator(key)
        return lanes.noise(lambda lead: 1.0 - torch.rand((*lead, *shape), dtype=dtype, generator=generator))

    def poisson(self, key: int, rate: Any, shape: tuple[int, ...]) -> Any:
        generator = self._generator(key)
        return lanes.noise_of(lambda rate: torch.poisson(rate, generator=generator), rate.detach().expand(shape))

    def while_loop(self, cond: Any, body: Any, state: Any) -> Any:
        with torch.no_grad():
            while lanes.any_lane(cond(state)):
                state = body(state)
        return state

    def scan(self, body: Any, state: Any, xs: Any, *, checkpoint: bool = False) -> Any:
        leaves, form = pytree.tree_flatten(xs)  # a tensor, or a tree of them
        outputs = []
        for row in zip(*leaves, strict=True):
            x = pytree.tree_unflatten(list(row), form)
            state, out = recompute(body, state, x, use_reentrant=False) if checkpoint else body(state, x)
            outputs.append(out)
        return state, pytree.tree_map(lambda *rows: torch.stack(rows), *outputs)


ops = TorchOps()
