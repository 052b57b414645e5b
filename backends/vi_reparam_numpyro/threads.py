"""Threads that XLA computes with on a CPU."""

from __future__ import annotations

import os

FEWEST = 8


def enough() -> None:
    """Ask for more threads on small machines, unless told; it counts before JAX first computes.

    Several batched matrix factorizations at once each take a thread of XLA's pool and wait there for their parts, which
    wait for a thread. On two cores that lasts for ever (JAX 0.10; seen within some hundred calls of two batched
    Cholesky factors, never with eight threads).
    """
    if 1 < (os.cpu_count() or 1) < FEWEST:
        os.environ.setdefault("NPROC", str(FEWEST))
