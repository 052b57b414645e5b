"""Many runs of a program at once: one vmap, whose lanes draw their own noise."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.overrides import TorchFunctionMode

from vi_reparam_pyro.lanes import dirichlets
from vi_reparam_pyro.lanes.seeding import seeded

Array = Any


class Keys:
    """Keys for draws inside lanes, where torch's global state cannot be read.

    Args:
        key: from which they follow.
    """

    def __init__(self, key: int) -> None:
        self.key = key
        self.count = 0

    def next(self) -> int:
        """A key that was not given before."""
        self.count += 1
        return (self.key ^ (self.count * 0x9E3779B97F4A7C15)) & ((1 << 63) - 1)


_LEVELS: list[Array] = []
"""For each vmap that is running, outermost first, a tensor that carries its lanes."""

_KEYS: list[Keys] = []


def keys() -> Keys | None:
    """The keys of the run that is on, if one is."""
    return _KEYS[-1] if _KEYS else None


def running() -> bool:
    """Whether lanes are running."""
    return bool(_LEVELS)


def alone() -> bool:
    """Whether no transform of `torch.func` is on but for lanes."""
    return len(retrieve_all_functorch_interpreters()) == len(_LEVELS)


@contextlib.contextmanager
def keyed(key: int) -> Iterator[None]:
    """Let all randomness inside follow from `key`, in lanes or outside them."""
    _KEYS.append(Keys(key))
    try:
        with seeded(key):
            yield
    finally:
        _KEYS.pop()


def vectorized(fn: Callable[..., Any], num: int, key: int, *batched: Array) -> Any:
    """`num` runs of `fn` at once, each with its own noise; results with a leading dimension.

    Args:
        fn: a program; it may close over anything, also what is differentiated, and run lanes of
            its own.
        num: how many.
        key: from which all noise follows.
        batched: arguments of `fn`, each with a leading dimension of `num`.

    Raises:
        RuntimeError: as `torch.func.vmap`, if the program reads a value in Python.
    """
    with keyed(key), without_validation(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return mapped(fn, torch.arange(num), *batched)


def mapped(fn: Callable[..., Any], index: Array, *batched: Array, in_dims: tuple[Any, ...] | None = None) -> Any:
    """A level of lanes, and nothing else: `fn` of each row of the arguments.

    Args:
        fn: from arguments of one lane to trees of tensors.
        index: the lanes' numbers.
        batched: trees of tensors; `in_dims`: which dimension of each is the lanes', None for none; 0 for all.
    """

    def lane(index: Array, *arguments: Any) -> Any:
        _LEVELS.append(index)
        try:
            return fn(*arguments)
        finally:
            _LEVELS.pop()

    dims = (0,) * len(batched) if in_dims is None else in_dims
    return torch.func.vmap(lane, (0, *dims), randomness="different")(index, *batched)


@contextlib.contextmanager
def without_validation() -> Iterator[None]:
    """Distributions validate by reading values, which lanes cannot; the check before a fit did it."""
    held = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(held)


_IN_PLACE = {
    getattr(torch.Tensor, name): name
    for name in ("normal_", "uniform_", "exponential_", "cauchy_", "geometric_", "log_normal_", "bernoulli_", "random_")
}


class host_noise(TorchFunctionMode):  # noqa: N801
    """Let the samplers of torch's own distributions run in lanes.

    Many fill an empty tensor in place, which has no lane dimension to take different noise.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _IN_PLACE.get(func)
        if name is None or not _LEVELS:
            return func(*args, **(kwargs or {}))
        like, rest = args[0], args[1:]

        def fill(lead: tuple[int, ...]) -> Array:
            empty = torch.empty((*lead, *like.shape), dtype=like.dtype, device=like.device)
            return getattr(empty, name)(*rest, **(kwargs or {}))

        return noise(fill)


class _Noise(torch.autograd.Function):
    """Noise with a lane dimension of its own, level by level."""

    @staticmethod
    def forward(index: Array, draw: Callable[[tuple[int, ...]], Array], outer: list[Array]) -> Array:
        return draw(())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, index: Array, draw: Callable[[tuple[int, ...]], Array], outer: list[Array]
    ) -> Any:
        return _noise(lambda lead: draw((*lead, info.batch_size)), outer), 0


class _NoiseOf(torch.autograd.Function):
    """As `_Noise`, for noise that has a parameter."""

    @staticmethod
    def forward(index: Array, param: Array, draw: Callable[[Array], Array], outer: list[Array]) -> Array:
        return draw(param)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, index: Array, param: Array, draw: Callable[[Array], Array], outer: list[Array]
    ) -> Any:
        where = in_dims[1]
        lead = param.expand((info.batch_size, *param.shape)) if where is None else param.movedim(where, 0)
        return _noise_of(draw, lead.contiguous(), outer), 0


