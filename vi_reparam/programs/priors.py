"""A latent's prior as a normal in its unconstrained coordinates, and its product with a factor."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.gaussians.bases import lift
from vi_reparam.numerics.triangular import cholesky, inverse


class Factor(NamedTuple):
    """What the data say of a site, as a normal density in its unconstrained coordinates.

    Attributes:
        loc: its location; `log_precision`: both of the site's shape there.
        shear: None; or (U, a), strictly upper triangular matrices for the last dimension and a place of the site's
            shape. The factor is then normal in x + U (x - a), so that it knows of all coordinates together.
    """

    loc: Array
    log_precision: Array
    shear: tuple[Array, Array] | None = None


class Normal(abc.ABC):
    """The normal from which a site is drawn, from standard normal noise n of its shape.

    Attributes:
        log_det: of the slope of x in n, a scalar.
    """

    log_det: Array

    @abc.abstractmethod
    def place(self, n: Array) -> Array:
        """x of n."""

    @abc.abstractmethod
    def standardize(self, x: Array) -> Array:
        """n of x."""


class Affine(Normal):
    """x = mean + root n.

    Args:
        mean: of the site's shape.
        root: of its shape, or matrices for the last dimension; `inverse`: of the root.
        log_det: log|det root|.
    """

    def __init__(self, mean: Array, root: Array, inverse: Array, log_det: Array) -> None:
        self.mean, self.root, self.inverse, self.log_det = mean, root, inverse, log_det

    def place(self, n: Array) -> Array:
        return self.mean + _times(self.root, n)

    def standardize(self, x: Array) -> Array:
        return _times(self.inverse, x - self.mean)


class Prior(abc.ABC):
    """A normal prior.

    Attributes:
        mean: of the site's shape.
    """

    mean: Array

    @abc.abstractmethod
    def times(self, ops: Ops, factor: Factor) -> Normal:
        """The normal proportional to the prior times a factor."""

    @abc.abstractmethod
    def precise(self, ops: Ops, v: Array) -> Array:
        """The product of its precision and a vector, of the site's shape."""


class Flat(Prior):
    """No prior: the factor alone.

    Args:
        mean: any array of the site's shape.
    """

    def __init__(self, mean: Array) -> None:
        self.mean = mean

    def times(self, ops: Ops, factor: Factor) -> Normal:
        # a shear is left out: nothing bounds what it would draw
        return _scaled(ops, factor.loc, ops.xp.exp(-0.5 * factor.log_precision))

    def precise(self, ops: Ops, v: Array) -> Array:
        return ops.xp.zeros_like(v)


class Independent(Prior):
    """Independent coordinates.

    Args:
        mean: of the site's shape; `scale`: standard deviations.
    """

    def __init__(self, mean: Array, scale: Array) -> None:
        self.mean, self.scale = mean, scale

    def times(self, ops: Ops, factor: Factor) -> Normal:
        if factor.shear is not None:
            eye = lift(ops, ops.xp.eye(self.mean.shape[-1], dtype=self.mean.dtype), self.mean.ndim + 1)
            return Dense(self.mean, self.scale[..., None] * eye).times(ops, factor)
        ratio = ops.xp.exp(factor.log_precision) * self.scale**2  # of the precisions
        pull = ratio / (1.0 + ratio)
        return _scaled(ops, self.mean + pull * (factor.loc - self.mean), self.scale / ops.xp.sqrt(1.0 + ratio))

    def precise(self, ops: Ops, v: Array) -> Array:
        return v / self.scale**2


class Dense(Prior):
    """Coordinates of the last dimension that depend on each other.

    Args:
        mean: shape ``[..., K]``.
        root: lower triangular, the covariance is root root^T. Shape ``[..., K, K]``.
    """

    def __init__(self, mean: Array, root: Array) -> None:
        self.mean, self.root = mean, root

    def times(self, ops: Ops, factor: Factor) -> Normal:
        # whitened, x = mean + root v: no covariance is inverted
        xp = ops.xp
        half = xp.exp(0.5 * factor.log_precision)[..., None] * self._sheared(factor)
        eye = xp.eye(self.mean.shape[-1], dtype=half.dtype)
        lower = cholesky(xp, lift(ops, eye, half.ndim) + _transposed(xp, half) @ half)
        spread = _transposed(xp, inverse(xp, lower))
        wanted = factor.loc - self.mean
        if factor.shear is not None:
            wanted = wanted + _times(factor.shear[0], factor.shear[1] - self.mean)
        pulled = _times(_transposed(xp, half), xp.exp(0.5 * factor.log_precision) * wanted)
        whitened = _times(spread, _times(_transposed(xp, spread), pulled))
        root, back = self.root @ spread, _transposed(xp, lower) @ inverse(xp, self.root)
        log_det = xp.sum(xp.log(xp.linalg.diagonal(self.root))) - xp.sum(xp.log(xp.linalg.diagonal(lower)))
        return Affine(self.mean + _times(self.root, whitened), root, back, log_det)

    def _sheared(self, factor: Factor) -> Array:
        return self.root if factor.shear is None else self.root + factor.shear[0] @ self.root

    def precise(self, ops: Ops, v: Array) -> Array:
        back = inverse(ops.xp, self.root)
        return _times(_transposed(ops.xp, back), _times(back, v))


