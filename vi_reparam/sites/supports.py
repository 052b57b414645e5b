"""What kind of set a latent's support is, by the names that all frameworks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KINDS = {
    "real": "real",
    "positive": "positive",
    "softplus_positive": "positive",
    "nonnegative": "positive",
    "unit_interval": "unit_interval",
    "simplex": "simplex",
    "sphere": "sphere",
    "circular": "circular",
    "boolean": "boolean",
    "nonnegative_integer": "count",
}
"""A row a constraint: its name, and its kind."""


def kind_of(support: Any, constraints: Any, same: Callable[[Any, Any], bool]) -> str:
    """As `vi_reparam.backend.host.Host.support_kind`, of a support without independent dimensions.

    Args:
        constraints: the module of the framework's constraints.
        same: whether two constraints of one class are equal.
    """
    for name, kind in KINDS.items():
        constraint = getattr(constraints, name, None)
        if support is constraint or (type(support) is type(constraint) and same(support, constraint)):
            return kind
    return "discrete" if support.is_discrete else "other"
