"""Ctrl-C during a fit: asked to end, it ends after the steps at hand."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C is only noted; a second one raises KeyboardInterrupt, as ever.

    Yields:
        Whether there was one. Outside of the main thread, and where another handler is set, none is noted.
    """
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
