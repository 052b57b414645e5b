"""Draws whose log q has a path gradient: it moves with the draw, its parameters are constants.

The gradient's variance then vanishes where q is the posterior (sticking the landing; Roeder, Wu and Duvenaud 2017).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.gaussians.bases import Base, Params
from vi_reparam.gaussians.preconditioner import Preconditioner
from vi_reparam.gaussians.skew import skew
from vi_reparam.gaussians.tails import widen

if TYPE_CHECKING:
    from vi_reparam.programs.network import Bijection


def moving(ops: Ops, log_q: Array, value: Array, slope: Array) -> Array:
    """A constant log q, with the gradient ``slope`` in the value alone.

    Args:
        log_q: a scalar; `value`, `slope`: shape ``[D]``.
    """
    stop = ops.stop_gradient
    return stop(log_q) + ops.xp.sum(stop(slope) * (value - stop(value)))


Standard = tuple[Array, Array, Array]
"""A draw, its own log density, and the slope of that in the draw, as `tails.widen` has them."""


def bent(ops: Ops, drawn: Standard, bend: Array | None) -> Standard:
    """A standard draw with one-sided tails, as `skew.skew` bends it; itself where `bend` is None."""
    if bend is None:
        return drawn
    x, log_rise, more = skew(ops, drawn[0], bend)
    return x, drawn[1] - ops.xp.sum(log_rise), (drawn[2] - more) * ops.xp.exp(-log_rise)


def gaussian(
    ops: Ops, base: Base, params: Params, frame: Preconditioner, tail: Array, noise: Array, *, gradient: str = "path"
) -> tuple[Array, Array]:
    """A draw of a Gaussian in a frame, and its log q, of shapes ``[D]`` and ``[]``.

    Args:
        base: which Gaussian, not a mixture; `params`: its parameters.
        tail: h of `tails.widen`.
        noise: standard normal, shape ``[D]``.
        gradient: ``"path"`` or ``"reparameterization"``.
    """
    return affine(ops, base, params, frame, widen(ops, noise, tail), gradient=gradient)


def affine(
    ops: Ops, base: Base, params: Params, frame: Preconditioner, drawn: Standard, *, gradient: str
) -> tuple[Array, Array]:
    """A draw moved and stretched by a base and a frame, and its log q, of shapes ``[D]`` and ``[]``.

    Args:
        drawn: the standard draw.
        gradient: ``"path"`` or ``"reparameterization"``.
    """
    x, log_density, slope = drawn
    y = base.to_latent(ops, params, x)
    if gradient == "reparameterization":
        return frame.place(y), log_density - base.log_det(ops, params) - frame.log_det(ops)
    held = {name: ops.stop_gradient(p) for name, p in params.items()}
    again = base.standardize(ops, held, y)  # x, as it moves with y
    log_q = moving(ops, log_density, again, slope) - base.log_det(ops, held) - frame.log_det(ops)
    return frame.place(y), log_q


def flow(
    ops: Ops,
    live: Bijection,
    held: Bijection,
    frame: Preconditioner,
    tail: Array,
    noise: Array,
    *,
    row: Array | None = None,
    bend: Array | None = None,
    gradient: str,
    cheap_inverse: bool,
) -> tuple[Array, Array]:
    """A draw of a flow in a frame, and its log q, of shapes ``[D]`` and ``[]``.

    The slope of log q at y = T(x) solves J^T v = grad_x [log r(x) - log|J(x)|] with J the Jacobian
    of T at x, or comes through the inverse, where that is as cheap.

    Args:
        live: T; `held`: the same with constant parameters.
        row: of features that T is conditioned on; None for none.
        bend: of each coordinate of what T is applied to, as in `skew.skew`; None for none.
        gradient: ``"path"`` or ``"reparameterization"``.
        cheap_inverse: whether T has an inverse that costs no more than T.
    """
    xp = ops.xp
    x, log_density, slope = bent(ops, widen(ops, noise, tail), bend)
    y, log_det = live.at(x, row)
    z = frame.place(y)
    if gradient == "reparameterization":
        return z, log_density - log_det - frame.log_det(ops)
    x = ops.stop_gradient(x)
    if cheap_inverse:
        growth = ops.grad(lambda v: held.at(v, row)[1])(x)
        log_q = moving(ops, log_density - log_det, held.inverse(y, row), slope - growth)
        return z, log_q - frame.log_det(ops)

    def both(v: Array) -> Array:
        y, log_det = held.at(v, row)
        return xp.concat([y, log_det.reshape(1)])

    rows = ops.jacobian(both)(x)  # of the Jacobian, and the slope of its log-determinant: one pass for both
    upward = xp.linalg.solve(rows[:-1].T, (slope - rows[-1])[:, None])[:, 0]
    return z, moving(ops, log_density - log_det, y, upward) - frame.log_det(ops)
