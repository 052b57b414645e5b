"""NumPyro's supports: what kind each is, and the map from the reals to it."""

from __future__ import annotations

from typing import Any

import jax
from numpyro.distributions import biject_to, constraints

from vi_reparam.sites.supports import carried, kind_of
from vi_reparam_numpyro.ops.ops import ops

_UNIT_INTERVALS = (constraints.interval(0.0, 1.0), constraints.open_interval(0.0, 1.0))


class Supports:
    """The part of `vi_reparam.backend.host.Host` that reads supports."""

    def support_of(self, distribution: Any) -> Any:
        found = carried(ops, distribution, constraints)
        return distribution.support if found is None else found

    def support_kind(self, support: Any, distribution: Any = None) -> str:
        while isinstance(support, constraints._IndependentConstraint):
            support = support.base_constraint
        if any(type(support) is type(unit) and _same(support, unit) for unit in _UNIT_INTERVALS):
            return "unit_interval"
        return kind_of(support, constraints, _same)

    def biject_to(self, support: Any) -> Any:
        return biject_to(support)


def _same(support: Any, constraint: Any) -> bool:
    try:
        return bool(support == constraint)
    except (TypeError, ValueError, jax.errors.JAXTypeError):
        return False
