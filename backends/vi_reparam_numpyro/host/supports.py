"""NumPyro's supports: what kind each is, and the map from the reals to it."""

from __future__ import annotations

from typing import Any

import jax
from numpyro.distributions import biject_to, constraints

_KINDS: tuple[tuple[Any, str], ...] = (
    (constraints.real, "real"),
    (constraints.positive, "positive"),
    (constraints.softplus_positive, "positive"),
    (constraints.nonnegative, "positive"),
    (constraints.unit_interval, "unit_interval"),
    (constraints.interval(0.0, 1.0), "unit_interval"),
    (constraints.open_interval(0.0, 1.0), "unit_interval"),
    (constraints.simplex, "simplex"),
    (constraints.sphere, "sphere"),
    (constraints.circular, "circular"),
    (constraints.boolean, "boolean"),
    (constraints.nonnegative_integer, "count"),
)


class Supports:
    """The part of `vi_reparam.backend.host.Host` that reads supports."""

    def support_of(self, distribution: Any) -> Any:
        return distribution.support

    def support_kind(self, support: Any, distribution: Any = None) -> str:
        while isinstance(support, constraints._IndependentConstraint):
            support = support.base_constraint
        for constraint, kind in _KINDS:
            if type(support) is type(constraint) and _same(support, constraint):
                return kind
        return "discrete" if support.is_discrete else "other"

    def biject_to(self, support: Any) -> Any:
        return biject_to(support)


def _same(support: Any, constraint: Any) -> bool:
    try:
        return bool(support == constraint)
    except (TypeError, ValueError, jax.errors.JAXTypeError):
        return False
