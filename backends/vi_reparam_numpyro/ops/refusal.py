"""A derivative rule that raises: for gradients that would silently be wrong."""

from __future__ import annotations

import functools
from typing import Any

import jax

from vi_reparam.errors import GradientError


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _identity(message: str, value: Any, operands: Any) -> Any:
    return value


@_identity.defjvp
def _raise(message: str, primals: Any, tangents: Any) -> Any:
    raise GradientError(message)


def refuse_gradient(message: str, value: Any, *operands: Any) -> Any:
    """`vi_reparam.backend.ops.Ops.refuse_gradient` for JAX."""
    return _identity(message, value, operands)
