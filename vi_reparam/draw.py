"""A draw: a value, its log density, and what its gradient still owes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vi_reparam.backend.ops import Array


@dataclass(frozen=True)
class Branch:
    """One side of a measure-valued derivative.

    Attributes:
        value: an alternative value of the draw, shape of the draw's value.
        weight: shape of the draw's log_prob; its value is zero and its gradient multiplies the
            downstream cost at `value`.
    """

    value: Array
    weight: Array


@dataclass(frozen=True)
class Draw:
    """What a family and an estimator make of noise.

    Attributes:
        value: the draw, shape ``batch + event``, on the natural scale. Positive values are
            clipped at the smallest normal number; their gradient is that of the unclipped draw.
        log_prob: log density of the draw, shape ``batch``, computed from its most precise
            coordinate rather than from the clipped `value`.
        score_term: None for a fully pathwise draw; else, shape ``batch``, a term whose gradient
            multiplies the downstream cost (`identities.surrogate`).
        branches: pairs of alternatives of a measure-valued draw; empty for all others.
        noise: the accepted noise, where the family has a rejection sampler.
        logs: precise logarithms of the value: ``(log z,)`` on the positives, ``(log x,
            log(1 - x))`` on the unit interval, ``(log x,)`` on the simplex, ``(log |t|,)`` on
            the reals; None where the value itself is precise.
    """

    value: Array
    log_prob: Array
    score_term: Array | None = None
    branches: tuple[Branch, ...] = ()
    noise: Any = None
    logs: tuple[Array, ...] | None = None

    @property
    def is_pathwise(self) -> bool:
        """Whether `value` alone carries the whole gradient."""
        return self.score_term is None and not self.branches
