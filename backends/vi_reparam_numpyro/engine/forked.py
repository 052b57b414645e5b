"""JAX's threads do not survive a fork: what waits for them waits for ever."""

from __future__ import annotations

import os

from jax._src import xla_bridge

from vi_reparam.errors import BackendError

_FORKED: list[bool] = []


def refuse_fork() -> None:
    """Refuse to run in a process that was forked after JAX had started.

    Raises:
        BackendError: saying what to do.
    """
    if _FORKED:
        raise BackendError(
            "this process was forked after JAX had started, and JAX would wait for threads that are not here: start "
            "processes with multiprocessing.get_context('spawn')"
        )


def _note() -> None:
    if xla_bridge.backends_are_initialized():
        _FORKED.append(True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note)
