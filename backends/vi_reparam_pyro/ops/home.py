"""Where arrays live: what is made on the way lives where the parameters and data are, whatever torch's default is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils import _pytree as pytree

from vi_reparam.backend.data import Data
from vi_reparam.errors import ArgumentError

F = TypeVar("F", bound=Callable[..., Any])

SMALL = 10_000
"""Numbers of data up to which threads gain a tenth on a quiet machine, and on a busy one take twenty times as long."""


def device_of(tree: Any) -> torch.device | None:
    """The device on which a tree's tensors are, those in memory aside, which go with the others; None without others.

    Raises:
        ArgumentError: where they are on several.
    """
    found = {x.device for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor) and x.device.type != "cpu"}
    if len(found) > 1:
        names = " and ".join(sorted(map(str, found)))
        raise ArgumentError(f"the arguments are on several devices, {names}: move all of them to one of these")
    return found.pop() if found else None


def at_home(*tensors: Any) -> contextlib.AbstractContextManager[Any]:
    """Let what is made inside live where these tensors are; nothing changes where that is torch's default device."""
    devices = [x.device for x in tensors if isinstance(x, torch.Tensor)]
    home = next((device for device in devices if device.type != "cpu"), devices[0] if devices else None)
    return contextlib.nullcontext() if home in (None, torch.get_default_device()) else home


def brought_home(tree: Any) -> Any:
    """A tree of tensors on the device that is torch's default now."""
    device = torch.get_default_device()
    return pytree.tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) and x.device != device else x, tree)


@contextlib.contextmanager
def few_threads(data: Data) -> Iterator[None]:
    """Inside, small data are computed with in one thread."""
    before = torch.get_num_threads()
    small = sum(x.numel() for x in data.arrays if isinstance(x, torch.Tensor)) <= SMALL
    if not small or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_data(method: F) -> F:
    """A method whose work lives where the data do that are its argument, or its object's, in as many threads as pay."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = [arg for arg in args if isinstance(arg, Data)]
        data = given[0] if given else self.gradient.data
        with at_home(*data.arrays), few_threads(data):
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]


def with_params(method: F) -> F:
    """A method of a distribution whose work lives where its parameters do."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with at_home(*tensors_of(self)):
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]


def tensors_of(distribution: Any) -> Iterator[Any]:
    """Tensors that a distribution holds, itself or inside."""
    for value in vars(distribution).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from value
        elif isinstance(value, torch.distributions.Distribution):
            yield from tensors_of(value)


def to_numpy(x: Any) -> np.ndarray:
    """A tensor as a NumPy array, which knows no bfloat16."""
    if not isinstance(x, torch.Tensor):
        return np.asarray(x)
    return (x.detach().float() if x.dtype == torch.bfloat16 else x.detach()).cpu().numpy()