class _Loop(torch.autograd.Function):
    """As `_Noise`, for a loop over parameters: it runs once for all lanes."""

    @staticmethod
    def forward(index: Array, draw: Callable[..., Array], outer: list[Array], *params: Array) -> Array:
        return draw((), *params)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)
        ctx.count = len(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (None,) * ctx.count

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, index: Array, draw: Callable[..., Array], outer: list[Array], *params: Array
    ) -> Any:
        size = info.batch_size
        lead = [
            p.expand((size, *p.shape)) if where is None else p.movedim(where, 0)
            for p, where in zip(params, in_dims[3:], strict=True)
        ]
        return _loop(lambda outside, *ps: draw((*outside, size), *ps), outer, *lead), 0


def _loop(draw: Callable[..., Array], levels: list[Array], *params: Array) -> Array:
    if levels:
        return _Loop.apply(levels[-1], draw, levels[:-1], *params)
    held, _LEVELS[:] = list(_LEVELS), []  # what runs now runs for all lanes at once
    try:
        return draw((), *params)
    finally:
        _LEVELS[:] = held


def loop(draw: Callable[..., Array], params: tuple[Array, ...]) -> Array:
    """``draw(lead, *params)``, with `lead` the lanes' dimensions, which the parameters then have too."""
    return _loop(at_home(draw), list(_LEVELS), *params)


class _Beneath(torch.autograd.Function):
    """Leaves one level of lanes, with a function that enters it again."""

    @staticmethod
    def forward(index: Array, fn: Any, run: Any, outer: list[Array], *tensors: Array) -> Any:
        raise RuntimeError("a level that does not run has no lanes to leave")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing: it is no function of its own."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, index: Array, fn: Any, run: Any, outer: list[Array], *tensors: Array) -> Any:
        def lanes(*held: Array) -> Any:
            with without_validation():
                return mapped(fn, index, *held, in_dims=in_dims[4:])

        return _beneath(lanes, run, outer, *tensors), 0


def _beneath(fn: Callable[..., Any], run: Callable[..., Any], levels: list[Array], *tensors: Array) -> Any:
    if levels:
        return _Beneath.apply(levels[-1], fn, run, levels[:-1], *tensors)
    held, _LEVELS[:] = list(_LEVELS), []
    try:
        return run(fn, *tensors)
    finally:
        _LEVELS[:] = held


def beneath(fn: Callable[..., Any], run: Callable[..., Any], *tensors: Array) -> Any:
    """``run(fn, *tensors)`` outside of all lanes: there `fn` is for all lanes at once, and can be called later.

    Args:
        fn: from tensors to a tuple of tensors. It may close over values of the lanes: lanes that are entered
            again have the number that they had.
    """
    return _beneath(at_home(fn), at_home(run), list(_LEVELS), *tensors)


def at_home(call: Callable[..., Any]) -> Callable[..., Any]:
    """A function that runs on what is torch's default device now: functions of autograd's switch that off inside."""
    device = torch.get_default_device()
    if device.type == "cpu":
        return call

    def run(*args: Any, **kwargs: Any) -> Any:
        with device:
            return call(*args, **kwargs)

    return run


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


def _noise(draw: Callable[[tuple[int, ...]], Array], levels: list[Array]) -> Array:
    return _Noise.apply(levels[-1], draw, levels[:-1]) if levels else draw(())


def _noise_of(draw: Callable[[Array], Array], param: Array, levels: list[Array]) -> Array:
    return _NoiseOf.apply(levels[-1], param, draw, levels[:-1]) if levels else draw(param)


def noise(draw: Callable[[tuple[int, ...]], Array]) -> Array:
    """``draw(lead)``, with `lead` the lanes' dimensions where lanes run."""
    return _noise(at_home(draw), list(_LEVELS))


def noise_of(draw: Callable[[Array], Array], param: Array) -> Array:
    """``draw(param)``, each lane for itself."""
    return _noise_of(at_home(draw), param, list(_LEVELS))


def any_lane(flag: Any) -> bool:
    """Whether `flag` holds in any lane."""
    if isinstance(flag, torch.Tensor):
        for _ in _LEVELS:
            flag = _Any.apply(flag)
    return bool(flag)


class drawing(Messenger):  # noqa: N801  (handlers are lower case in Pyro)
    """Outermost: draws what nobody else gave a value, each lane for itself."""

    def _pyro_sample(self, msg: Any) -> None:
        # distributions of ours draw by keys
        ours = hasattr(msg["fn"], "estimator")
        if _LEVELS and msg["value"] is None and not msg["is_observed"] and not msg["done"] and not ours:
            with host_noise(), dirichlets.in_lanes(noise_of):
                msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
