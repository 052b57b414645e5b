"""Gammas by themselves, and what is made of them, as single operators of torch's autograd.

A draw computes no slope: backward does, and only of what is differentiated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from vi_reparam.samplers import LogGamma, accepted_noise
from vi_reparam_pyro.ops import kernels
from vi_reparam_pyro.ops.gamma_slope import in_blocks, log_slope
from vi_reparam_pyro.ops.home import at_home
from vi_reparam_pyro.ops.ops import ops

Array = Any

_SAMPLER = LogGamma(boost=1)

_BLOCK = 65_536
"""Lanes at once on a CPU."""


def ratios(key: int, a: Array) -> Array:
    """W = log(z / a) for z ~ Gamma(a, 1), a constant of the shape of `a`.

    On a GPU, and only there, by a kernel where it is the faster way.
    """
    return kernels.ratios(key, a) if kernels.fastest(a) else plain_ratios(key, a)


def plain_ratios(key: int, a: Array) -> Array:
    """`ratios` by torch's own operators, which go on with the few rejected lanes."""
    with torch.no_grad(), at_home(a):
        flat = a.reshape(-1)
        eps, uniforms = accepted_noise(ops, key, _SAMPLER, tuple(flat.shape), flat)
        if a.device.type != "cpu" or flat.numel() <= _BLOCK:
            return _SAMPLER.transform((eps, uniforms), flat).view(a.shape)
        blocks = zip(eps.split(_BLOCK), uniforms.split(_BLOCK, 1), flat.split(_BLOCK), strict=True)
        for e, u, block in blocks:
            e.copy_(_SAMPLER.transform((e, u), block))  # takes the place of its noise
        return eps.view(a.shape)


def _slope(w: Array, a: Array) -> Array:
    """D log z / da."""
    return in_blocks(log_slope, w, a)


def _tiny(x: Array) -> float:
    return torch.finfo(x.dtype).smallest_normal


class Gamma(torch.autograd.Function):
    """z, from its ratio and concentration; kept from underflow."""

    @staticmethod
    def forward(ctx: Any, w: Array, a: Array) -> Array:
        z = torch.exp(w).mul_(a).clamp_(min=_tiny(w))
        ctx.save_for_backward(w, a, z)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Array) -> Any:
        w, a, z = ctx.saved_tensors
        return None, _slope(w, a).mul_(z).mul_(g)


class LogGamma_(torch.autograd.Function):  # noqa: N801  (LogGamma is the sampler)
    """log z, from its ratio and concentration."""

    @staticmethod
    def forward(ctx: Any, w: Array, a: Array) -> Array:
        ctx.save_for_backward(w, a)
        return torch.log(a).add_(w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Array) -> Any:
        return None, _slope(*ctx.saved_tensors).mul_(g)


class Beta(torch.autograd.Function):
    """z / (z + z') from the ratios and concentrations of both; inside (0, 1)."""

    @staticmethod
    def forward(ctx: Any, w: Array, v: Array, a: Array, b: Array) -> Array:
        logit = torch.div(a, b).log_().add_(w).sub_(v)
        ctx.save_for_backward(w, v, a, b, logit)
        return torch.sigmoid(logit).clamp_(_tiny(w), 1.0 - 0.5 * torch.finfo(w.dtype).eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Array) -> Any:
        w, v, a, b, logit = ctx.saved_tensors
        g = torch.sigmoid(logit).clamp_(min=_tiny(w)).mul_(torch.sigmoid(-logit)).mul_(g)
        by_a = _slope(w, a).mul_(g) if ctx.needs_input_grad[2] else None
        by_b = _slope(v, b).mul_(g).neg_() if ctx.needs_input_grad[3] else None
        return None, None, by_a, by_b


class Dirichlet(torch.autograd.Function):
    """z / SUM z along the last axis, from ratios and concentrations; kept from underflow."""

    @staticmethod
    def forward(ctx: Any, w: Array, a: Array) -> Array:
        # Where every z is small their logarithms are shifted; elsewhere z has more digits without.
        shift = torch.log(a).add_(w).amax(-1, keepdim=True).clamp_(max=0.0)
        x = torch.sub(w, shift).exp_().mul_(a)
        x.div_(x.sum(-1, keepdim=True)).clamp_(min=_tiny(w))
        ctx.save_for_backward(w, a, x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Array) -> Any:
        w, a, x = ctx.saved_tensors
        g = g * x
        return None, _slope(w, a).mul_(torch.addcmul(g, x, g.sum(-1, keepdim=True), value=-1.0))
