"""JAX's values in the file of a posterior."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vi_reparam.posterior.codec import Codec


class JaxCodec(Codec):
    """`vi_reparam.posterior.codec.Codec` for JAX: keys are stored by their data."""

    def array(self, value: Any) -> np.ndarray | None:
        return np.asarray(value) if isinstance(value, jax.Array | np.ndarray | np.generic) else None

    def restore(self, array: np.ndarray, dtype: str) -> Any:
        # NumPy stores dtypes that are not its own, such as bfloat16, as raw bytes
        return array.view(jnp.dtype(dtype)) if array.dtype.kind == "V" else array

    def pack(self, value: Any) -> tuple[Any, str] | None:
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return jax.random.key_data(value), str(jax.random.key_impl(value))
        return None

    def unpack(self, content: Any, about: str) -> Any:
        return jax.random.wrap_key_data(jnp.asarray(content), impl=about)
