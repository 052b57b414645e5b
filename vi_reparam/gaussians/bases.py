"""Bases: the Gaussians in whose standardized coordinates the process runs.

z = loc + S x and log|S|, for a diagonal S, a diagonal plus low rank, a triangular one, and one that is triangular
within each element of a plate. A mixture draws one of its components, standardizes by it, and keeps it in the
path's weight.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar, Protocol

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.errors import ArgumentError
from vi_reparam.numerics.special import LOG_2PI

Params = dict[str, Array]


class Layout(Protocol):
    """Where the latents lie in a vector, as a backend has it."""

    @property
    def size(self) -> int:
        """Coordinates in all."""

    def elements(self, plate: str) -> tuple[tuple[int, ...], ...]:
        """The coordinates of each element of a plate."""


class Base(abc.ABC):
    """A Gaussian (or a mixture of them) as a specification; its parameters are arrays by name."""

    names: ClassVar[tuple[str, ...]] = ("loc", "log_scale")
    """Of its parameters."""

    num_components: int = 1

    diagonal_first: ClassVar[bool] = False
    """Whether a Gaussian alone is fitted from a diagonal one, which is quick and gives the units."""

    def resolve(self, layout: Layout) -> Base:
        """The same, for the vector that is laid out so."""
        return self

    @abc.abstractmethod
    def parameters(self, ops: Ops, key: Any, loc: Array, scale: Array) -> Params:
        """The start: a Gaussian with about this location and these scales, each of shape ``[D]``."""

    @abc.abstractmethod
    def to_latent(self, ops: Ops, params: Params, x: Array) -> Array:
        """z = loc + S x, shape ``[..., D]``."""

    @abc.abstractmethod
    def standardize(self, ops: Ops, params: Params, z: Array) -> Array:
        """x = S^-1 (z - loc), shape ``[..., D]``."""

    @abc.abstractmethod
    def log_det(self, ops: Ops, params: Params) -> Array:
        """log|S|, a scalar."""

    def component(self, ops: Ops, params: Params, chosen: Array) -> Params:
        """The parameters of one component, by a one-hot vector."""
        return params

    def log_prob(self, ops: Ops, params: Params, z: Array) -> Array:
        """The base's own log density, shape ``[...]``."""
        x = self.standardize(ops, params, z)
        return -0.5 * ops.xp.sum(x * x, axis=-1) - 0.5 * x.shape[-1] * LOG_2PI - self.log_det(ops, params)


@dataclass(frozen=True)
class Diagonal(Base):
    """Independent normals."""

    def parameters(self, ops: Ops, key: Any, loc: Array, scale: Array) -> Params:
        return {"loc": loc, "log_scale": ops.xp.log(scale)}

    def to_latent(self, ops: Ops, params: Params, x: Array) -> Array:
        return _lift(ops, params["loc"], x) + _lift(ops, ops.xp.exp(params["log_scale"]), x) * x

    def standardize(self, ops: Ops, params: Params, z: Array) -> Array:
        return (z - _lift(ops, params["loc"], z)) * _lift(ops, ops.xp.exp(-params["log_scale"]), z)

    def log_det(self, ops: Ops, params: Params) -> Array:
        return ops.xp.sum(params["log_scale"])


