"""Double precision, and no silent broadcasting between arrays of different rank, in every test."""

import contextlib
import gc
import importlib
import importlib.metadata
import os
import pathlib
import platform
import shutil

import pytest

with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    # The tests compile much and compute little; this emitter makes faster code and takes twice as long to make it.
    # An XLA that does not know a flag stops the process, so only the releases that were tried get it.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

os.environ["VI_REPARAM_CACHE"] = "0"  # the tests have a folder of their own, below

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers have the cores among them

CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache" / platform.node()  # machine code: of this machine only
MOST = 500_000_000  # bytes, above which it is made anew

gc.set_threshold(1_000_000, 50, 100)  # tracing makes many objects that live on; looking through them takes longer
COMPILED = [0]  # since they were last forgotten
MANY = 500  # programs: from some 1,500 on each one more takes twice the time, and at last there is no memory to map

with contextlib.suppress(ImportError):
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    # Compiled programs are kept for the other workers and the next run, in a folder that git ignores.
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # writing a small one costs as much
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    def _count(event, duration, **_):
        COMPILED[0] += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(_count)


def pytest_configure(config):
    """Only where the run begins: its workers share the folder."""
    if hasattr(config, "workerinput") or not CACHE.is_dir():
        return
    if sum(entry.stat().st_size for entry in os.scandir(CACHE)) > MOST:
        shutil.rmtree(CACHE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Neighbours go to one worker, so that what a file fits or compiles once is not made by every worker."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """What was compiled for the files before is forgotten, once it is so much that it makes compiling slow."""
    yield
    if COMPILED[0] > MANY:
        jax.clear_caches()
        gc.collect()
        COMPILED[0] = 0


@pytest.fixture
def few_weights(monkeypatch):
    """Importance weights for tests that look at what is told of them, not at their mean."""
    from vi_reparam.posterior import posterior as figures

    monkeypatch.setattr(figures, "NUM_WEIGHTS", 2_000)
    monkeypatch.setattr(figures, "MIN_WEIGHTS", 200)


@pytest.fixture(params=("numpyro", "pyro"))
def vr(request):
    """The public face of each backend, in double precision."""
    pytest.importorskip({"numpyro": "jax", "pyro": "torch"}[request.param])
    package = importlib.import_module(f"vi_reparam_{request.param}")
    if request.param == "numpyro":
        import jax

        with jax.enable_x64(True):
            yield package
        return
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield package
    torch.set_default_dtype(before)


@pytest.fixture(scope="module", params=["numpyro", "pyro"])
def module_vr(request):
    """The public face of each backend for a whole file, torch in double precision; JAX as the file sets it."""
    vr = pytest.importorskip(f"vi_reparam_{request.param}")
    if request.param == "numpyro":
        yield vr
        return
    torch = importlib.import_module("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield vr
    torch.set_default_dtype(before)


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


@pytest.fixture(params=("numpyro", "pyro"))
def b(request):
    """A backend's package with its host, under short names, in double precision."""
    from test_both_backends import running

    with running(request.param, 64) as made:
        yield made
