"""Pyro's distributions, read as the core's families."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution

from vi_reparam.backend.host import Wrapping
from vi_reparam.families import FAMILIES
from vi_reparam.sites.host_family import Reading, Row, read_by, row, shared_rows
from vi_reparam_pyro.lanes.vmap import host_noise
from vi_reparam_pyro.ops.ops import ops

Array = Any
Transformed = torch.distributions.TransformedDistribution


def _von_mises_fisher(d: Any) -> Reading:
    # Pyro's three-dimensional one keeps direction and concentration in one vector.
    kappa = torch.linalg.vector_norm(d.concentration, dim=-1)
    return FAMILIES["von_mises_fisher"], (d.concentration / kappa[..., None], kappa)


ROWS: dict[type, Row] = {
    **shared_rows(dist),
    dist.VonMises3D: _von_mises_fisher,
    dist.Bernoulli: row("bernoulli", "logits"),
}
"""One row a Pyro class: how to read it as a family and parameters; None where it is not one."""


class PyroReader:
    """`vi_reparam.backend.host.Reader` for Pyro."""

    def unwrap(self, distribution: Any) -> Wrapping | None:
        d = distribution
        if hasattr(d, "estimator"):
            return Wrapping("estimated", d.base, d.estimator)
        if isinstance(d, MaskedDistribution):
            return Wrapping("masked", d.base_dist, d._mask)
        if isinstance(d, ExpandedDistribution):
            return Wrapping("expanded", d.base_dist, d.batch_shape)
        if isinstance(d, torch.distributions.Independent):
            return Wrapping("independent", d.base_dist, d.reinterpreted_batch_ndims)
        if not isinstance(d, Transformed) or type(d).log_prob is not Transformed.log_prob:
            return None
        if isinstance(d, dist.InverseGamma | torch.distributions.InverseGamma):
            return None
        return Wrapping("transformed", d.base_dist, d.transforms)

    def read(self, distribution: Any) -> Reading | None:
        return read_by(ROWS, ops, distribution)

    def draw(self, distribution: Any, key: int) -> Array:
        with host_noise():  # torch's own state, which the key of the run seeds
            if callable(distribution):
                return distribution()
            return distribution.rsample() if distribution.has_rsample else distribution.sample()  # a base, torch's own


reader = PyroReader()
