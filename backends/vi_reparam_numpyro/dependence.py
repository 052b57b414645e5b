"""First parameters, for callers that are still to go."""

from __future__ import annotations

from typing import Any

import jax
from jax import random
from jax.core import Tracer
from numpyro.handlers import substitute

from vi_reparam.objectives import run as core
from vi_reparam_numpyro.backend import backend


def first_params(
    model: Any, guide: Any, args: Any, kwargs: Any, *, key: Any = None, known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The initial values at the param and mutable sites of guide and model.

    Args:
        known: values of some, for which then no initial value is computed.
    """
    with substitute(data=known or {}):
        found = core.first_params(backend, random.key(0) if key is None else key, model, guide, args, kwargs)
    return {**(known or {}), **found}


def is_concrete(tree: Any) -> bool:
    """Whether Python can know every array in it now."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
