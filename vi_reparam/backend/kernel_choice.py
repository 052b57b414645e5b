"""Which of several ways to the same result is the fastest here, by measurement."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vi_reparam.errors import first_line

Run = Callable[[], Any]


def seconds(run: Run, repeats: int = 5) -> float:
    """The shortest time of a few, after one that compiles; `run` returns when its work is done."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


class FastestWay:
    """Between a plain way and others, timed once for each kind of device as long as the process lives.

    It may be asked inside a trace, a transform or a mode of a framework. These are a thread's own, so the runs are
    timed in a thread of theirs, where there is none.

    Args:
        what: the work, as a warning names it.
        measure: how long a run takes.
    """

    def __init__(self, what: str, measure: Callable[[Run], float] = seconds) -> None:
        self.what, self.measure = what, measure
        self._found: dict[str, str] = {}
        self._lock = threading.Lock()

    def among(self, device: str, ways: Mapping[str, Callable[[], Run]]) -> str:
        """The name of the fastest way; one that fails is left out, with one warning.

        Args:
            device: its kind.
            ways: what makes a run, by name; the first is the plain one, which must not fail.
        """
        with self._lock:
            if device not in self._found:
                with ThreadPoolExecutor(1) as thread:
                    times = {name: thread.submit(self._timed, make).result() for name, make in ways.items()}
                plain, *_ = times
                for name, took in times.items():
                    if isinstance(took, Exception) and name == plain:
                        raise took
                    if isinstance(took, Exception):
                        said = f"{self.what}: no {name} on {device}, another way serves ({first_line(took)})"
                        warnings.warn(said, stacklevel=2)
                done = {name: took for name, took in times.items() if not isinstance(took, Exception)}
                self._found[device] = min(done, key=lambda name: done[name])
            return self._found[device]

    def _timed(self, make: Callable[[], Run]) -> float | Exception:
        try:
            return self.measure(make())
        except Exception as error:  # whatever a compiler or a driver has to say, another way works
            return error
