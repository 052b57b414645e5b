"""NumPyro as the host of programs written once."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.handlers import substitute
from numpyro.primitives import _PYRO_STACK

from vi_reparam.backend.host import Host
from vi_reparam_numpyro.host.distributions import VonMisesFisher
from vi_reparam_numpyro.host.drift_module import drift
from vi_reparam_numpyro.host.families import NumpyroReader
from vi_reparam_numpyro.host.networks import network
from vi_reparam_numpyro.host.parts import PartOf
from vi_reparam_numpyro.host.supports import Supports
from vi_reparam_numpyro.host.vector import JointVector, differentiating


class NumpyroHost(Supports, NumpyroReader):
    """`vi_reparam.backend.host.Host` on NumPyro's primitives."""

    name = "numpyro"
    title = "NumPyro"
    dist: Any = dist
    xp: Any = jnp

    def sample(self, name: str, distribution: Any, *, obs: Any = None, infer: Any = None) -> Any:
        return numpyro.sample(name, distribution, obs=obs, infer=None if infer is None else dict(infer))

    def param(self, name: str, init: Any, *, constraint: Any = None, event_dim: int | None = None) -> Any:
        constraint = dist.constraints.real if constraint is None else constraint
        return numpyro.param(name, init, constraint=constraint, event_dim=event_dim)

    def known_params(self) -> set[str]:
        given = [handler.data for handler in _PYRO_STACK if isinstance(handler, substitute)]
        return {name for data in given for name in data or ()}

    def plate(self, name: str, size: int, *, dim: int | None = None, subsample_size: int | None = None) -> Any:
        return numpyro.plate(name, size, subsample_size=subsample_size, dim=dim)

    part_of = PartOf

    def deterministic(self, name: str, value: Any) -> Any:
        return numpyro.deterministic(name, value)

    def factor(self, name: str, log_factor: Any) -> None:
        numpyro.factor(name, log_factor)

    def array(self, x: Any) -> Any:
        return jnp.asarray(x, dtype=float)

    def adam(self, learning_rate: float) -> optax.GradientTransformation:
        return optax.adam(learning_rate)

    def scope(self) -> str:
        return ""

    vector = JointVector
    differentiating = staticmethod(differentiating)
    bijection = staticmethod(network)
    drift = staticmethod(drift)

    def von_mises_fisher(self, direction: Any, concentration: Any) -> Any:
        return VonMisesFisher(direction, concentration)


host: Host = NumpyroHost()
