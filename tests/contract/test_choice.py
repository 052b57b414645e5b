"""The fastest of several ways is kept, found once a device; one that fails is left out."""

import threading
import time
import warnings

import pytest

from vi_reparam.backend.kernel_choice import FastestWay, seconds


class Clock:
    """Injected timings: how long a run takes is what it returns."""

    def __init__(self):
        self.calls = 0

    def __call__(self, run):
        self.calls += 1
        return run()


def ways(**times):
    return {name: lambda took=took: lambda: took for name, took in times.items()}


def test_the_fastest_is_kept_and_timed_once_a_device():
    clock = Clock()
    choice = FastestWay("draws", clock)
    assert choice.among("gpu", ways(plain=3.0, kernel=1.0, rounds=2.0)) == "kernel"
    assert clock.calls == 3
    assert choice.among("gpu", ways(plain=1.0, kernel=2.0, rounds=2.0)) == "kernel"  # as it was found
    assert clock.calls == 3
    assert choice.among("another gpu", ways(plain=1.0, kernel=2.0)) == "plain"
    assert clock.calls == 5


def test_it_is_timed_in_a_thread_of_its_own_once_for_all_that_ask():
    here, seen, found = threading.get_ident(), [], []

    def measure(run):
        seen.append(threading.get_ident())
        time.sleep(0.02)
        return run()

    choice = FastestWay("draws", measure)
    asking = [
        threading.Thread(target=lambda: found.append(choice.among("gpu", ways(plain=2.0, kernel=1.0)))) for _ in "abc"
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert found == ["kernel"] * 3 and len(seen) == 2 and here not in seen


@pytest.mark.parametrize("when", ["made", "run"])
def test_a_way_that_fails_is_left_out_with_one_warning(when):
    def broken():
        if when == "made":
            raise RuntimeError("no such instruction\nand more")

        def run():
            raise RuntimeError("no such instruction\nand more")

        return run

    choice = FastestWay("draws", Clock())
    given = {**ways(plain=3.0), "kernel": broken, **ways(rounds=2.0)}
    with pytest.warns(UserWarning, match="draws: no kernel on gpu, another way serves \\(no such instruction\\)"):
        assert choice.among("gpu", given) == "rounds"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice.among("gpu", given) == "rounds"


def test_the_plain_way_that_fails_raises():
    with pytest.raises(ZeroDivisionError):
        FastestWay("draws", Clock()).among("gpu", {"plain": lambda: 1 / 0, **ways(kernel=1.0)})


def test_seconds_leaves_out_the_first_run():
    runs = []
    assert 0.0 <= seconds(lambda: runs.append(1), repeats=3) < 1.0
    assert len(runs) == 4
