"""NumPyro's distribution of a vector that is known by its draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpyro.distributions as dist
from jax import random
from numpyro.distributions import constraints

from vi_reparam.programs.vector import Vector, lost_path
from vi_reparam.sites.emission import ALONE, emit_vector
from vi_reparam.sites.recorder import current
from vi_reparam_numpyro.host.guard import running_objective
from vi_reparam_numpyro.ops.ops import ops

Array = Any

LINEAR = ("ELBO", "Trace_ELBO", "TraceMeanField_ELBO")
"""NumPyro's objectives that are linear in log q."""


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

    def __init__(
        self, size: int, make: Callable[[Array], Vector], *, site: str, batch_shape: tuple[int, ...] = ()
    ) -> None:
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
        value, log_q = emit_vector(ops, self.site, self.make(key), running_objective, linear=LINEAR)
        return value, [log_q]

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        if not intermediates:
            raise lost_path(self.site)
        return intermediates[0]


def differentiating() -> bool:
    """Whether an objective runs, whose gradient may be asked for."""
    return current() is not None or running_objective() != ALONE
