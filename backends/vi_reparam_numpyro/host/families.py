"""NumPyro's distributions, read as the core's families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions.distribution import Distribution
from numpyro.distributions.truncated import (
    LeftTruncatedDistribution,
    RightTruncatedDistribution,
    TwoSidedTruncatedDistribution,
)

from vi_reparam.backend.ops import Ops
from vi_reparam.draw import Draw
from vi_reparam.errors import GradientError, SiteError
from vi_reparam.estimators.base import Primitive
from vi_reparam.families import FAMILIES, Family

Array = Any
Reading = tuple[Family, tuple[Array, ...]]


class HostFamily(Family):
    """Any other NumPyro distribution: its own sampler where that is differentiable, its own density."""

    name = "host"
    parameters = ()
    parameter_event_dims = ()

    def __init__(self, distribution: Distribution) -> None:
        self.distribution = distribution
        self.name = type(distribution).__name__  # type: ignore[misc]
        self.event_dim = distribution.event_dim  # type: ignore[misc]
        differentiable = distribution.has_rsample and not distribution.is_discrete
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
        lanes = self.distribution.expand(shape)
        drawn: Any = lanes.sample(key) if value is None else lax.stop_gradient(value)
        return Draw(value=drawn, log_prob=lanes.log_prob(drawn))

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        return self.distribution.log_prob(value)

    def entropy(self, *params: Array) -> Array:
        try:
            return self.distribution.entropy()
        except NotImplementedError:
            raise SiteError(f"{self.name} has no entropy in closed form: use entropy='monte_carlo'") from None


def _truncated(low: Callable[[Any], Array], high: Callable[[Any], Array]) -> Callable[[Any], Reading | None]:
    def read(d: Any) -> Reading | None:
        if type(d.base_dist) is not dist.Normal or "truncated_normal" not in FAMILIES:
            return None
        loc, scale = d.base_dist.loc, d.base_dist.scale
        return FAMILIES["truncated_normal"], (loc, scale, low(d), high(d))

    return read


def _logits(probs: Array) -> Array:
    return jnp.log(probs) - jnp.log1p(-probs)


def _named(name: str, *attributes: str) -> Callable[[Any], Reading]:
    return lambda d: (FAMILIES[name], tuple(getattr(d, a) for a in attributes))


READERS: dict[type, Callable[[Any], Reading | None]] = {
    dist.Normal: _named("normal", "loc", "scale"),
    dist.Gamma: _named("gamma", "concentration", "rate"),
    dist.InverseGamma: _named("inverse_gamma", "concentration", "rate"),
    dist.Chi2: _named("chi2", "df"),
    dist.Beta: _named("beta", "concentration1", "concentration0"),
    dist.Dirichlet: _named("dirichlet", "concentration"),
    dist.StudentT: _named("student_t", "df", "loc", "scale"),
    dist.VonMises: _named("von_mises", "loc", "concentration"),
    dist.Poisson: lambda d: None if d.is_sparse else (FAMILIES["poisson"], (d.rate,)),
    dist.BernoulliLogits: _named("bernoulli", "logits"),
    dist.BernoulliProbs: lambda d: (FAMILIES["bernoulli"], (_logits(d.probs),)),
    LeftTruncatedDistribution: _truncated(lambda d: d.low, lambda d: jnp.inf),
    RightTruncatedDistribution: _truncated(lambda d: -jnp.inf, lambda d: d.high),
    TwoSidedTruncatedDistribution: _truncated(lambda d: d.low, lambda d: d.high),
}
"""One row a NumPyro class: how to read it as a family and parameters; None where it is not one."""


def read(distribution: Distribution) -> Reading:
    """The family of an unwrapped distribution, and its parameters in one float dtype."""
    own = getattr(distribution, "as_family", None)
    reading = own() if own is not None else None
    if reading is None:
        reader = READERS.get(type(distribution))
        reading = reader(distribution) if reader is not None else None
    if reading is None:
        return HostFamily(distribution), ()
    family, params = reading
    arrays = [p for p in params if not isinstance(p, float | int)]
    dtype = jnp.result_type(*arrays) if arrays else None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    return family, tuple(jnp.asarray(p, dtype) for p in params)


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
