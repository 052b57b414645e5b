"""Torch's Ops. A key is an integer that seeds a generator; the root comes from torch's own state."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
from torch.utils import _pytree as pytree

from vi_reparam_pyro.lanes import vmap as lanes
from vi_reparam_pyro.lanes.recompute import Recomputed
from vi_reparam_pyro.lanes.seeding import MASK, mix
from vi_reparam_pyro.ops import noise
from vi_reparam_pyro.ops.gamma_slope import as_operator, has_own, in_blocks
from vi_reparam_pyro.ops.retry import LaneKey, retry

_functorch: Any = torch._C._functorch  # type: ignore[attr-defined]


def _differentiated(x: Any) -> bool:
    """Whether a derivative in `x` may be asked for."""
    if not isinstance(x, torch.Tensor):
        return False
    if _functorch.is_functorch_wrapped_tensor(x) or torch.autograd.forward_ad._current_level >= 0:
        return True
    return x.requires_grad and torch.is_grad_enabled()


def plain(*tensors: Any) -> bool:
    """Whether tensors are numbers in memory: in no transform, no capture, no compilation."""
    if torch.compiler.is_compiling() or noise.captured() or torch.autograd.forward_ad._current_level >= 0:
        return False
    return not any(_functorch.is_functorch_wrapped_tensor(x) for x in tensors)


class TorchOps:
    """What the core asks of torch. Noise is made on torch's default device.

    Inside `lanes.vectorized` every lane gets its own noise from one key.
    """

    name = "pyro"
    array_module = "torch"
    xp: Any = xp
    gammaln: Any = staticmethod(torch.lgamma)
    digamma: Any = staticmethod(torch.digamma)
    ndtri: Any = staticmethod(torch.special.ndtri)

    def log_ndtr(self, x: Any) -> Any:
        # torch's own has no rule for lanes
        below, above = x.clamp(max=0.0), x.clamp(min=0.0)
        left = torch.log(0.5 * torch.special.erfcx(-(0.5**0.5) * below)) - 0.5 * below * below
        return torch.where(x < 0.0, left, torch.log1p(-0.5 * torch.erfc(0.5**0.5 * above)))

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
        return int(torch.randint(0, MASK, (), device="cpu").item())

    def aux_key(self, key: int) -> int:
        return mix(key ^ mix(20201013))

    def split(self, key: int, num: int) -> list[int]:
        if isinstance(key, LaneKey):
            return [key] * num
        return [mix(key ^ mix(i + 1)) for i in range(num)]

    def normal(self, key: int, shape: tuple[int, ...], dtype: Any) -> Any:
        if isinstance(key, LaneKey):
            return key.normal(shape, dtype)
        return lanes.noise(lambda lead: noise.normal(key, (*lead, *shape), dtype))

    def uniform(self, key: int, shape: tuple[int, ...], dtype: Any) -> Any:
        if isinstance(key, LaneKey):
            return key.uniform(shape, dtype)
        return lanes.noise(lambda lead: noise.uniform(key, (*lead, *shape), dtype))

    def poisson(self, key: int, rate: Any, shape: tuple[int, ...]) -> Any:
        return lanes.noise_of(lambda rate: noise.poisson(key, rate), rate.detach().expand(shape))

    def while_loop(self, cond: Any, body: Any, state: Any) -> Any:
        with torch.no_grad():
            while lanes.any_lane(cond(state)):
                state = body(state)
        return state

    def rejection_loop(self, attempt: Any, key: int, shape: tuple[int, ...], params: Any, max_rounds: int) -> Any:
        def run(key: int, shape: tuple[int, ...], *params: Any) -> Any:
            with torch.no_grad():
                return retry(attempt, (mix(key), mix(key + 1)), shape, params, max_rounds)

        held = tuple(p.detach() for p in params)
        return lanes.loop(lambda lead, *params: noise.loop(run, key, (*lead, *shape), params), held)

    def upcast(self, x: Any) -> Any:
        return x.double() if x.dtype == torch.float32 and x.device.type == "cpu" else None

    def with_slope(self, value: Any, parameter: Any, slope: Any) -> Any:
        if not _differentiated(parameter):
            return value
        fixed, held = value.detach(), parameter.detach()
        if has_own(slope, fixed) and lanes.alone() and torch.autograd.forward_ad._current_level < 0:
            found = lanes.loop(lambda lead, *both: as_operator(slope, *both), (fixed, held))
        else:
            found = in_blocks(slope, fixed, held) if plain(fixed, held) else slope(fixed, held)
        return value + found.detach() * (parameter - held)

    def scan(self, body: Any, state: Any, xs: Any, *, checkpoint: bool = False, unroll: bool = False) -> Any:
        leaves, form = pytree.tree_flatten(xs)  # a tensor, or a tree of them
        step, outputs = Recomputed(body) if checkpoint else body, []
        for row in zip(*leaves, strict=True):
            state, out = step(state, pytree.tree_unflatten(list(row), form))
            outputs.append(out)
        return state, pytree.tree_map(lambda *rows: torch.stack(rows), *outputs)


ops = TorchOps()
