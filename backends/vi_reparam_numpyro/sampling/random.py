"""Jitted samplers with the implicit gradient attached, under the signatures of `jax.random`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vi_reparam.errors import ArgumentError
from vi_reparam.families import FAMILIES
from vi_reparam.samplers import LogGamma
from vi_reparam.samplers.primitive import ImplicitGradient
from vi_reparam_numpyro.ops.ops import ops

Array = Any

_IMPLICIT = ImplicitGradient(density=False)


@functools.partial(jax.jit, static_argnames=("name", "lanes", "log"))
def _draw(name: str, key: Any, lanes: tuple[int, ...], params: tuple[Array, ...], *, log: bool = False) -> Array:
    """Draws of a family."""
    if name == "gamma" and len(params) == 1:
        return _gamma(key, lanes, params[0], log=log)
    if name == "beta":
        return _beta(key, lanes, *params)
    return FAMILIES[name].build(_IMPLICIT, ops, key, lanes, *params).value


def _gamma(key: Any, lanes: tuple[int, ...], a: Array, *, log: bool) -> Array:
    """Of rate one, and without the density that the family has at hand."""
    a = jnp.broadcast_to(a, lanes)
    w = _IMPLICIT(ops, key, LogGamma(_IMPLICIT.boost), lanes, a)[0]
    if log:
        return w + jnp.log(a)
    ratio, held = ops.stop_gradient(w), ops.stop_gradient(a)
    z = jnp.maximum(held * jnp.exp(ratio), float(jnp.finfo(a.dtype).smallest_normal))
    return z + z * ((w - ratio) + (a - held) / held)


def _beta(key: Any, lanes: tuple[int, ...], a: Array, b: Array) -> Array:
    """From the log ratio of two gammas: XLA is slow along an axis of two, as which the family has them."""
    sampler = LogGamma(_IMPLICIT.boost)
    a, b = jnp.broadcast_to(a, lanes), jnp.broadcast_to(b, lanes)
    first, second = ops.split(key, 2)
    logit = _IMPLICIT(ops, first, sampler, lanes, a)[0] - _IMPLICIT(ops, second, sampler, lanes, b)[0] + jnp.log(a / b)
    held = ops.stop_gradient(logit)
    info = jnp.finfo(a.dtype)
    x = jnp.clip(jax.nn.sigmoid(held), float(info.smallest_normal), 1.0 - 0.5 * float(info.eps))
    return x + x * jax.nn.sigmoid(-held) * (logit - held)


def draw(name: str, key: Any, lanes: tuple[int, ...], *params: Any) -> Array:
    """Draws of a family in JAX's default float dtype, with the implicit gradient; no shape is checked."""
    return _draw(name, key, lanes, _floats(None, *params))


def _lanes(function: str, shape: Any, batch: Any) -> tuple[int, ...]:
    if shape is None:
        return batch
    lanes = tuple(shape)
    try:
        fits = jnp.broadcast_shapes(lanes, batch) == lanes
    except ValueError:
        fits = False
    if not fits:
        raise ArgumentError(
            f"{function}(shape={lanes}): the parameters have batch shape {batch}, which does not broadcast to it"
        )
    return lanes


def _floats(dtype: Any, *params: Any) -> tuple[Array, ...]:
    dtype = jnp.result_type(float if dtype is None else dtype)
    return tuple(jnp.asarray(p, dtype) for p in params)


def gamma(key: Any, a: Array, shape: Any = None, dtype: Any = None) -> Array:
    """Gamma(a, 1) draws; as `jax.random.gamma`.

    Args:
        key: a `jax.random` key.
        a: concentrations.
        shape: of the result, to which `a` broadcasts; that of `a` unless given.
        dtype: a float dtype.

    Raises:
        ArgumentError: if the shapes do not fit.
    """
    (a,) = _floats(dtype, a)
    return _draw("gamma", key, _lanes("gamma", shape, a.shape), (a,))


def log_gamma(key: Any, a: Array, shape: Any = None, dtype: Any = None) -> Array:
    """Logarithms of Gamma(a, 1) draws, finite at any concentration; as `jax.random.loggamma`.

    Raises:
        ArgumentError: if the shapes do not fit.
    """
    (a,) = _floats(dtype, a)
    return _draw("gamma", key, _lanes("log_gamma", shape, a.shape), (a,), log=True)


def beta(key: Any, a: Array, b: Array, shape: Any = None, dtype: Any = None) -> Array:
    """Beta(a, b) draws; as `jax.random.beta`.

    Raises:
        ArgumentError: if the shapes do not fit.
    """
    a, b = _floats(dtype, a, b)
    return _draw("beta", key, _lanes("beta", shape, jnp.broadcast_shapes(a.shape, b.shape)), (a, b))


def dirichlet(key: Any, alpha: Array, shape: Any = None, dtype: Any = None) -> Array:
    """Dirichlet(alpha) draws of shape ``shape + (K,)``; as `jax.random.dirichlet`.

    Raises:
        ArgumentError: if the shapes do not fit.
    """
    (alpha,) = _floats(dtype, alpha)
    return _draw("dirichlet", key, _lanes("dirichlet", shape, alpha.shape[:-1]), (alpha,))


def von_mises_fisher(key: Any, direction: Array, concentration: Array, shape: Any = None, dtype: Any = None) -> Array:
    """Von Mises-Fisher draws of shape ``shape + (p,)``.

    Args:
        key: a `jax.random` key.
        direction: unit vectors, shape ``batch + (p,)``.
        concentration: positive, shape ``batch``.
        shape: batch shape of the result.
        dtype: a float dtype.

    Raises:
        ArgumentError: if the shapes do not fit.
    """
    direction, concentration = _floats(dtype, direction, concentration)
    batch = jnp.broadcast_shapes(direction.shape[:-1], concentration.shape)
    return _draw("von_mises_fisher", key, _lanes("von_mises_fisher", shape, batch), (direction, concentration))
