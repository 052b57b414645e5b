"""Pyro as the host of a model written once."""

from __future__ import annotations

import functools
from typing import Any

import array_api_compat.torch as xp
import pyro
import pyro.distributions as dist
import torch

from vi_reparam.backend.host import Host


class PyroHost:
    """`vi_reparam.backend.host.Host` on Pyro's primitives."""

    name = "pyro"
    dist: Any = dist
    xp: Any = xp

    def sample(self, name: str, distribution: Any, *, obs: Any = None) -> Any:
        return pyro.sample(name, distribution, obs=obs)

    def param(self, name: str, init: Any, *, constraint: Any = None) -> Any:
        return pyro.param(name, init, constraint=dist.constraints.real if constraint is None else constraint)

    def plate(self, name: str, size: int, *, dim: int | None = None, subsample_size: int | None = None) -> Any:
        return pyro.plate(name, size, subsample_size=subsample_size, dim=dim)

    def deterministic(self, name: str, value: Any) -> Any:
        return pyro.deterministic(name, value)

    def factor(self, name: str, log_factor: Any) -> None:
        pyro.factor(name, log_factor)

    def array(self, x: Any) -> Any:
        return torch.as_tensor(x, dtype=torch.get_default_dtype())

    def adam(self, learning_rate: float) -> Any:
        return functools.partial(torch.optim.Adam, lr=learning_rate)


host: Host = PyroHost()
