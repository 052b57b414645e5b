"""Ctrl-C in a study ends it: its rows would compare a fit that was cut off with whole ones."""

from __future__ import annotations

from typing import TypeVar

P = TypeVar("P")


def ended(posterior: P) -> P:
    """A posterior whose fit ended by itself.

    Raises:
        KeyboardInterrupt: for one that was interrupted.
    """
    why = getattr(posterior, "record", {}).get("interrupted")
    if why:
        raise KeyboardInterrupt(why)
    return posterior
