"""Densities and entropies through the wrappers of a distribution."""

from __future__ import annotations

from typing import Any

from vi_reparam.backend.host import Reader
from vi_reparam.backend.ops import Array
from vi_reparam.backend.registry import ops_of
from vi_reparam.families import Family
from vi_reparam.sites.host_family import family_of
from vi_reparam.sites.wrappers import masked, sum_rightmost

_LOGS_OF = {
    "gamma": "positive",
    "inverse_gamma": "positive",
    "chi2": "positive",
    "beta": "unit_interval",
    "dirichlet": "simplex",
}
"""Families whose draws' logs mean the same, by what they are logarithms of."""


def precise_log_prob(
    reader: Reader, distribution: Any, value: Array, family: Family, logs: tuple[Array, ...] | None
) -> Array:
    """Log density of a model's site at a guide's draw, from the draw's precise logarithms where they fit.

    A draw near the edge of its support is rounded to the edge, its logarithms are not.

    Args:
        value: the draw.
        family: that drew it.
        logs: its logarithms, `vi_reparam.Draw.logs`.
    """
    if logs is None:
        return distribution.log_prob(value)
    wrapping = reader.unwrap(distribution)
    if wrapping is None:
        own, params = family_of(reader, distribution)
        if _LOGS_OF.get(own.name) != _LOGS_OF.get(family.name, "none"):
            return distribution.log_prob(value)
        return own.log_prob(value, *params, logs=logs)
    kind, inside, detail = wrapping
    if kind == "transformed":
        return distribution.log_prob(value)
    log_prob = precise_log_prob(reader, inside, value, family, logs)
    if kind == "masked":
        return masked(detail, log_prob)
    if kind == "independent":
        return sum_rightmost(log_prob, detail)
    if kind == "expanded":
        shape = tuple(value.shape)
        return ops_of(log_prob).xp.broadcast_to(log_prob, shape[: len(shape) - len(distribution.event_shape)])
    return log_prob


def entropy_of(reader: Reader, distribution: Any) -> Array:
    """Entropy in closed form through the wrappers, shape of the batch.

    Raises:
        SiteError: where there is none.
    """
    wrapping = reader.unwrap(distribution)
    if wrapping is None or wrapping.kind == "transformed":
        family, params = family_of(reader, distribution)
        return family.entropy(*params)
    kind, inside, detail = wrapping
    entropy = entropy_of(reader, inside)
    if kind == "masked":
        return masked(detail, entropy)
    if kind == "independent":
        return sum_rightmost(entropy, detail)
    return ops_of(entropy).xp.broadcast_to(entropy, tuple(detail)) if kind == "expanded" else entropy
