"""Values that many use and that are computed once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def once(x: Any) -> Any:
    """The same array. On a CPU XLA copies what makes it into each of its users, which takes long to compile.

    It does not look into a loop of two steps.
    """
    if jax.default_backend() != "cpu" or x.size < 2:
        return x
    pairs = jnp.pad(x.reshape(-1), (0, x.size % 2)).reshape(2, -1)
    return lax.map(lax.optimization_barrier, pairs).reshape(-1)[: x.size].reshape(x.shape)
