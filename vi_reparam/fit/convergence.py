"""When a fit is done: steps at a falling rate, until losses and parameters stand still.

At a constant rate the iterates end up walking around the optimum. Once they do (the split R-hat of
their path, and the losses' own noise, say so), their mean is the better estimate; the fit goes on
from it at a smaller rate, and is done when that has converged too (Dhaka et al. 2020; Welandawe et
al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vi_reparam.backend.ops import Array
from vi_reparam.posterior.verdict import loss_drift

RATES = (1.0, 0.2, 0.04)
"""Step sizes, as parts of the optimizer's own."""

SHARES = (0.6, 0.85, 1.0)
"""At most this part of the budget is gone when a rate is left."""

LEAST = (0.5, 0.25, 0.25)
"""Of the least steps of a fit that losses alone judge, which are noisy, the part at each rate."""

FEWEST = (8, 4, 4)
"""Blocks at a rate before it can be left."""

BLOCK = 50
"""Steps between two looks."""

LARGEST_RHAT = 1.1
ENOUGH = 0.9
"""Part of the parameters whose R-hat must be small."""

SMALLEST_FALL = 0.01
"""A fall of the loss, in nats over half of what is looked at, that is not worth more steps."""

_OWN = ("stage", "done", "converged")
_BLOCKS = ("means", "squares", "losses")


@dataclass
class Blocks:
    """The iterates of one rate, a block at a time.

    Attributes:
        means: of the parameters over each block, as vectors.
        squares: means of their squares.
        losses: of every step.
    """

    means: list[Array] = field(default_factory=list)
    squares: list[Array] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def tail(self) -> slice:
        """The later half of the blocks, an even number of them."""
        num = len(self.means)
        return slice(num - 2 * (num // 4), num)

    def mean(self) -> Array:
        """Of the parameters over the tail."""
        kept = self.means[self.tail()] or self.means[-1:]
        return sum(kept) / len(kept)


@dataclass
class Convergence:
    """The course of one fit.

    Args:
        budget: most steps.
        by_losses: judge by the losses alone, where the parameters are a network's.
        least: part of the budget that is spent then at the least.
        falls: steps at which a smaller rate began.
    """

    budget: int
    by_losses: bool = False
    least: float = 0.8
    stage: int = 0
    done: int = 0
    converged: bool = False
    falls: list[int] = field(default_factory=list)
    blocks: Blocks = field(default_factory=Blocks)

    @property
    def rate(self) -> float:
        """The present step size, as a part of the optimizer's own."""
        return RATES[self.stage]

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.stage == len(RATES)

    def state(self) -> dict[str, Any]:
        """Numbers, and lists of numbers and vectors, by name: for `restore`."""
        own = {name: getattr(self, name) for name in (*_OWN, "falls")}
        return own | {f"blocks_{name}": getattr(self.blocks, name) for name in _BLOCKS}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; arrays may stand for its numbers and lists."""
        self.stage, self.done, self.converged = (int(state["stage"]), int(state["done"]), bool(state["converged"]))
        self.falls = [int(step) for step in state["falls"]]
        self.blocks = Blocks(**{name: list(state[f"blocks_{name}"]) for name in _BLOCKS})

    def add(self, losses: Sequence[float], mean: Array, square: Array) -> Array | None:
        """Take note of a block.

        Args:
            losses: of its steps.
            mean: of the parameters over it, shape ``[P]``; `square`: of their squares.

        Returns:
            None to go on; the parameters to go on from (or to end with) when a rate is left.
        """
        self.blocks.means.append(mean)
        self.blocks.squares.append(square)
        self.blocks.losses.extend(float(x) for x in losses)
        self.done += len(losses)
        self.converged = self._has_settled()
        if not self.converged and self.done < SHARES[self.stage] * self.budget:
            return None
        found = self.blocks.mean()
        self.stage += 1
        self.falls += [] if self.finished else [self.done]
        self.blocks = Blocks()
        return found

    def _has_settled(self) -> bool:
        num = len(self.blocks.means)
        fewest = FEWEST[self.stage] if self.by_losses else FEWEST[0]
        if num < fewest or num % 2 or (self.by_losses and BLOCK * num < LEAST[self.stage] * self.least * self.budget):
            return False
        drift = loss_drift(self.blocks.losses, fraction=0.5)
        if drift is None or drift.amount > max(2.0 * drift.error, SMALLEST_FALL):
            return False
        return self.by_losses or self._stand_still()

    def _stand_still(self) -> bool:
        tail = self.blocks.tail()
        means, squares = self.blocks.means[tail], self.blocks.squares[tail]
        half = len(means) // 2
        first, second = sum(means[:half]) / half, sum(means[half:]) / half
        within = (sum(squares[:half]) / half - first**2 + sum(squares[half:]) / half - second**2) / 2.0
        moved = (first - second) ** 2 / 2.0
        live: Any = within > 1e-6 * first**2  # some parameters are constants of the fit, up to rounding
        still = live & (moved <= (LARGEST_RHAT**2 - 1.0) * within)
        return float(still.sum()) >= ENOUGH * float(live.sum())

    def __str__(self) -> str:
        if self.finished:
            return "converged" if self.converged else "out of steps"
        return f"rate {self.stage + 1} of {len(RATES)}"
