"""Which of two ways to the same result is the faster one here, by measurement."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
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


class KernelTiming:
    """Between a plain way and a kernel of our own, timed once for each kind of device and class of size.

    Args:
        what: the work, as a warning names it.
        measure: how long a run takes.
    """

    def __init__(self, what: str, measure: Callable[[Run], float] = seconds) -> None:
        self.what, self.measure = what, measure
        self._found: dict[tuple[str, int], bool] = {}
        self._broken: set[str] = set()

    def kernel(self, device: str, size: int, plain: Callable[[int], Run], kernel: Callable[[int], Run]) -> bool:
        """Whether the kernel is the faster one; False, with one warning, where it fails.

        Args:
            device: its kind.
            size: of the work; sizes between two powers of two are of one class.
            plain: makes a run for a size, called at most once a class; `kernel`: the same.
        """
        if device in self._broken:
            return False
        at = device, size.bit_length()
        if at not in self._found:
            try:
                theirs = self.measure(kernel(size))
            except Exception as error:  # whatever a compiler or a driver has to say, the plain way works
                self._broken.add(device)
                said = f"{self.what}: no kernel on {device}, the plain version serves ({first_line(error)})"
                warnings.warn(said, stacklevel=2)
                return False
            self._found[at] = theirs < self.measure(plain(size))
        return self._found[at]
