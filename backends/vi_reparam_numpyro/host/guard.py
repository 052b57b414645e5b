"""A derivative rule that raises: for gradients that would silently be wrong."""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
from numpyro.infer import SVI
from numpyro.infer.elbo import ELBO as HostELBO

from vi_reparam.errors import GradientError


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _identity(message: str, value: Any, operands: Any) -> Any:
    return value


@_identity.defjvp
def _raise(message: str, primals: Any, tangents: Any) -> Any:
    raise GradientError(message)


def refuse_gradient(message: str, value: Any, *operands: Any) -> Any:
    """`value`, which raises if it is differentiated with respect to anything behind it or `operands`.

    Evaluation, prediction, jit and vmap work as ever.
    """
    return _identity(message, value, operands)


def running_objective() -> str:
    """Name of the NumPyro objective on the call stack, for the error that must name it."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, HostELBO):
            return type(owner).__name__
        frame = frame.f_back
    return "this computation"


def initializing_a_host() -> bool:
    """Whether an `SVI` that knows no state of ours is on the call stack: half of NumPyro's objectives refuse any."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, SVI):
            return not getattr(owner.loss, "holds_state", False)
        frame = frame.f_back
    return False
