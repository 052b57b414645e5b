"""What kind of set a latent's support is, by the names that all frameworks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vi_reparam.backend.ops import Ops

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


def is_carried(distribution: Any) -> bool:
    """Whether its support is that of another distribution, taken on by transforms."""
    while not hasattr(distribution, "transforms") and hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    said_by = next((c.__name__ for c in type(distribution).__mro__ if "support" in vars(c)), "")
    return bool(getattr(distribution, "transforms", None)) and said_by == "TransformedDistribution"


def carried(ops: Ops, distribution: Any, constraints: Any) -> Any:
    """The support of a transformed distribution whose base lies within bounds: where the transforms take these.

    Frameworks say what set the last transform may reach, which for a shift is the reals, whatever it shifts.

    Returns:
        A constraint; None where the framework's own is right, or no more is known.
    """
    event_dim = len(distribution.event_shape)
    if not is_carried(distribution):
        return None
    while not hasattr(distribution, "transforms"):
        distribution = distribution.base_dist
    support = distribution.base_dist.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    ends = [getattr(support, f"{side}_bound", None) for side in ("lower", "upper")]
    if support.is_discrete or all(end is None for end in ends):
        return None
    parts = list(distribution.transforms)
    while any(hasattr(t, "parts") for t in parts):
        parts = [inner for t in parts for inner in getattr(t, "parts", [t])]
    for transform in parts:
        if transform.domain.event_dim or transform.codomain.event_dim or not getattr(transform, "bijective", True):
            return None
        try:
            sign = ops.concrete(ops.asarray(transform.sign))
        except NotImplementedError:
            return None
        signs = [] if sign is None else ops.to_numpy(sign).ravel().tolist()  # what is not known is taken to rise
        if min(signs, default=1) * max(signs, default=1) <= 0:  # some elements rise and others fall
            return None
        step = -1 if signs and signs[0] < 0 else 1
        reached = [getattr(transform.codomain, f"{side}_bound", None) for side in ("lower", "upper")][::step]
        ends = [_end(ops, transform, *pair) for pair in zip(ends, reached, strict=True)][::step]
    low, high = ends
    if low is high is None:
        return None
    made = (
        constraints.less_than(high)
        if low is None
        else constraints.greater_than(low)
        if high is None
        else constraints.interval(low, high)
    )
    return constraints.independent(made, event_dim) if event_dim else made


def _end(ops: Ops, transform: Any, end: Any, reached: Any) -> Any:
    """Where a transform takes an end of what it is given; None for no bound. `reached`: from one without an end."""
    affine = hasattr(transform, "loc") and hasattr(transform, "scale")
    if end is None:
        return None if affine else reached
    end = ops.asarray(end, ops.float_dtype())
    known = ops.concrete(end)
    if affine and known is not None and not ops.to_numpy(known).any():  # whatever its scale
        return ops.asarray(transform.loc, ops.float_dtype())
    end = transform(end)
    known = ops.concrete(end)
    finite = known is None or ops.to_numpy(ops.xp.isfinite(known)).any()
    return end if finite else None
