"""Torch's Ops. A key is an integer that seeds a generator; the root comes from torch's own state."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.utils import _pytree as pytree

from vi_reparam.backend.data import leaf_form
from vi_reparam_pyro.lanes import vmap as lanes
from vi_reparam_pyro.lanes.recompute import Recomputed
from vi_reparam_pyro.lanes.seeding import MASK, mix
from vi_reparam_pyro.ops import home, noise
from vi_reparam_pyro.ops.gamma_slope import as_operator, has_own, in_blocks
from vi_reparam_pyro.ops.lane_key import LaneKey
from vi_reparam_pyro.ops.refusal import refuse_gradient
from vi_reparam_pyro.ops.retry import accepted

_ARRAYS = (torch.Tensor, np.ndarray, np.generic)
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
    """What the core asks of torch. What is made, noise too, is on torch's default device, which `home.at_home` sets.

    Inside `lanes.vectorized` every lane gets its own noise from one key.
    """

    name = "pyro"
    array_module = "torch"
    xp: Any = xp
    gammaln: Any = staticmethod(torch.lgamma)
    digamma: Any = staticmethod(torch.digamma)
    ndtri: Any = staticmethod(torch.special.ndtri)
    refuse_gradient: Any = staticmethod(refuse_gradient)

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

    def fold_in(self, key: int, number: int) -> int:
        return mix(mix(key ^ mix(20161116)) ^ mix(number))

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
                return accepted(attempt, (mix(key), mix(key + 1)), shape, params, max_rounds)

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

    def float_dtype(self) -> Any:
        return torch.get_default_dtype()

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        made = torch.as_tensor(x, dtype=dtype)
        return made.to(torch.get_default_dtype()) if dtype is None and made.is_floating_point() else made

    def to_numpy(self, x: Any) -> np.ndarray:
        return home.to_numpy(x)

    def vmap(self, fn: Any, in_axes: Any = 0) -> Any:
        def rows(*arguments: Any) -> Any:
            axes = (in_axes,) * len(arguments) if isinstance(in_axes, int) else in_axes
            leaves = [
                leaf for a, axis in zip(arguments, axes, strict=True) if axis == 0 for leaf in self.tree_leaves(a)
            ]
            with lanes.without_validation():
                return lanes.mapped(fn, torch.arange(leaves[0].shape[0]), *arguments, in_dims=tuple(axes))

        return rows

    def many(self, fn: Any, key: int, num: int) -> Any:
        return lanes.vectorized(lambda: fn(key), num, key)

    def grad(self, fn: Any) -> Any:
        by_transform = torch.func.grad(fn)  # type: ignore[attr-defined]

        def gradient(x: Any, *rest: Any) -> Any:
            if retrieve_all_functorch_interpreters():
                return by_transform(x, *rest)
            with torch.enable_grad():  # autograd lets a program read values
                leaves, form = pytree.tree_flatten(x)
                again = any(leaf.requires_grad for leaf in leaves)
                leaves = [leaf if leaf.requires_grad else leaf.detach().requires_grad_() for leaf in leaves]
                value = fn(pytree.tree_unflatten(leaves, form), *rest)
                if not value.requires_grad:  # a constant
                    return pytree.tree_map(torch.zeros_like, x)
                found = torch.autograd.grad(value, leaves, create_graph=again, materialize_grads=True)
            return pytree.tree_unflatten(list(found), form)

        return gradient

    def jacobian(self, fn: Any, *, has_aux: bool = False) -> Any:
        by_transform = torch.func.jacrev(fn, has_aux=has_aux)  # type: ignore[attr-defined]

        def matrix(x: Any) -> Any:
            if retrieve_all_functorch_interpreters():
                return by_transform(x)
            beside = []

            def value(x: Any) -> Any:
                found = fn(x)
                beside[:] = found[1:] if has_aux else ()
                return found[0] if has_aux else found

            with torch.enable_grad():
                again = _differentiated(x)
                found = torch.autograd.functional.jacobian(value, x, create_graph=again)
            return (found, beside[0] if again else beside[0].detach()) if has_aux else found

        return matrix

    def once(self, x: Any) -> Any:
        return x

    def products(self, slope: Any, x: Any, seeds: Any) -> tuple[Any, Any]:
        def both(x: Any) -> tuple[Any, Any]:
            found = slope(x)
            return seeds @ found, found

        return self.jacobian(both, has_aux=True)(x)

    def cholesky(self, a: Any) -> Any:
        root, failed = torch.linalg.cholesky_ex(a)
        return torch.where(failed == 0, root, torch.full_like(root, torch.nan))

    def solve_triangular(self, a: Any, b: Any, *, lower: bool) -> Any:
        if b.ndim == 2:
            return torch.linalg.solve_triangular(a, b, upper=not lower)
        return torch.linalg.solve_triangular(a, b[:, None], upper=not lower)[:, 0]

    def compiled(self, fn: Any) -> Any:
        return fn

    def form(self, tree: Any) -> Hashable:
        leaves, structure = pytree.tree_flatten(tree)
        own = ((tuple(x.shape), str(x.dtype)) if isinstance(x, _ARRAYS) else leaf_form(x) for x in leaves)
        return str(structure), tuple(own), torch.get_default_dtype()

    def vjp(self, fn: Any, *trees: Any) -> Any:
        value, aux = fn(*trees)

        def slopes(which: int, cotangent: Any, leaves: Any) -> list[Any]:
            moving = [leaf for leaf in leaves if leaf.requires_grad and value.requires_grad]
            found = (
                torch.autograd.grad(value, moving, cotangent, retain_graph=True, allow_unused=True) if moving else ()
            )
            by_leaf = dict(zip(map(id, moving), found, strict=True))
            return [by_leaf.get(id(leaf)) for leaf in leaves]

        return value, slopes, aux

    def at_once(self) -> Any:
        return torch.no_grad()

    def tree_map(self, fn: Any, tree: Any, *others: Any) -> Any:
        return pytree.tree_map(lambda x, *rest: None if x is None else fn(x, *rest), tree, *others)

    def tree_leaves(self, tree: Any) -> list[Any]:
        if isinstance(tree, dict):
            tree = [tree[name] for name in sorted(tree)]
        if isinstance(tree, list | tuple):
            return [leaf for part in tree for leaf in self.tree_leaves(part)]
        return [] if tree is None else [tree]


ops = TorchOps()