@dataclass(frozen=True)
class LowRank(Base):
    """S = D (I + W W^T) with W of `rank` columns, whitened whole; its inverse is Woodbury's.

    The parameter is W times the root of the dimension, so that a step of the optimizer turns a direction by as much in
    many dimensions as in few.

    Raises:
        ArgumentError: if `rank` is not an integer of at least 1.
    """

    rank: int = 2
    names = ("loc", "log_scale", "factor")
    diagonal_first = True

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ArgumentError(f"LowRank(rank={self.rank!r}): expected an integer of at least 1")

    def parameters(self, ops: Ops, key: Any, loc: Array, scale: Array) -> Params:
        # not zero, where the gradient of W W^T is zero too
        factor = 0.1 * ops.normal(key, (loc.shape[0], self.rank), loc.dtype)
        return {"loc": loc, "log_scale": ops.xp.log(scale), "factor": factor}

    def to_latent(self, ops: Ops, params: Params, x: Array) -> Array:
        w = self._directions(params)
        mixed = x + (x @ w) @ w.T
        return _lift(ops, params["loc"], x) + _lift(ops, ops.xp.exp(params["log_scale"]), x) * mixed

    def standardize(self, ops: Ops, params: Params, z: Array) -> Array:
        w = self._directions(params)
        y = (z - _lift(ops, params["loc"], z)) * _lift(ops, ops.xp.exp(-params["log_scale"]), z)
        # W (I + W^T W)^-1, once for all rows
        return y - (y @ w) @ ops.xp.linalg.solve(self._capacitance(ops, w), w.T)

    def log_det(self, ops: Ops, params: Params) -> Array:
        lower = ops.xp.linalg.cholesky(self._capacitance(ops, self._directions(params)))
        return ops.xp.sum(params["log_scale"]) + 2.0 * ops.xp.sum(ops.xp.log(ops.xp.linalg.diagonal(lower)))

    @staticmethod
    def _directions(params: Params) -> Array:
        return params["factor"] * params["factor"].shape[0] ** -0.5

    def _capacitance(self, ops: Ops, w: Array) -> Array:
        return ops.xp.eye(w.shape[1], dtype=w.dtype) + w.T @ w


@dataclass(frozen=True)
class Full(Base):
    """S lower triangular: a full covariance."""

    names = ("loc", "log_scale", "lower")

    def parameters(self, ops: Ops, key: Any, loc: Array, scale: Array) -> Params:
        size = loc.shape[0]
        return {"loc": loc, "log_scale": ops.xp.log(scale), "lower": ops.xp.zeros((size, size), dtype=loc.dtype)}

    def _matrix(self, ops: Ops, params: Params) -> Array:
        """I + the strict lower triangle, rows scaled: S = diag(scale) (I + L)."""
        size = params["loc"].shape[0]
        return ops.xp.tril(params["lower"], k=-1) + ops.xp.eye(size, dtype=params["loc"].dtype)

    def to_latent(self, ops: Ops, params: Params, x: Array) -> Array:
        mixed = x @ self._matrix(ops, params).T
        return _lift(ops, params["loc"], x) + _lift(ops, ops.xp.exp(params["log_scale"]), x) * mixed

    def standardize(self, ops: Ops, params: Params, z: Array) -> Array:
        y = (z - _lift(ops, params["loc"], z)) * _lift(ops, ops.xp.exp(-params["log_scale"]), z)
        return y @ ops.xp.linalg.inv(self._matrix(ops, params)).T

    def log_det(self, ops: Ops, params: Params) -> Array:
        return ops.xp.sum(params["log_scale"])


@dataclass(frozen=True)
class Blocks(Base):
    """S lower triangular within each element of a plate: a full covariance there, and elements independent.

    What is independent given all else in the posterior is often just that: the loadings of each pixel in a
    factorization, say, given the scores. The parameter is the triangles times the root of the dimension, as in
    `LowRank`.

    Args:
        plate: that is around all latents of the guide.

    Attributes:
        elements: the coordinates of each; of the vector that it was `resolve` for.

    Raises:
        ArgumentError: if `plate` is not a name.
    """

    plate: str
    elements: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    names = ("loc", "log_scale", "blocks")
    diagonal_first = True

    def __post_init__(self) -> None:
        if not isinstance(self.plate, str) or not self.plate:
            raise ArgumentError(f"Blocks(plate={self.plate!r}): expected the name of a plate")

    def resolve(self, layout: Layout) -> Base:
        return replace(self, elements=layout.elements(self.plate))

    def parameters(self, ops: Ops, key: Any, loc: Array, scale: Array) -> Params:
        num, size = len(self.elements), len(self.elements[0])
        zeros = ops.xp.zeros((num, size, size), dtype=loc.dtype)
        return {"loc": loc, "log_scale": ops.xp.log(scale), "blocks": zeros}

    def to_latent(self, ops: Ops, params: Params, x: Array) -> Array:
        mixed = self._times(ops, self._matrices(ops, params), x)
        return _lift(ops, params["loc"], x) + _lift(ops, ops.xp.exp(params["log_scale"]), x) * mixed

    def standardize(self, ops: Ops, params: Params, z: Array) -> Array:
        y = (z - _lift(ops, params["loc"], z)) * _lift(ops, ops.xp.exp(-params["log_scale"]), z)
        return self._times(ops, ops.xp.linalg.inv(self._matrices(ops, params)), y)

    def log_det(self, ops: Ops, params: Params) -> Array:
        return ops.xp.sum(params["log_scale"])

    def _matrices(self, ops: Ops, params: Params) -> Array:
        """I + the strict lower triangles, shape ``[elements, size, size]``."""
        own = ops.xp.tril(params["blocks"], k=-1) * params["loc"].shape[0] ** -0.5
        return own + _lift(ops, ops.xp.eye(own.shape[-1], dtype=own.dtype), own)

    def _times(self, ops: Ops, matrices: Array, x: Array) -> Array:
        xp, order = ops.xp, list(chain.from_iterable(self.elements))
        back = sorted(range(len(order)), key=order.__getitem__)
        rows = xp.reshape(xp.take(x, xp.asarray(order), axis=-1), (*x.shape[:-1], len(self.elements), 1, -1))
        mixed = xp.reshape(xp.sum(_lift(ops, matrices, rows) * rows, axis=-1), x.shape)
        return xp.take(mixed, xp.asarray(back), axis=-1)


