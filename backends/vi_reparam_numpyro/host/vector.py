"""NumPyro's distribution of a vector that is known by its draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpyro.distributions as dist
from jax import random
from numpyro.distributions import constraints

from vi_reparam.programs.vector import HostObjectives, Noise, Vector, drawer, emit, lost_path
from vi_reparam_numpyro import listener
from vi_reparam_numpyro.host.distributions import Sampled
from vi_reparam_numpyro.host.guard import refuse_gradient, running_objective
from vi_reparam_numpyro.ops.ops import ops

Array = Any

OBJECTIVES = HostObjectives(single_sample=("ELBO", "Trace_ELBO", "TraceMeanField_ELBO"))
ALONE = "this computation"
"""What `running_objective` says where no objective runs."""


class JointVector(dist.Distribution):
    """The distribution that `Host.vector` makes.

    Args:
        size: D.
        make: a draw from a key.
        site: its name.
        batch_shape: of the plate whose elements have a vector each.
    """

    pytree_aux_fields = ("make", "site")
    known_by_draws = True

    def __init__(self, size: int, make: Callable[[Array], Vector], site: str, batch_shape: tuple[int, ...]) -> None:
        self.make, self.site = make, site
        super().__init__(batch_shape, (size,), validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.real_vector

    @property
    def has_rsample(self) -> bool:
        return True

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Any:
        if sample_shape:
            drawn: Any = lambda key: (lambda made: (made.value, made.log_q))(self.make(key))  # noqa: E731
            for _ in sample_shape:
                drawn = jax.vmap(drawn)
            value, log_q = drawn(random.split(key, sample_shape))
            return value, [log_q]
        name = running_objective()
        value, log_q = emit(
            self.site,
            self.make(key),
            recorder=listener.current(),
            objective=None if name == ALONE else name,
            known=OBJECTIVES,
            refuse=refuse_gradient,
            sampled=Sampled,
        )
        return value, [log_q]

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        if not intermediates:
            raise lost_path(self.site)
        return intermediates[0]


def vector(
    size: int,
    noise: Noise,
    draw: Callable[[Any, Array | None], Vector],
    *,
    site: str,
    features: Array | None = None,
    batch_shape: tuple[int, ...] = (),
) -> JointVector:
    """As `vi_reparam.backend.host.Host.vector`."""
    return JointVector(size, drawer(ops, size, noise, draw, features, batch_shape), site, batch_shape)


def differentiating() -> bool:
    """Whether an objective runs, whose gradient may be asked for."""
    return listener.current() is not None or running_objective() != ALONE
