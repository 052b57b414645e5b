"""Many runs of a program at once: one vmap, whose lanes draw their own noise."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from vi_reparam_pyro.seeding import seeded

Array = Any


class Lanes:
    """The lanes of the vmap that is running.

    Args:
        index: a vmapped tensor, which carries the lane dimension to the noise.
        key: of the run; keys drawn inside follow from it.
    """

    def __init__(self, index: Array, key: int) -> None:
        self.index = index
        self.key = key
        self.count = 0

    def next_key(self) -> int:
        self.count += 1
        return (self.key ^ (self.count * 0x9E3779B97F4A7C15)) & ((1 << 63) - 1)


_ACTIVE: list[Lanes] = []


def current() -> Lanes | None:
    """The lanes that are running, if any."""
    return _ACTIVE[-1] if _ACTIVE else None


@contextlib.contextmanager
def keyed(key: int) -> Iterator[None]:
    """Let all randomness inside follow from `key`, in lanes or outside them."""
    held = current()
    if held is not None:
        _ACTIVE.append(Lanes(held.index, key))
    try:
        with seeded(key):
            yield
    finally:
        if held is not None:
            _ACTIVE.pop()


def vectorized(fn: Callable[[], Any], num: int, key: int) -> Any:
    """`num` runs of `fn` at once, each with its own noise; results with a leading dimension.

    Args:
        fn: a program without arguments; it may close over anything, also what is differentiated.
        num: how many.
        key: from which all noise follows.

    Raises:
        RuntimeError: as `torch.func.vmap`, if the program reads a value in Python.
    """

    def lane(index: Array) -> Any:
        _ACTIVE.append(Lanes(index, key))
        try:
            return fn()
        finally:
            _ACTIVE.pop()

    with seeded(key), _without_validation(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return torch.func.vmap(lane, randomness="different")(torch.arange(num))


@contextlib.contextmanager
def _without_validation() -> Iterator[None]:
    """Distributions validate by reading values, which lanes cannot; the check before a fit did it."""
    held = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(held)


class _Noise(torch.autograd.Function):
    """Noise with a lane dimension of its own."""

    @staticmethod
    def forward(index: Array, draw: Callable[[tuple[int, ...]], Array]) -> Array:
        return draw(())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, index: Array, draw: Callable[[tuple[int, ...]], Array]) -> Any:
        return draw((info.batch_size,)), 0


class _NoiseOf(torch.autograd.Function):
    """As `_Noise`, for noise that has parameters."""

    @staticmethod
    def forward(index: Array, param: Array, draw: Callable[[Array], Array]) -> Array:
        return draw(param)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, index: Array, param: Array, draw: Callable[[Array], Array]) -> Any:
        batched = in_dims[1] is not None
        lead = param.movedim(in_dims[1], 0) if batched else param.expand((info.batch_size, *param.shape))
        return draw(lead.contiguous()), 0


class _Any(torch.autograd.Function):
    """Whether a flag is set in any lane: the same answer in all, so Python may read it."""

    @staticmethod
    def forward(flag: Array) -> Array:
        return flag.any()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, flag: Array) -> Any:
        return flag.any(), None


def noise(draw: Callable[[tuple[int, ...]], Array]) -> Array:
    """``draw(lead)``, with `lead` the lanes' dimension where lanes run."""
    held = current()
    return draw(()) if held is None else _Noise.apply(held.index, draw)


def noise_of(draw: Callable[[Array], Array], param: Array) -> Array:
    """``draw(param)``, each lane for itself."""
    held = current()
    return draw(param) if held is None else _NoiseOf.apply(held.index, param, draw)


def any_lane(flag: Any) -> bool:
    """Whether `flag` holds in any lane."""
    if current() is None or not isinstance(flag, torch.Tensor):
        return bool(flag)
    return bool(_Any.apply(flag))
