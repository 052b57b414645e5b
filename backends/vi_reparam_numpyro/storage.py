"""JAX's values in the file of a posterior."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from vi_reparam.posterior import storage


class Codec(storage.Codec):
    """`vi_reparam.posterior.storage.Codec` for JAX: keys are stored by their data."""

    def array(self, value: Any) -> np.ndarray | None:
        return np.asarray(value) if isinstance(value, jax.Array | np.ndarray | np.generic) else None

    def restore(self, array: np.ndarray, dtype: str) -> Any:
        # numpy stores dtypes that are not its own, such as bfloat16, as raw bytes
        return array.view(jnp.dtype(dtype)) if array.dtype.kind == "V" else array

    def pack(self, value: Any) -> tuple[Any, str] | None:
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return jax.random.key_data(value), str(jax.random.key_impl(value))
        return None

    def unpack(self, content: Any, about: str) -> Any:
        return jax.random.wrap_key_data(jnp.asarray(content), impl=about)

    def shapes(self, params: dict) -> dict[str, list[int]]:
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        return {jax.tree_util.keystr(path): list(np.shape(leaf)) for path, leaf in leaves}

    def prepare(self, model: Any, params: dict, args: tuple, kwargs: dict) -> None:
        # the first call must not be an abstract one
        with handlers.block(), handlers.seed(rng_seed=0), handlers.substitute(data=params):
            model.guide(*args, **kwargs)

    def make(self, model: Any, **fields: Any) -> Any:
        from vi_reparam_numpyro.posterior import Posterior

        return Posterior(model, **fields)


def load(path: str | os.PathLike, model: Any) -> Any:
    """Reads a posterior that `Posterior.save` wrote.

    Args:
        path: the file.
        model: the guided model that it was fitted with.

    Returns:
        The posterior.

    Raises:
        ArgumentError: there is no such file, it is not one of ours, or it is of another model.
    """
    return storage.load(path, model, Codec())
