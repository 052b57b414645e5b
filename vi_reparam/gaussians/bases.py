"""Gaussians z = loc + S x, and mixtures of them: S diagonal, of low rank, triangular, or triangular in blocks."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.checks import check_integer, is_above
from vi_reparam.errors import ArgumentError
from vi_reparam.numerics.special import LOG_2PI, log_sum_exp

if TYPE_CHECKING:
    from vi_reparam.programs.layout import Layout

Params = dict[str, Array]


class Base(abc.ABC):
    """A Gaussian (or a mixture of them) as a specification; its parameters are arrays by name.

    z = loc + scale * M x, with M the identity unless a subclass gives it by `mix` and `unmix`.
    """

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

    def mix(self, ops: Ops, params: Params, x: Array) -> Array:
        """M x, shape ``[..., D]``."""
        return x

    def unmix(self, ops: Ops, params: Params, y: Array) -> Array:
        """M^-1 y, shape ``[..., D]``."""
        return y

    def to_latent(self, ops: Ops, params: Params, x: Array) -> Array:
        """z = loc + S x, shape ``[..., D]``."""
        mixed = self.mix(ops, params, x)
        return lift(ops, params["loc"], x.ndim) + lift(ops, ops.xp.exp(params["log_scale"]), x.ndim) * mixed

    def standardize(self, ops: Ops, params: Params, z: Array) -> Array:
        """x = S^-1 (z - loc), shape ``[..., D]``."""
        moved = z - lift(ops, params["loc"], z.ndim)
        return self.unmix(ops, params, moved * lift(ops, ops.xp.exp(-params["log_scale"]), z.ndim))

    def log_det(self, ops: Ops, params: Params) -> Array:
        """log|S|, a scalar."""
        return ops.xp.sum(params["log_scale"])

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
        check_integer("rank", self.rank, "LowRank")

    def parameters(self, ops: Ops, key: Any, loc: Array, scale: Array) -> Params:
        # not zero, where the gradient of W W^T is zero too
        factor = 0.1 * ops.normal(key, (loc.shape[0], self.rank), loc.dtype)
        return {"loc": loc, "log_scale": ops.xp.log(scale), "factor": factor}

    def mix(self, ops: Ops, params: Params, x: Array) -> Array:
        w = self._directions(params)
        return x + (x @ w) @ w.T

    def unmix(self, ops: Ops, params: Params, y: Array) -> Array:
        w = self._directions(params)
        # W (I + W^T W)^-1, once for all rows
        return y - (y @ w) @ ops.xp.linalg.solve(self._capacitance(ops, w), w.T)

    def log_det(self, ops: Ops, params: Params) -> Array:
        lower = ops.xp.linalg.cholesky(self._capacitance(ops, self._directions(params)))
        return super().log_det(ops, params) + 2.0 * ops.xp.sum(ops.xp.log(ops.xp.linalg.diagonal(lower)))

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

    @staticmethod
    def matrix(ops: Ops, params: Params) -> Array:
        """I + the strict lower triangle, rows scaled: S = diag(scale) (I + L)."""
        size = params["loc"].shape[0]
        return ops.xp.tril(params["lower"], k=-1) + ops.xp.eye(size, dtype=params["loc"].dtype)

    def mix(self, ops: Ops, params: Params, x: Array) -> Array:
        return x @ self.matrix(ops, params).T

    def unmix(self, ops: Ops, params: Params, y: Array) -> Array:
        return y @ ops.xp.linalg.inv(self.matrix(ops, params)).T


@dataclass(frozen=True)
class Coupled(Full):
    """A full covariance of many coordinates: the triangle is times the root of the dimension, as in `LowRank`."""

    @staticmethod
    def plain(params: Params, num: int) -> Params:
        """The Gaussian of the first coordinates, as parameters of `Full`."""
        lower = params["lower"][:num, :num] * params["loc"].shape[0] ** -0.5
        return {"loc": params["loc"][:num], "log_scale": params["log_scale"][:num], "lower": lower}

    @staticmethod
    def matrix(ops: Ops, params: Params) -> Array:
        return Full.matrix(ops, Coupled.plain(params, params["loc"].shape[0]))


@dataclass(frozen=True)
class Blocks(Base):
    """S lower triangular within each element of a plate: a full covariance there, and elements independent.

    The parameter is the triangles times the root of the dimension, as in `LowRank`.

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

    def mix(self, ops: Ops, params: Params, x: Array) -> Array:
        return self._times(ops, self._matrices(ops, params), x)

    def unmix(self, ops: Ops, params: Params, y: Array) -> Array:
        return self._times(ops, ops.xp.linalg.inv(self._matrices(ops, params)), y)

    def _matrices(self, ops: Ops, params: Params) -> Array:
        """I + the strict lower triangles, shape ``[elements, size, size]``."""
        own = ops.xp.tril(params["blocks"], k=-1) * params["loc"].shape[0] ** -0.5
        return own + lift(ops, ops.xp.eye(own.shape[-1], dtype=own.dtype), own.ndim)

    def _times(self, ops: Ops, matrices: Array, x: Array) -> Array:
        xp, order = ops.xp, list(chain.from_iterable(self.elements))
        back = sorted(range(len(order)), key=order.__getitem__)
        rows = xp.reshape(xp.take(x, xp.asarray(order), axis=-1), (*x.shape[:-1], len(self.elements), 1, -1))
        mixed = xp.reshape(xp.sum(lift(ops, matrices, rows.ndim) * rows, axis=-1), x.shape)
        return xp.take(mixed, xp.asarray(back), axis=-1)


@dataclass(frozen=True, repr=False)
class DiagonalMixture(Base):
    """Equally likely diagonal Gaussians, learned; their locations start apart. Written as ``vr.Mixture(...)``.

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
        check_integer("num_components", self.num_components, "Mixture")
        if not is_above(self.spread, 0.0, or_at=True):
            raise ArgumentError(f"Mixture(spread={self.spread!r}): expected a number of at least 0")

    def __repr__(self) -> str:
        return f"Mixture(num_components={self.num_components}, spread={self.spread})"

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

    def log_prob(self, ops: Ops, params: Params, z: Array) -> Array:
        return log_sum_exp(ops, self.log_joint(ops, params, z), axis=0)

    def log_joint(self, ops: Ops, params: Params, z: Array) -> Array:
        """log(weight times density) of each component at z, shape ``[components, ...]``."""
        own = [{name: value[k] for name, value in params.items()} for k in range(self.num_components)]
        each = [Diagonal().log_prob(ops, part, z) for part in own]
        return ops.xp.stack(each) - math.log(self.num_components)


def lift(ops: Ops, x: Array, ndim: int) -> Array:
    """The array with leading dimensions of 1, so that it has `ndim` in all."""
    return x if x.ndim == ndim else ops.xp.reshape(x, (*(1 for _ in range(ndim - x.ndim)), *x.shape))
