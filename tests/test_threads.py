"""Small linear algebra runs in one thread, and what the user set is as before afterwards."""

from __future__ import annotations

import importlib
import threading
from typing import Any

import pytest
from threadpoolctl import ThreadpoolController, threadpool_info

from vi_reparam.backend.blas import one_thread
from vi_reparam.backend.data import Data

KEPT = 2


def of_blas() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def two_threads() -> Any:
    with ThreadpoolController().limit(limits=KEPT):
        yield


def test_nested_limits_end_with_the_first_one() -> None:
    with one_thread():
        with one_thread():
            assert of_blas() == {1}
        assert of_blas() == {1}
    assert of_blas() == {KEPT}


def test_another_thread_changes_nothing() -> None:
    seen = []

    def other() -> None:
        with one_thread():
            seen.append(of_blas())

    with one_thread():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert of_blas() == {1}
    assert seen == [{1}]
    assert of_blas() == {KEPT}


def test_a_fit_runs_in_one_thread_and_leaves_what_was_there(vr: Any) -> None:
    seen: list[set[int]] = []
    host = vr.host

    def model(y: Any) -> None:
        seen.append(of_blas())
        mu = host.sample("mu", host.dist.Normal(0.0, 1.0))
        with host.plate("rows", 3):
            host.sample("y", host.dist.Normal(mu, 1.0), obs=y)

    vr.guide(vr.FullRank())(model).fit(host.array([0.1, 0.2, 0.3]), progress=False)
    assert set().union(*seen) == {1}
    assert of_blas() == {KEPT}


def test_torch_takes_one_thread_for_small_data() -> None:
    torch = pytest.importorskip("torch")
    home = importlib.import_module("vi_reparam_pyro.ops.home")

    def threads_with(numbers: int) -> int:
        with home.few_threads(Data((), {}, None, (torch.zeros(numbers),))):
            return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(KEPT)
    try:
        assert (threads_with(home.SMALL), threads_with(home.SMALL + 1)) == (1, KEPT)
        assert torch.get_num_threads() == KEPT
    finally:
        torch.set_num_threads(before)
