"""Many vectors scored a part at a time, so that memory holds them, by one compiled program."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def by_parts(run: Callable[[np.ndarray], tuple[np.ndarray, ...]], rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Each array of ``run(rows)``, in float64, from parts of `count` rows: all of one shape, the last row repeated.

    Args:
        rows: shape ``[N, D]``, N at least 1.
    """
    lacking = -len(rows) % count
    whole = np.concatenate([rows, np.repeat(rows[-1:], lacking, axis=0)]) if lacking else rows
    found = [run(whole[i : i + count]) for i in range(0, len(whole), count)]
    return [np.concatenate(x).astype(np.float64, copy=False)[: len(rows)] for x in zip(*found, strict=True)]
