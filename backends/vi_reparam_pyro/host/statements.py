"""Pyro as the host of programs written once."""

from __future__ import annotations

import functools
from typing import Any

import array_api_compat.torch as xp
import pyro
import pyro.distributions as dist
import torch

from vi_reparam.backend.host import Host
from vi_reparam_pyro.host.distributions import VonMisesFisher
from vi_reparam_pyro.host.drift_module import drift
from vi_reparam_pyro.host.families import PyroReader
from vi_reparam_pyro.host.networks import network
from vi_reparam_pyro.host.params import new_scope
from vi_reparam_pyro.host.parts import PartOf
from vi_reparam_pyro.host.supports import Supports
from vi_reparam_pyro.host.vector import JointVector, differentiating
from vi_reparam_pyro.ops.ops import ops


class PyroHost(Supports, PyroReader):
    """`vi_reparam.backend.host.Host` on Pyro's primitives."""

    name = "pyro"
    title = "Pyro"
    dist: Any = dist
    xp: Any = xp

    def sample(self, name: str, distribution: Any, *, obs: Any = None, infer: Any = None) -> Any:
        return pyro.sample(name, distribution, obs=obs, infer=None if infer is None else dict(infer))  # type: ignore[arg-type]

    def param(self, name: str, init: Any, *, constraint: Any = None, event_dim: int | None = None) -> Any:
        first = functools.partial(_init, init) if callable(init) else init
        constraint = dist.constraints.real if constraint is None else constraint
        return pyro.param(name, first, constraint=constraint, event_dim=event_dim)

    def known_params(self) -> set[str]:
        return set(pyro.get_param_store().keys())

    def plate(self, name: str, size: int, *, dim: int | None = None, subsample_size: int | None = None) -> Any:
        return pyro.plate(name, size, subsample_size=subsample_size, dim=dim)

    part_of = PartOf

    def deterministic(self, name: str, value: Any) -> Any:
        return pyro.deterministic(name, value)

    def factor(self, name: str, log_factor: Any) -> None:
        pyro.factor(name, log_factor)

    def array(self, x: Any) -> Any:
        return torch.as_tensor(x, dtype=torch.get_default_dtype())

    def adam(self, learning_rate: float) -> Any:
        return functools.partial(torch.optim.Adam, lr=learning_rate)

    def scope(self) -> str:
        return new_scope()

    vector = JointVector
    differentiating = staticmethod(differentiating)
    bijection = staticmethod(network)
    drift = staticmethod(drift)

    def von_mises_fisher(self, direction: Any, concentration: Any) -> Any:
        return VonMisesFisher(direction, concentration)


def _init(init: Any) -> Any:
    """The initial value of a new parameter, its noise from where the program takes its own."""
    return init(ops.root_key())


host: Host = PyroHost()
