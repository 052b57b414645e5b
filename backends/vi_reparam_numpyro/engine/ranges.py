"""Parameters out of their range: NumPyro looks at those that are numbers when a site is made, and in a trace none are.

Some densities are finite there, such as that of a von Mises with a concentration below zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer
from numpyro.distributions import Distribution, constraints

from vi_reparam.backend.tracer import Record
from vi_reparam.errors import ArgumentError, short
from vi_reparam_numpyro.engine.bounds import Value, computed

Array = Any

SLACK = 1e-3
"""Of sums to one, lengths, symmetry and bounds on both sides: in single precision they hold as far as rounding lets."""

_MATRICES = tuple(type(c) for c in (constraints.positive_definite, constraints.corr_matrix))
_FACTORS = tuple(type(c) for c in (constraints.lower_cholesky, constraints.corr_cholesky))
_INSIDE = ("base_dist", "base", "_mixing_distribution", "_component_distribution", "component_distributions")


def misses(records: Mapping[str, Record]) -> dict[tuple[str, str, str, str], Array]:
    """Whether some element is out of range, by site, distribution, parameter and constraint."""
    found: dict[tuple[str, str, str, str], Array] = {}
    for name, record in records.items():
        for part in _parts(record.distribution) if record.kind == "sample" and record.mask is None else ():
            for parameter, constraint in part.arg_constraints.items():
                value = vars(part).get(parameter)  # NumPyro itself looks at numbers
                missed = _missed(constraint, value) if isinstance(value, Tracer) else None
                if missed is not None:
                    found[name, type(part).__name__, parameter, _written(constraint)] = jnp.any(missed)
    return found


def refuse(name: str, found: Mapping[tuple[str, str, str, str], Value | None]) -> None:
    """Refuse what is out of range for the arguments at hand, whatever is drawn.

    Raises:
        ArgumentError: naming the first such parameter and its constraint.
    """
    for (site, kind, parameter, constraint), missed in found.items():
        known = None if missed is None else computed(missed)
        if known is not None and known.any():
            raise ArgumentError(
                f"{name[:40]} could not run: site {short(site)}: {parameter} of its {kind[:40]} is out of range for "
                f"these arguments: expected {constraint[:80]}; see the data that it is made of"
            )


def _parts(distribution: Any) -> Iterator[Distribution]:
    """A distribution and all inside it; nothing of one with a mask, which may hide what is out of range."""
    if getattr(distribution, "_mask", True) is not True:
        return
    if isinstance(distribution, Distribution):
        yield distribution
    for inside in (getattr(distribution, name, None) for name in _INSIDE):
        for part in inside if isinstance(inside, list | tuple) else [inside]:
            if isinstance(part, Distribution):
                yield from _parts(part)


def _missed(constraint: Any, x: Array) -> Array | None:
    """Where a parameter is out of its range; None for a range that follows from others."""
    while isinstance(constraint, constraints._IndependentConstraint):
        constraint = constraint.base_constraint
    if isinstance(constraint, constraints._Dependent | type(constraints.real)) or constraint.is_discrete:
        return None
    if isinstance(constraint, _MATRICES):
        return jnp.abs(x - jnp.swapaxes(x, -1, -2)) > SLACK * jnp.max(jnp.abs(x), (-1, -2), keepdims=True)
    if isinstance(constraint, _FACTORS):
        return jnp.triu(jnp.abs(x), 1) > SLACK * jnp.max(jnp.abs(x), (-1, -2), keepdims=True)
    if isinstance(constraint, type(constraints.simplex)):
        return jnp.any(x < -SLACK, -1) | (jnp.abs(jnp.sum(x, -1) - 1.0) > SLACK)
    if isinstance(constraint, type(constraints.sphere)):
        return jnp.abs(jnp.sum(x * x, -1) - 1.0) > SLACK
    if isinstance(constraint, constraints._UnitInterval):
        return (x < constraint.lower_bound - SLACK) | (x > constraint.upper_bound + SLACK)
    told = ~jnp.isnan(x)  # missing data have words of their own
    return jnp.all(told, tuple(range(-constraint.event_dim, 0))) & ~jnp.asarray(constraint(x))


def _written(constraint: Any) -> str:
    return f"symmetric {constraint!r}" if isinstance(constraint, _MATRICES) else repr(constraint)
