"""The implicit derivative of a gamma draw where torch runs operator by operator, in float32.

XLA fuses `vi_reparam.numerics.gamma_slope.log_slope` into one loop, in which a branch that is not taken
costs little. Torch pays for each operator: here each lane goes through the one branch that serves
it, in place and in blocks that stay in the processor's cache. A third branch, in float64, is for
lanes in which float32 would need a polynomial.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from vi_reparam.numerics import gamma_slope
from vi_reparam_pyro.ops import kernels

Array = Any
Slope = Callable[[Array, Array], Array]

_BLOCK = 65_536
"""Lanes at once on a CPU."""

_FEW = 64
"""Lanes for which the core's form, which has fewer operations there, is as fast."""

_DIRECT_BELOW = 30.0
"""Up to this z, float32's exp(u) - 1 - u loses nothing that shows in z (exp(u) - 1 - u)."""


def in_blocks(slope: Slope, value: Array, parameter: Array) -> Array:
    """``slope(value, parameter)``, by blocks on a CPU; `slope` is elementwise, its arguments of one shape."""
    slope = _OWN.get(slope, slope)
    if value.device.type != "cpu" or value.numel() <= _BLOCK:
        return slope(value, parameter)
    blocks = zip(value.reshape(-1).split(_BLOCK), parameter.reshape(-1).split(_BLOCK), strict=True)
    return torch.cat([slope(*block) for block in blocks]).reshape(value.shape)


def has_own(slope: Slope, value: Array) -> bool:
    """Whether `slope` has a form for torch alone that is the faster one at `value`."""
    if slope not in _OWN or value.dtype != torch.float32:
        return False
    return value.numel() > _FEW if value.device.type == "cpu" else kernels.fastest(value)


def log_slope(w: Array, a: Array) -> Array:
    """`vi_reparam.numerics.gamma_slope.log_slope`, to the same error, of plain tensors of one shape."""
    if kernels.fastest(w):
        return kernels.slope(w, a)
    if w.dtype != torch.float32 or w.device.type != "cpu":
        return gamma_slope.log_slope(w, a)
    with torch.no_grad():
        return _log_slope(w.reshape(-1), a.reshape(-1)).reshape(w.shape)


def _log_slope(w: Array, a: Array) -> Array:
    z = torch.exp(w).mul_(a)
    psi = _next_digamma_minus_log(a).sub_(w)
    near, far, below = z < gamma_slope.SERIES_BELOW, z > _DIRECT_BELOW, w < 0.0
    between = ~(near | far)
    out = torch.empty_like(w)
    for part, way in (
        (near, _series),
        (between & below, _lower),
        (between & ~below, _upper),
        (far & below, _far_lower),
        (far & ~below, _far_upper),
    ):
        at = torch.from_numpy(np.flatnonzero(part.numpy()))  # at a tenth of the cost of torch's nonzero
        if at.numel():
            out.scatter_(0, at, way(*(x.index_select(0, at) for x in (w, z, a, psi))))
    return out


def _next_digamma_minus_log(a: Array) -> Array:
    """psi(a + 1) - log a: the asymptotic series at a + 4, four steps down."""
    y = torch.add(a, 4.0).reciprocal_()
    square = y * y
    far = torch.mul(square, 1.0 / 252.0).sub_(1.0 / 120.0).mul_(square).add_(1.0 / 12.0).mul_(square)
    far.add_(y, alpha=0.5).neg_().add_(torch.div(4.0, a).log1p_())
    for n in (1.0, 2.0, 3.0):
        far.sub_(torch.add(a, n).reciprocal_())
    return far


def _series(w: Array, z: Array, a: Array, psi: Array) -> Array:
    step = a.reciprocal()
    term = step.clone()
    total = term * psi
    for n in torch.arange(1, gamma_slope.SINGLE_TERMS, dtype=a.dtype, device=a.device).unbind():
        torch.add(a, n, out=step).reciprocal_()
        psi.add_(step)
        total.addcmul_(term.mul_(z).mul_(step), psi)
    return total


def _integral(z: Array, c: Array, centre: Array, sign: float) -> Array:
    """Unit SUM weight exp(-c u - z e(sign u)) (u - centre) with u = unit node and e(x) = exp(x) - 1 - x."""
    rule = torch.tensor(gamma_slope.RULE, dtype=z.dtype, device=z.device)
    node, weight = (rule[:, :2] if sign < 0.0 else rule[:, 2:]).unbind(1)
    unit = torch.addcmul(2.0 * z, c, c).sqrt_().add_(c).reciprocal_().mul_(2.0)
    u = torch.outer(sign * node, unit)
    decay = torch.expm1(u).mul_(-z).addcmul_(z - sign * c, u).exp_()  # what is linear in u, in one term
    mass, moment = torch.stack([weight, weight * node]) @ decay
    return moment.mul_(unit).addcmul_(centre, mass, value=-1.0).mul_(unit)


def _lower(w: Array, z: Array, a: Array, psi: Array) -> Array:
    return _integral(z, w.expm1_().mul_(a).neg_(), a.reciprocal().sub_(psi), -1.0)


def _upper(w: Array, z: Array, a: Array, psi: Array) -> Array:
    return _integral(z, w.expm1_().mul_(a), psi.sub_(a.reciprocal()), 1.0)


def _far_lower(w: Array, z: Array, a: Array, psi: Array) -> Array:
    w, a, psi = w.double(), a.double(), psi.double()
    return _lower(w, torch.exp(w).mul_(a), a, psi).float()


def _far_upper(w: Array, z: Array, a: Array, psi: Array) -> Array:
    w, a, psi = w.double(), a.double(), psi.double()
    return _upper(w, torch.exp(w).mul_(a), a, psi).float()


def _ratio_slope(w: Array, a: Array) -> Array:
    return log_slope(w, a).sub_(a.reciprocal())


_OWN: dict[Slope, Slope] = {gamma_slope.log_slope: log_slope, gamma_slope.ratio_slope: _ratio_slope}
"""What takes the place of the core's."""

_NAMES: dict[Slope, str] = {slope: slope.__name__ for slope in _OWN}

_LIBRARY = torch.library.Library("vi_reparam", "FRAGMENT")


def as_operator(slope: Slope, value: Array, parameter: Array) -> Array:
    """``in_blocks(slope, value, parameter)`` as one operation of a capture: which branch serves follows from values.

    Args:
        slope: one that `has_own`.
    """
    return getattr(torch.ops.vi_reparam, _NAMES[slope])(value, parameter)


def written_out(graph: GraphModule, arguments: tuple[Array, ...]) -> GraphModule:
    """A graph with the core's form in place of each such operation: what a compiler can fuse.

    Args:
        arguments: of the forms that it is run on.
    """
    if not any(node.target in SLOPES for node in graph.graph.nodes):
        return graph
    return make_fx(graph, decomposition_table=SLOPES)(*arguments)


for _slope, _name in _NAMES.items():
    _LIBRARY.define(f"{_name}(Tensor value, Tensor parameter) -> Tensor")
    _LIBRARY.impl(_name, functools.partial(in_blocks, _slope), "CompositeExplicitAutograd")
    torch.library.register_fake(f"vi_reparam::{_name}", lambda value, parameter: torch.empty_like(value), lib=_LIBRARY)

SLOPES: dict[Any, Slope] = {getattr(torch.ops.vi_reparam, name).default: slope for slope, name in _NAMES.items()}
"""The operations that a capture may hold, with the core's forms of them."""

WRITTEN_OUT = 650
"""About how many operations such a form is."""
