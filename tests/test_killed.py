"""Fits that are killed at random moments end, resumed, bit for bit as one that was not: in both backends."""

import importlib.util
import pathlib
import random

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / "benchmarks" / "kills.py"


@pytest.mark.slow  # each fit starts a process; benchmarks/kills.py has all families, and 40 kills
@pytest.mark.parametrize("family", ["MeanField", "Structured", "Escalate"])
@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_a_fit_that_was_killed_ends_as_one_that_was_not(backend, family):
    pytest.importorskip({"numpyro": "jax", "pyro": "torch"}[backend])
    spec = importlib.util.spec_from_file_location("kills", SCRIPT)
    assert spec is not None and spec.loader is not None
    kills = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kills)
    found = kills.case(backend, family, 3, random.Random(0))
    assert found["ended as"] and found["kills"] == 3 and found["fits with other numbers"] == 0
