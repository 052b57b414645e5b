"""Coordinates in which a model's latents have about unit scale, so that a step means the same on every model."""

from __future__ import annotations

from dataclasses import dataclass

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.gaussians.bases import Full, Params


@dataclass(frozen=True)
class Preconditioner:
    """z = center + root y; both are constants of the fit.

    Attributes:
        center: shape ``[D]``.
        root: scales, shape ``[D]``, or a lower triangular matrix, shape ``[D, D]``.
    """

    center: Array
    root: Array

    def place(self, y: Array) -> Array:
        """z of y, both of shape ``[D]``."""
        return self.center + (self.root * y if self.root.ndim == 1 else self.root @ y)

    def log_det(self, ops: Ops) -> Array:
        """log|det root|, a scalar."""
        scales = self.root if self.root.ndim == 1 else ops.xp.linalg.diagonal(self.root)
        return ops.xp.sum(ops.xp.log(scales))

    def fold(self, ops: Ops, params: Params) -> Params:
        """A Gaussian's parameters in these coordinates, as parameters in the model's own.

        A matrix folds only into a full covariance.
        """
        center = self.place(params["loc"])
        if self.root.ndim == 1:
            return {**params, "loc": center, "log_scale": params["log_scale"] + ops.xp.log(self.root)}
        whole = self.root @ (ops.xp.exp(params["log_scale"])[:, None] * Full.matrix(ops, params))
        diagonal = ops.xp.linalg.diagonal(whole)
        lower = ops.xp.tril(whole / diagonal[:, None], k=-1)
        return {"loc": center, "log_scale": ops.xp.log(diagonal), "lower": lower}

    @classmethod
    def of(cls, ops: Ops, params: Params) -> Preconditioner:
        """The frame in which this Gaussian is the standard one: its location and its triangular or diagonal scale."""
        scale = ops.xp.exp(params["log_scale"])
        return cls(params["loc"], scale[:, None] * Full.matrix(ops, params) if "lower" in params else scale)
