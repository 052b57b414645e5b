"""Linear algebra in one thread: matrices here are small and many, and more threads mostly wait for each other.

With two of OpenBLAS's threads on a busy machine a fit takes six times as long.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from threadpoolctl import ThreadpoolController

_within = False


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, NumPy's and SciPy's linear algebra run in one thread; afterwards as before.

    Only in the main thread: OpenBLAS takes no number from another one. It takes about a millisecond to find the
    libraries that are loaded.
    """
    global _within
    if _within or threading.current_thread() is not threading.main_thread():
        yield
        return
    with ThreadpoolController().limit(limits=1, user_api="blas"):
        _within = True
        try:
            yield
        finally:
            _within = False
