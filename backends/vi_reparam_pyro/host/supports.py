"""Pyro's supports: what kind each is, and the map from the reals to it."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from torch.distributions import biject_to

from vi_reparam.sites.supports import carried, kind_of
from vi_reparam_pyro.ops.ops import ops


class Supports:
    """The part of `vi_reparam.backend.host.Host` that reads supports."""

    def support_of(self, distribution: Any) -> Any:
        try:
            found = carried(ops, distribution, constraints)
            return _without_mixture(distribution.support) if found is None else found
        except (AttributeError, NotImplementedError):
            return None

    def support_kind(self, support: Any, distribution: Any = None) -> str:
        while hasattr(distribution, "base_dist"):
            distribution = distribution.base_dist
        if isinstance(distribution, torch.distributions.VonMises):
            return "circular"
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        return kind_of(support, constraints, _same)

    def biject_to(self, support: Any) -> Any:
        return biject_to(support)


def _same(support: Any, constraint: Any) -> bool:
    bounds = [(a, b) for a, b in ((vars(support).get(k), v) for k, v in vars(constraint).items())]
    try:
        return all(a is not None and bool(torch.all(torch.as_tensor(a) == torch.as_tensor(b))) for a, b in bounds)
    except (TypeError, ValueError, RuntimeError):
        return False


def _without_mixture(support: Any) -> Any:
    """A mixture's support is that of its components, where that has no arrays, which would have one for each."""
    if isinstance(support, constraints.independent):
        return constraints.independent(_without_mixture(support.base_constraint), support.reinterpreted_batch_ndims)
    inner = getattr(support, "base_constraint", None)
    if type(support).__name__ != "MixtureSameFamilyConstraint" or _has_arrays(inner):  # not in every torch
        return support
    return inner


def _has_arrays(support: Any) -> bool:
    parts = vars(support).values()
    return any(isinstance(p, torch.Tensor) or (isinstance(p, constraints.Constraint) and _has_arrays(p)) for p in parts)
