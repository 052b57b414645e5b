"""Samplers by themselves, with the implicit gradient attached."""

from __future__ import annotations

import math
from typing import Any

import torch

from vi_reparam.draw import Draw
from vi_reparam.errors import ArgumentError
from vi_reparam.families import FAMILIES
from vi_reparam.samplers.primitive import ImplicitGradient
from vi_reparam_pyro.lanes import vmap as lanes_
from vi_reparam_pyro.ops.home import at_home, device_of
from vi_reparam_pyro.ops.ops import ops, plain
from vi_reparam_pyro.sampling.gammas import Beta, Dirichlet, Gamma, LogGamma_, ratios

Array = Any

_IMPLICIT = ImplicitGradient(density=False)

_AT_ONCE = 262_144
"""Numbers drawn together: their intermediate results stay in the processor's cache."""


def _lanes(name: str, shape: Any, batch: tuple[int, ...]) -> tuple[int, ...]:
    lanes = batch if shape is None else tuple(shape)
    try:
        fits = tuple(torch.broadcast_shapes(lanes, batch)) == lanes
    except RuntimeError:
        fits = False
    if not fits:
        raise ArgumentError(
            f"{name}(shape={lanes}): the parameters have batch shape {batch}, which does not broadcast to it"
        )
    return lanes


def _draw(name: str, key: int, lanes: tuple[int, ...], *params: Array, log: bool = False) -> Array:
    """Draws of a family through the core, which torch's transforms see through."""
    with at_home(*params):
        return _drawn(name, key, lanes, *params, log=log)


def _drawn(name: str, key: int, lanes: tuple[int, ...], *params: Array, log: bool) -> Array:
    family = FAMILIES[name]
    inner = [tuple(p.shape[p.ndim - n :]) for p, n in zip(params, family.parameter_event_dims, strict=True)]
    each = max(1, _AT_ONCE // max(1, *(math.prod(event) for event in inner)))
    num = math.prod(lanes)
    if num <= each:
        return _of(family.build(_IMPLICIT, ops, key, lanes, *params), log)
    flat = [p.expand(*lanes, *event).reshape(num, *event) for p, event in zip(params, inner, strict=True)]
    blocks = zip(ops.split(key, -(-num // each)), *(p.split(each) for p in flat), strict=True)
    drawn = [_of(family.build(_IMPLICIT, ops, k, (b[0].shape[0],), *b), log) for k, *b in blocks]
    whole = torch.cat(drawn)
    return whole.reshape(*lanes, *whole.shape[1:])


def _of(draw: Draw, log: bool) -> Array:
    if not log:
        return draw.value
    assert draw.logs is not None
    return draw.logs[0]


def _key(generator: Any) -> int:
    if generator is None:
        return ops.root_key()
    return int(torch.randint(0, (1 << 63) - 1, (), generator=generator, device=generator.device).item())


def _alone(*tensors: Array) -> bool:
    """Whether the operators of `gammas` serve, which no transform of torch's looks into."""
    return plain(*tensors) and not lanes_.running()


def _floats(*params: Any) -> tuple[Array, ...]:
    """Tensors on one device, of the dtype of the single- and double-precision tensors given, else torch's default.

    Raises:
        ArgumentError: where they are on several.
    """
    device = device_of(params) or next((p.device for p in params if isinstance(p, torch.Tensor)), None)
    given = [p.dtype for p in params if isinstance(p, torch.Tensor) and p.dtype in (torch.float32, torch.float64)]
    dtype = max(given, key=lambda d: d.itemsize, default=torch.get_default_dtype())
    return tuple(torch.as_tensor(p, dtype=dtype, device=device) for p in params)


def gamma(a: Array, shape: Any = None, *, generator: Any = None) -> Array:
    """Gamma(a, 1) draws.

    Args:
        a: concentrations.
        shape: of the result, to which `a` broadcasts; that of `a` unless given.
        generator: a `torch.Generator`; torch's global state unless given.

    Raises:
        ArgumentError: if the shapes do not fit.
    """
    (a,) = _floats(a)
    lanes, key = _lanes("gamma", shape, tuple(a.shape)), _key(generator)
    if not _alone(a):
        return _draw("gamma", key, lanes, a, torch.ones_like(a))
    a = a.expand(lanes)
    return Gamma.apply(ratios(key, a), a)


def log_gamma(a: Array, shape: Any = None, *, generator: Any = None) -> Array:
    """Logarithms of Gamma(a, 1) draws, finite at any concentration.

    Raises:
        ArgumentError: if the shapes do not fit.
    """
    (a,) = _floats(a)
    lanes, key = _lanes("log_gamma", shape, tuple(a.shape)), _key(generator)
    if not _alone(a):
        return _draw("gamma", key, lanes, a, torch.ones_like(a), log=True)
    a = a.expand(lanes)
    return LogGamma_.apply(ratios(key, a), a)


def beta(a: Array, b: Array, shape: Any = None, *, generator: Any = None) -> Array:
    """Beta(a, b) draws.

    Raises:
        ArgumentError: if the shapes do not fit.
    """
    a, b = _floats(a, b)
    lanes, key = _lanes("beta", shape, tuple(torch.broadcast_shapes(a.shape, b.shape))), _key(generator)
    if not _alone(a, b):
        return _draw("beta", key, lanes, a, b)
    a, b = a.expand(lanes), b.expand(lanes)
    first, second = ops.split(key, 2)
    return Beta.apply(ratios(first, a), ratios(second, b), a, b)


def dirichlet(alpha: Array, shape: Any = None, *, generator: Any = None) -> Array:
    """Dirichlet(alpha) draws of shape ``shape + (K,)``.

    Raises:
        ArgumentError: if the shapes do not fit.
    """
    (alpha,) = _floats(alpha)
    lanes, key = _lanes("dirichlet", shape, tuple(alpha.shape[:-1])), _key(generator)
    if not _alone(alpha):
        return _draw("dirichlet", key, lanes, alpha)
    alpha = alpha.expand(*lanes, alpha.shape[-1])
    return Dirichlet.apply(ratios(ops.split(key, 2)[0], alpha), alpha)  # the key that the core draws them by


def von_mises_fisher(direction: Array, concentration: Array, shape: Any = None, *, generator: Any = None) -> Array:
    """Von Mises-Fisher draws of shape ``shape + (p,)``.

    Args:
        direction: unit vectors, shape ``batch + (p,)``.
        concentration: positive, shape ``batch``.
        shape: batch shape of the result.
        generator: a `torch.Generator`; torch's global state unless given.

    Raises:
        ArgumentError: if the shapes do not fit.
    """
    direction, concentration = _floats(direction, concentration)
    batch = tuple(torch.broadcast_shapes(direction.shape[:-1], concentration.shape))
    lanes = _lanes("von_mises_fisher", shape, batch)
    return _draw("von_mises_fisher", _key(generator), lanes, direction, concentration)
