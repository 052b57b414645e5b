"""Double precision, and no silent broadcasting between arrays of different rank, in every test."""

import contextlib
import gc
import importlib.metadata
import os

import pytest

with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    # The tests compile much and compute little; this emitter makes faster code and takes twice as long to make it.
    # An XLA that does not know a flag stops the process, so only the releases that were tried get it.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers have the cores among them

gc.set_threshold(200_000, 50, 100)  # tracing makes many objects that live on; looking through them takes longer

with contextlib.suppress(ImportError):
    import jax

    jax.config.update("jax_enable_x64", True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Neighbours go to one worker, so that what a file fits or compiles once is not made by every worker."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True)
def strict_rank_promotion():
    """Broadcasting between arrays of different rank is an error."""
    try:
        import jax
    except ImportError:
        yield
        return
    with jax.numpy_rank_promotion("raise"):
        yield
