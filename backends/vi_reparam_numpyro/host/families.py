"""NumPyro's distributions, read as the core's families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.distribution import (
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    TransformedDistribution,
)
from numpyro.distributions.truncated import (
    LeftTruncatedDistribution,
    RightTruncatedDistribution,
    TwoSidedTruncatedDistribution,
)

from vi_reparam.backend.host import Wrapping
from vi_reparam.families import FAMILIES
from vi_reparam.sites.host_family import Reading, Row, read_by, row, shared_rows
from vi_reparam_numpyro.ops.ops import ops

Array = Any


def _truncated(low: Callable[[Any], Array], high: Callable[[Any], Array]) -> Row:
    def read(d: Any) -> Reading | None:
        if type(d.base_dist) is not dist.Normal:
            return None
        return FAMILIES["truncated_normal"], (d.base_dist.loc, d.base_dist.scale, low(d), high(d))

    return read


def _logits(probs: Array) -> Array:
    return jnp.log(probs) - jnp.log1p(-probs)


ROWS: dict[type, Row] = {
    **shared_rows(dist),
    dist.BernoulliLogits: row("bernoulli", "logits"),
    dist.BernoulliProbs: lambda d: (FAMILIES["bernoulli"], (_logits(d.probs),)),
    LeftTruncatedDistribution: _truncated(lambda d: d.low, lambda d: jnp.inf),
    RightTruncatedDistribution: _truncated(lambda d: -jnp.inf, lambda d: d.high),
    TwoSidedTruncatedDistribution: _truncated(lambda d: d.low, lambda d: d.high),
}
"""One row a NumPyro class: how to read it as a family and parameters; None where it is not one."""


class NumpyroReader:
    """`vi_reparam.backend.host.Reader` for NumPyro."""

    def unwrap(self, distribution: Any) -> Wrapping | None:
        d = distribution
        if hasattr(d, "estimator"):
            return Wrapping("estimated", d.base, d.estimator)
        if isinstance(d, MaskedDistribution):
            return Wrapping("masked", d.base_dist, d._mask)
        if isinstance(d, ExpandedDistribution):
            return Wrapping("expanded", d.base_dist, d.batch_shape)
        if isinstance(d, Independent):
            return Wrapping("independent", d.base_dist, d.reinterpreted_batch_ndims)
        own_density = type(d).log_prob is not TransformedDistribution.log_prob
        if not isinstance(d, TransformedDistribution) or own_density or isinstance(d, dist.InverseGamma):
            return None
        return Wrapping("transformed", d.base_dist, d.transforms)

    def read(self, distribution: Any) -> Reading | None:
        return read_by(ROWS, ops, distribution)

    def draw(self, distribution: Any, key: Any) -> Array:
        return distribution.sample(key)


reader = NumpyroReader()
