"""What is taken from each scored draw. They stay the same objects from call to call, so that each compiles once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.backend.registry import ops_of
from vi_reparam.errors import ArgumentError, short
from vi_reparam.posterior.sites import Scored
from vi_reparam.posterior.summary import ROWS_PER_SITE


@dataclass(frozen=True)
class Expect:
    """Applies a function to a draw; equal for equal functions, so that it compiles once."""

    fn: Callable
    with_latents: bool = False

    def __call__(self, scored: Scored) -> tuple[Any, Array, dict[str, Array]]:
        given = values_of(scored)
        try:
            found = self.fn(given)
        except KeyError as error:
            if not error.args or error.args[0] in given:
                raise
            there = ", ".join(map(str, given))[:150]
            raise ArgumentError(
                f"expectation: fn asks for {short(error.args[0])}, and the sites are: {there}"
            ) from None
        _require_numbers(found, ops_of(scored.log_p))
        return found, scored.log_p - scored.log_q, scored.latents if self.with_latents else {}


@dataclass(frozen=True)
class Groups:
    """What an InferenceData holds of a draw: a dict by group, of dicts by site.

    Attributes:
        log_likelihood: whether it holds this, element by element; `log_prior`: the same.
    """

    log_likelihood: bool
    log_prior: bool

    def __call__(self, scored: Scored) -> dict[str, dict[str, Array]]:
        return {
            "posterior": values_of(scored),
            "sample_stats": {"lp": scored.log_p, "log_q": scored.log_q},
            "log_likelihood": scored.log_likelihood if self.log_likelihood else {},
            "log_prior": scored.log_prior() if self.log_prior else {},
        }


def _require_numbers(found: Any, ops: Ops) -> None:
    leaves = ops.tree_leaves(found)
    for leaf in leaves or [None]:
        numbers = isinstance(leaf, Real | np.bool_) or hasattr(leaf, "dtype")
        if not numbers or "complex" in str(getattr(leaf, "dtype", "")):
            raise ArgumentError(
                f"expectation: fn returned {short(leaf)}: expected real numbers, an array, or a tuple or dict of some"
            )


def values_of(scored: Scored) -> dict[str, Array]:
    """Latents and deterministic sites."""
    return {**scored.latents, **scored.deterministics}


def with_log_weight(scored: Scored) -> tuple[dict[str, Array], Array]:
    """The same, and the log weight."""
    return values_of(scored), scored.log_p - scored.log_q


def with_densities(scored: Scored) -> tuple[dict[str, Array], Array, Array, dict[str, Array]]:
    """The latents, and what `densities` takes."""
    return scored.latents, *densities(scored)


def densities(scored: Scored) -> tuple[Array, Array, dict[str, Array]]:
    """log p, log q and the first values of each site, which tables and pictures show: one compilation serves all."""
    heads = {}
    for name, value in values_of(scored).items():
        flat = value.reshape(-1)
        heads[name] = flat if flat.shape[0] <= ROWS_PER_SITE else flat[: ROWS_PER_SITE - 2]
    return scored.log_p, scored.log_q, heads
