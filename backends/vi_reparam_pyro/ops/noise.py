"""Noise as torch operators, so that a captured step draws anew at every replay."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from vi_reparam_pyro.lanes.seeding import generator
from vi_reparam_pyro.ops.lane_key import LaneKey

Array = Any
Device = torch.device | None

_LIBRARY = torch.library.Library("vi_reparam", "DEF")
_LIBRARY.define("normal(int key, int[] shape, ScalarType dtype, Device? device=None) -> Tensor")
_LIBRARY.define("uniform(int key, int[] shape, ScalarType dtype, Device? device=None) -> Tensor")
_LIBRARY.define("poisson(int key, Tensor rate) -> Tensor")
_LIBRARY.define("loop(int number, int key, int[] shape, Tensor[] params) -> Tensor")

_OPERATORS: Any = torch.ops.vi_reparam

DRAWS = tuple(getattr(_OPERATORS, name).default for name in ("normal", "uniform", "poisson", "loop"))
"""What draws anew whenever it is called."""

_CAPTURED: list[list[int]] = []
"""For each capture that is running, the numbers of the loops that it met."""

_TAILS: dict[int, tuple[int, ...]] = {}
"""The trailing dimensions of a loop's noise, by its number."""

_LOOPS: dict[int, Callable[..., Array]] = {}
_NUMBERS = itertools.count()  # not ids: a compiled graph is found again by its constants


def _normal(key: int, shape: Any, dtype: Any, device: Device = None) -> Array:
    if device is not None:
        return _words(key, shape, device).normal(_flat(shape), dtype).view(tuple(shape))
    return torch.randn(tuple(shape), dtype=dtype, device="cpu", generator=generator(key))


def _uniform(key: int, shape: Any, dtype: Any, device: Device = None) -> Array:
    if device is not None:
        return _words(key, shape, device).uniform(_flat(shape), dtype).view(tuple(shape))
    return 1.0 - torch.rand(tuple(shape), dtype=dtype, device="cpu", generator=generator(key))


def _words(key: int, shape: Any, device: torch.device) -> LaneKey:
    """Noise by counting, which a CUDA graph can hold: torch's generators start anew with each key."""
    return LaneKey(key, torch.arange(*_flat(shape), device=device))


def _flat(shape: Any) -> tuple[int, ...]:
    return (math.prod(shape),)


def _poisson(key: int, rate: Array) -> Array:
    return torch.poisson(rate, generator=generator(key, rate.device))


def _loop(number: int, key: int, shape: Any, params: list[Array]) -> Array:
    found = _LOOPS[number](key, tuple(shape), *params)
    _TAILS[number] = tuple(found.shape[len(shape) :])
    return found


for _name, _kernel, _where in (
    ("normal", _normal, "BackendSelect"),  # no tensor goes in, so none can say where it runs
    ("uniform", _uniform, "BackendSelect"),
    ("poisson", _poisson, "CompositeExplicitAutograd"),
    ("loop", _loop, "CompositeExplicitAutograd"),
):
    _LIBRARY.impl(_name, _kernel, _where)


def normal(key: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """Standard normal noise."""
    return (_OPERATORS.normal if _CAPTURED else _normal)(key, shape, dtype, *_elsewhere())


def uniform(key: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """Uniform noise on (0, 1]."""
    return (_OPERATORS.uniform if _CAPTURED else _uniform)(key, shape, dtype, *_elsewhere())


def _elsewhere() -> tuple[torch.device, ...]:
    """Torch's default device where that is not memory: an operator may run where it is not set."""
    device = torch.get_default_device()
    return () if device.type == "cpu" else (device,)


def poisson(key: int, rate: Array) -> Array:
    """Poisson draws."""
    return _OPERATORS.poisson(key, rate) if _CAPTURED else _poisson(key, rate)


def loop(run: Callable[..., Array], key: int, shape: tuple[int, ...], params: tuple[Array, ...]) -> Array:
    """``run(key, shape, *params)``, whose number of rounds follows from the noise: one operator in a capture."""
    if not _CAPTURED:
        return run(key, shape, *params)
    number = next(_NUMBERS)
    _LOOPS[number] = run
    _CAPTURED[-1].append(number)
    return _OPERATORS.loop(number, key, shape, params)


class Loops:
    """The loops of one capture, kept as long as it is."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers

    def __del__(self) -> None:
        for number in self._numbers:
            if _LOOPS:  # none is left when Python ends
                _LOOPS.pop(number, None)
                _TAILS.pop(number, None)


def captured() -> bool:
    """Whether a capture is running."""
    return bool(_CAPTURED)


@contextlib.contextmanager
def capturing() -> Iterator[list[int]]:
    """Let noise be drawn by operators; yields the numbers of the loops that are met."""
    numbers: list[int] = []
    _CAPTURED.append(numbers)
    try:
        yield numbers
    finally:
        _CAPTURED.pop()


def _empty(key: int, shape: Any, dtype: Any, device: Device = None) -> Array:
    return torch.empty(shape, dtype=dtype, device=device or "cpu")


def _empty_loop(number: int, key: int, shape: Any, params: list[Array]) -> Array:
    return torch.empty((*shape, *_TAILS.get(number, ())), dtype=params[0].dtype, device=params[0].device)


for _name, _shape in (
    ("normal", _empty),
    ("uniform", _empty),
    ("poisson", lambda key, rate: torch.empty_like(rate)),
    ("loop", _empty_loop),
):
    torch.library.register_fake(f"vi_reparam::{_name}", _shape, lib=_LIBRARY)  # what a compiler must know of them