@dataclass(frozen=True)
class Mixture(Base):
    """Equally likely diagonal Gaussians, learned; their locations start apart.

    The weights stay equal, so the draw of a component needs no score term.

    Args:
        num_components: how many.
        spread: how far apart the locations start, in scales.

    Raises:
        ArgumentError: for fewer than 1 component or a spread below 0.
    """

    num_components: int = 4
    spread: float = 0.5

    def __post_init__(self) -> None:
        value = self.num_components
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"Mixture(num_components={value!r}): expected an integer of at least 1")
        if not self.spread >= 0.0:
            raise ArgumentError(f"Mixture(spread={self.spread!r}): expected a number of at least 0")

    def parameters(self, ops: Ops, key: Any, loc: Array, scale: Array) -> Params:
        shape = (self.num_components, loc.shape[0])
        move = self.spread * ops.normal(key, shape, loc.dtype)
        wide = ops.xp.reshape(scale, (1, -1))
        return {
            "loc": ops.xp.reshape(loc, (1, -1)) + wide * move,
            "log_scale": ops.xp.log(wide) + ops.xp.zeros(shape, dtype=loc.dtype),
        }

    def component(self, ops: Ops, params: Params, chosen: Array) -> Params:
        # a product, since an index may be a lane's own
        row = ops.xp.reshape(chosen, (1, -1))
        return {name: ops.xp.reshape(row @ value, (-1,)) for name, value in params.items()}

    def to_latent(self, ops: Ops, params: Params, x: Array) -> Array:
        return Diagonal().to_latent(ops, params, x)

    def standardize(self, ops: Ops, params: Params, z: Array) -> Array:
        return Diagonal().standardize(ops, params, z)

    def log_det(self, ops: Ops, params: Params) -> Array:
        return ops.xp.sum(params["log_scale"])

    def log_prob(self, ops: Ops, params: Params, z: Array) -> Array:
        logs = self.log_joint(ops, params, z)
        top = ops.stop_gradient(ops.xp.max(logs, axis=0))
        return top + ops.xp.log(ops.xp.sum(ops.xp.exp(logs - _lift(ops, top, logs)), axis=0))

    def log_joint(self, ops: Ops, params: Params, z: Array) -> Array:
        """log(weight times density) of each component at z, shape ``[components, ...]``."""
        each = [
            Diagonal().log_prob(ops, {name: value[k] for name, value in params.items()}, z)
            for k in range(self.num_components)
        ]
        return ops.xp.stack(each) - math.log(self.num_components)


def _lift(ops: Ops, x: Array, like: Array) -> Array:
    return x if x.ndim == like.ndim else ops.xp.reshape(x, (*(1 for _ in range(like.ndim - x.ndim)), *x.shape))
