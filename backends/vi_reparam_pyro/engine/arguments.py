"""Arguments of a call: which are data, and whether they can be used at all."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch._C._functorch import is_functorch_wrapped_tensor  # type: ignore[import-not-found]
from torch.utils import _pytree as pytree

from vi_reparam.backend.data import Call, Data, leaf_form
from vi_reparam.errors import ArgumentError
from vi_reparam.fit.arguments import not_finite, taken
from vi_reparam_pyro.ops.home import device_of, to_numpy

Array = Any


def is_array(leaf: Any) -> bool:
    """Whether a leaf of the arguments is an array of numbers."""
    return isinstance(leaf, torch.Tensor) or (isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "biufc")


def as_arrays(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """As `taken`."""
    return taken(args, kwargs, _is_own, _kept)


def _kept(dtype: np.dtype) -> Any:
    """What `as_tensors` makes of it."""
    default = str(torch.get_default_dtype()).removeprefix("torch.")
    return {"f": default, "i": np.int64, "u": np.int64}.get(dtype.kind, dtype)


def _is_own(value: Any) -> bool:
    if isinstance(value, torch.Tensor) and value.layout != torch.strided:
        raise ArgumentError("a sparse tensor among the arguments: give x.to_dense()")
    return isinstance(value, torch.Tensor | torch.nn.Module)


def refuse_tracing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a fit inside of torch's own transformations, which has no values.

    Raises:
        ArgumentError: saying so.
    """
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or any(map(is_functorch_wrapped_tensor, leaves)):
        raise ArgumentError(
            "a fit cannot run inside torch.func.vmap, grad or jit.trace: it looks at values to decide when it has "
            "converged; call fit outside of them, in a Python loop over data sets"
        )


def doubts_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
    """As `not_finite`, of every number and array."""
    found = []
    leaves: Any = pytree.tree_flatten_with_path((args, kwargs))[0]
    for (which, first, *rest), leaf in leaves:
        if is_array(leaf) or isinstance(leaf, float):
            key = first.idx if which.idx == 0 else repr(first.key)
            found += not_finite(f"{key}{pytree.keystr(tuple(rest))}", to_numpy(leaf))
    return tuple(found)


def as_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, NumPy arrays made tensors (floating-point ones in torch's default type, integers as
    indices: torch takes few other integers for these, and bytes for a mask), all of them on one device.

    Raises:
        ArgumentError: where they are on several.
    """
    device = device_of((args, kwargs)) or torch.get_default_device()

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.to(device)
        if not isinstance(leaf, np.ndarray) or not is_array(leaf):
            return leaf
        forward = leaf if min(leaf.strides, default=0) >= 0 else leaf.copy()  # torch reads none backward
        tensor = torch.tensor(forward, device=device)  # a copy: the user's array may change
        if leaf.dtype.kind == "b":
            return tensor
        return tensor.to(torch.get_default_dtype() if tensor.is_floating_point() else torch.int64)

    return pytree.tree_map(convert, (tuple(args), dict(kwargs)))


def data_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Data:
    """Arguments as tensors, taken apart."""
    args, kwargs = as_tensors(args, kwargs)
    leaves, tree = pytree.tree_flatten((args, kwargs))
    arrays = tuple(leaf for leaf in leaves if is_array(leaf))

    def join(arrays: tuple[Array, ...]) -> Any:
        taken = iter(arrays)
        return pytree.tree_unflatten([next(taken) if is_array(leaf) else leaf for leaf in leaves], tree)

    return Data(args, kwargs, (signature(args, kwargs), torch.get_default_dtype()), arrays, join)


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    """Equal for arguments of equal structure, shapes, dtypes and other values."""
    leaves, tree = pytree.tree_flatten((args, kwargs))
    return str(tree), tuple(_key(x) for x in leaves)


def _key(leaf: Any) -> Hashable:
    if is_array(leaf):
        return tuple(leaf.shape), str(leaf.dtype)
    return leaf_form(leaf)
