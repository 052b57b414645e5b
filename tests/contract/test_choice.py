"""The faster of two ways is kept, found once a device and size class; a kernel that fails is given up."""

import warnings

import pytest

from vi_reparam.backend.kernel_choice import KernelTiming, seconds


class Clock:
    """Injected timings: how long a run takes is what it returns."""

    def __init__(self):
        self.calls = 0

    def __call__(self, run):
        self.calls += 1
        return run()


def taking(time):
    return lambda size: lambda: time


def test_the_faster_one_is_kept_and_timed_once_a_class():
    clock = Clock()
    choice = KernelTiming("draws", clock)
    assert choice.kernel("gpu", 1_000, taking(2.0), taking(1.0))
    assert not choice.kernel("gpu", 5_000, taking(1.0), taking(2.0))
    assert clock.calls == 4
    # As it was found, though it would now come out otherwise: 600 is in the class of 1,000, 8,000 in that of 5,000.
    assert choice.kernel("gpu", 600, taking(1.0), taking(2.0))
    assert not choice.kernel("gpu", 8_000, taking(2.0), taking(1.0))
    assert clock.calls == 4
    assert not choice.kernel("another gpu", 1_000, taking(1.0), taking(2.0))
    assert clock.calls == 6


@pytest.mark.parametrize("when", ["made", "run"])
def test_a_kernel_that_fails_is_given_up_with_one_warning(when):
    def broken(size):
        if when == "made":
            raise RuntimeError("no such instruction\nand more")

        def run():
            raise RuntimeError("no such instruction\nand more")

        return run

    choice = KernelTiming("draws", Clock())
    with pytest.warns(UserWarning, match="draws: no kernel on gpu, the plain version serves \\(no such instruction\\)"):
        assert not choice.kernel("gpu", 1_000, taking(1.0), broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not choice.kernel("gpu", 1_000_000, taking(1.0), broken)


def test_seconds_leaves_out_the_first_run():
    runs = []
    assert 0.0 <= seconds(lambda: runs.append(1), repeats=3) < 1.0
    assert len(runs) == 4
