"""A user's own drift network in NumPyro: an equinox module."""

from __future__ import annotations

from typing import Any

import jax
import numpyro
from jax import lax


def drift(module: Any, name: str) -> tuple[Any, Any]:
    """As `vi_reparam.backend.host.Host.drift`: the module with its arrays as one `numpyro.param`."""
    import equinox

    arrays, rest = equinox.partition(module, equinox.is_inexact_array)
    # from a function, since a module that can be called looks like one
    weights = numpyro.param(name, lambda key: arrays)
    held = jax.tree.map(lax.stop_gradient, weights)
    return equinox.combine(weights, rest), equinox.combine(held, rest)
