"""A derivative rule that raises: for gradients that would silently be wrong."""

from __future__ import annotations

from typing import Any

import torch

from vi_reparam.errors import GradientError


class _Refuse(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Any, message: str, *operands: Any) -> Any:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.message = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise GradientError(ctx.message)


def refuse_gradient(message: str, value: Any, *operands: Any) -> Any:
    """`vi_reparam.backend.ops.Ops.refuse_gradient` for torch; operands are tensors."""
    return _Refuse.apply(value, message, *operands)
