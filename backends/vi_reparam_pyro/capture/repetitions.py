"""Where a sequence repeats itself, turn after turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LONGEST = 2_000
"""Operations of a turn above which it is not looked for."""

FEWEST = 4
"""Turns below which nothing is gained."""

SMALLEST = 10
"""Operations of a turn below which a call costs what they do."""


@dataclass(frozen=True)
class Repetition:
    """``count`` turns of `period` operations each, from the operation number `start` on."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        """The number of the first operation after it."""
        return self.start + self.period * self.count

    def turns(self) -> list[range]:
        """The operations of each turn."""
        starts = range(self.start, self.stop, self.period)
        return [range(start, start + self.period) for start in starts]


def repetitions(tokens: Sequence[int]) -> list[Repetition]:
    """The longest stretch of equal turns, and the longest before and after it and so on, in order."""
    left, found = [(0, np.asarray(tokens))], []
    while left:
        offset, some = left.pop()
        best = _longest(some)
        if best is None:
            continue
        found.append(Repetition(best.start + offset, best.period, best.count))
        left += [(offset, some[: best.start]), (offset + best.stop, some[best.stop :])]
    return sorted(found, key=lambda r: r.start)


def _longest(tokens: Any) -> Repetition | None:
    """That of the most operations; of the shortest period if there are several."""
    best = None
    for period in range(SMALLEST, min(LONGEST, len(tokens) // FEWEST) + 1):
        differs = np.flatnonzero(tokens[:-period] != tokens[period:])
        ends = np.concatenate(([-1], differs, [len(tokens) - period]))
        lengths = np.diff(ends) - 1
        at = int(np.argmax(lengths))
        found = Repetition(int(ends[at]) + 1, period, int(lengths[at]) // period + 1)
        longer = best is None or found.count * period > best.count * best.period
        if found.count >= FEWEST and longer:
            best = found
    return best