class Walk(Prior):
    """A random walk along the last dimension, from zero: each step is drawn given the one before.

    Args:
        scale: of a step, shape ``[..., 1]``.
        mean: zeros of the site's shape.
    """

    def __init__(self, scale: Array, mean: Array) -> None:
        self.scale, self.mean = scale, mean

    def times(self, ops: Ops, factor: Factor) -> Normal:
        # what this step and all later ones say: backward messages of a Kalman filter, by doubling
        xp, weight, variance = ops.xp, ops.xp.exp(factor.log_precision), self.scale**2
        one = xp.ones_like(weight)
        a, b, c, d, far = one + variance * weight, weight, variance * one, one, 1  # precision -> (a p + b) / (c p + d)
        while far < weight.shape[-1]:
            later = [_after(xp, x, far, fill) for x, fill in zip((a, b, c, d), (1.0, 0.0, 0.0, 1.0), strict=True)]
            a, b, c, d = (x * later[j] + y * later[j + 2] for x, y in ((a, b), (c, d)) for j in (0, 1))
            size, far = a + d, 2 * far
            a, b, c, d = a / size, b / size, c / size, d / size
        keep = 1.0 / (1.0 + variance * b / d)
        pull, kept, far = weight * factor.loc, _after(xp, keep, 1), 1
        while far < weight.shape[-1]:
            pull, kept, far = pull + kept * _after(xp, pull, far), kept * _after(xp, kept, far), 2 * far
        return Recurrence(ops, keep, variance * keep * pull, self.scale * xp.sqrt(keep))

    def precise(self, ops: Ops, v: Array) -> Array:
        xp = ops.xp
        steps = (v - _before(xp, v)) / self.scale**2
        return steps - xp.concat([steps[..., 1:], xp.zeros_like(steps[..., :1])], axis=-1)


class Recurrence(Normal):
    """x_t = keep_t x_(t-1) + shift_t + scale_t n_t, from x_0 = 0.

    Args:
        keep: between 0 and 1; `shift`, `scale`: all of the site's shape.
    """

    def __init__(self, ops: Ops, keep: Array, shift: Array, scale: Array) -> None:
        self.xp, self.keep, self.shift, self.scale = ops.xp, keep, shift, scale
        self.log_det = ops.xp.sum(ops.xp.log(scale))

    def place(self, n: Array) -> Array:
        # by doubling: after each turn x holds what came in within twice as many steps, in log2(T) operations
        x, keep, far = self.shift + self.scale * n, self.keep, 1
        while far < x.shape[-1]:
            x, keep, far = x + keep * _before(self.xp, x, far), keep * _before(self.xp, keep, far), 2 * far
        return x

    def standardize(self, x: Array) -> Array:
        return (x - self.keep * _before(self.xp, x) - self.shift) / self.scale


def _before(xp: Any, x: Array, steps: int = 1) -> Array:
    """The entry some steps before each along the last dimension; zero before the first."""
    return xp.concat([xp.zeros_like(x[..., :steps]), x[..., :-steps]], axis=-1)


def _after(xp: Any, x: Array, steps: int, fill: float = 0.0) -> Array:
    """The entry some steps after each; `fill` behind the last."""
    return xp.concat([x[..., steps:], xp.full_like(x[..., :steps], fill)], axis=-1)


def _scaled(ops: Ops, mean: Array, scale: Array) -> Normal:
    return Affine(mean, scale, 1.0 / scale, ops.xp.sum(ops.xp.log(scale)))


def _times(root: Array, x: Array) -> Array:
    return root * x if root.ndim == x.ndim else (root @ x[..., None])[..., 0]


def _transposed(xp: Any, x: Array) -> Array:
    return xp.permute_dims(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))
