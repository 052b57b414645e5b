"""Pyro's distributions, read as the core's families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch

from vi_reparam.backend.ops import Ops
from vi_reparam.draw import Draw
from vi_reparam.errors import GradientError, SiteError
from vi_reparam.estimators.base import Primitive
from vi_reparam.families import FAMILIES, Family
from vi_reparam_pyro.lanes.vmap import host_noise

Array = Any
Reading = tuple[Family, tuple[Array, ...]]


class HostFamily(Family):
    """Any other Pyro distribution: its own sampler where that is differentiable, its own density."""

    name = "host"
    parameters = ()
    parameter_event_dims = ()

    def __init__(self, distribution: Any) -> None:
        self.distribution = distribution
        self.name = type(distribution).__name__  # type: ignore[misc]
        self.event_dim = distribution.event_dim  # type: ignore[misc]
        differentiable = distribution.has_rsample and not is_discrete(distribution)
        self.kinds = frozenset({"score_function"} | ({"pathwise"} if differentiable else set()))  # type: ignore[misc]

    def build(
        self,
        primitive: Primitive,
        ops: Ops,
        key: Any,
        shape: tuple[int, ...],
        *params: Array,
        value: Array | None = None,
    ) -> Draw:
        lanes = self.distribution.expand(torch.Size(shape))
        if value is None:
            with host_noise():
                value = lanes()
        else:
            value = value.detach()
        return Draw(value=value, log_prob=lanes.log_prob(value))

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        return self.distribution.log_prob(value)

    def entropy(self, *params: Array) -> Array:
        try:
            return self.distribution.entropy()
        except NotImplementedError:
            raise SiteError(f"{self.name} has no entropy in closed form: use entropy='monte_carlo'") from None


def is_discrete(distribution: Any) -> bool:
    """Whether a distribution lives on a countable set."""
    support = distribution.support
    return bool(getattr(support, "is_discrete", False))


def _named(name: str, *attributes: str) -> Callable[[Any], Reading]:
    return lambda d: (FAMILIES[name], tuple(getattr(d, a) for a in attributes))


def _von_mises_fisher(d: Any) -> Reading:
    # Pyro's three-dimensional one keeps direction and concentration in one vector.
    kappa = torch.linalg.vector_norm(d.concentration, dim=-1)
    return FAMILIES["von_mises_fisher"], (d.concentration / kappa[..., None], kappa)


READERS: dict[type, Callable[[Any], Reading]] = {
    dist.Normal: _named("normal", "loc", "scale"),
    dist.Gamma: _named("gamma", "concentration", "rate"),
    dist.InverseGamma: _named("inverse_gamma", "concentration", "rate"),
    dist.Chi2: _named("chi2", "df"),
    dist.Beta: _named("beta", "concentration1", "concentration0"),
    dist.Dirichlet: _named("dirichlet", "concentration"),
    dist.StudentT: _named("student_t", "df", "loc", "scale"),
    dist.VonMises: _named("von_mises", "loc", "concentration"),
    dist.VonMises3D: _von_mises_fisher,
    dist.Poisson: _named("poisson", "rate"),
    dist.Bernoulli: _named("bernoulli", "logits"),
}
"""One row a Pyro class: how to read it as a family and parameters."""


def read(distribution: Any) -> Reading:
    """The family of an unwrapped distribution, and its parameters in one float dtype."""
    own = getattr(distribution, "as_family", None)
    if own is None and type(distribution) is dist.Poisson and distribution.is_sparse:
        return HostFamily(distribution), ()
    reader = READERS.get(type(distribution))
    reading = own() if own is not None else reader(distribution) if reader is not None else None
    if reading is None:
        return HostFamily(distribution), ()
    family, params = reading
    tensors = [p for p in params if isinstance(p, torch.Tensor) and p.is_floating_point()]
    dtype = torch.get_default_dtype()
    if tensors:
        dtype = tensors[0].dtype
        for p in tensors[1:]:
            dtype = torch.promote_types(dtype, p.dtype)
    return family, tuple(torch.as_tensor(p).to(dtype) for p in params)


def require_inverse(family: Family, estimator: Any) -> None:
    """Refuse a gradient for a given value of a host sampler, whose noise cannot be had.

    Raises:
        GradientError: naming both.
    """
    if isinstance(family, HostFamily) and estimator.kind == "pathwise":
        raise GradientError(
            f"{estimator!r} on {family.name}: the value was given (replayed or substituted), and the noise behind it "
            "cannot be recovered; let the guide draw it, or use ScoreFunction()"
        )
