"""NumPyro as the host of a model written once."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax

from vi_reparam.backend.host import Host


class NumpyroHost:
    """`vi_reparam.backend.host.Host` on NumPyro's primitives."""

    name = "numpyro"
    dist: Any = dist
    xp: Any = jnp

    def sample(self, name: str, distribution: Any, *, obs: Any = None) -> Any:
        return numpyro.sample(name, distribution, obs=obs)

    def param(self, name: str, init: Any, *, constraint: Any = None) -> Any:
        return numpyro.param(name, init, constraint=dist.constraints.real if constraint is None else constraint)

    def plate(self, name: str, size: int, *, dim: int | None = None, subsample_size: int | None = None) -> Any:
        return numpyro.plate(name, size, subsample_size=subsample_size, dim=dim)

    def deterministic(self, name: str, value: Any) -> Any:
        return numpyro.deterministic(name, value)

    def factor(self, name: str, log_factor: Any) -> None:
        numpyro.factor(name, log_factor)

    def array(self, x: Any) -> Any:
        return jnp.asarray(x, dtype=float)

    def adam(self, learning_rate: float) -> optax.GradientTransformation:
        return optax.adam(learning_rate)


host: Host = NumpyroHost()
