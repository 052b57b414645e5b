"""Fits beside each other, in forked processes, and of many or large shapes: in both backends."""

import gc
import os
import select
import threading
import types
import weakref

import numpy as np
import pytest
from test_both_backends import mean_field, number

from vi_reparam import checks
from vi_reparam.backend.cache import Cache

OPTIONS = {"num_steps": 60, "num_particles": 2, "progress": False}
X = np.linspace(0.0, 1.0, 9)


def slope(b):
    def model(x, y=None):
        a = b.host.sample("a", b.dist.Normal(b.array(0.0), b.array(5.0)))
        s = b.host.sample("s", b.dist.HalfNormal(b.array(5.0)))
        with b.host.plate("n", len(x)):
            b.host.sample("y", b.dist.Normal(a * x, s), obs=y)

    return model


def level(b):
    def model(x, y=None):
        c = b.host.sample("c", b.dist.Gamma(b.array(2.0), b.array(1.0)))
        with b.host.plate("m", len(x)):
            b.host.sample("y", b.dist.Normal(c * x, b.array(1.0)), obs=y)

    return model


def in_threads(*calls):
    """What they give, called at the same time; what one raises is raised."""
    found, errors = [None] * len(calls), []
    barrier = threading.Barrier(len(calls))

    def work(i):
        try:
            barrier.wait()
            found[i] = calls[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error
    return found


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "which",
    [pytest.param("two models", marks=SLOW), pytest.param("one model", marks=SLOW), "one guided model, other data"],
)
def test_fits_in_two_threads_give_what_they_give_alone(b, which):
    families = ("MeanField", "FullRank")
    makes = (slope, level if which == "two models" else slope)

    def calls():
        guided = [b.vr.guide(getattr(b.vr, f)())(make(b)) for make, f in zip(makes, families, strict=True)]
        if which == "one guided model, other data":
            guided[1] = guided[0]
        data = [b.array(X), b.array(X if which == "one model" else X[:5])]
        return [lambda g=g, x=x: g.fit(x, y=2.0 * x, **OPTIONS).losses for g, x in zip(guided, data, strict=True)]

    alone = [call() for call in calls()]
    for one, other in zip(in_threads(*calls()), alone, strict=True):
        np.testing.assert_array_equal(one, other)


@SLOW
def test_predictions_and_a_fit_in_threads(b):
    posterior = mean_field(b, slope(b)).fit(b.array(X), y=b.array(X), **OPTIONS)
    other = mean_field(b, level(b))

    def calls():
        yield lambda: number(posterior.predict(b.array(X[:4]), num_draws=20)["y"])
        yield lambda: np.array(posterior.elbo(50))
        yield lambda: other.fit(b.array(X), y=b.array(X), **OPTIONS).losses

    alone = [call() for call in calls()]
    for one, before in zip(in_threads(*calls()), alone, strict=True):
        np.testing.assert_array_equal(one, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("what", ["fit", pytest.param("draws", marks=SLOW), pytest.param("predict", marks=SLOW)])
def test_a_forked_process_works_or_is_refused_in_one_line(b, what):
    guided = mean_field(b, slope(b))
    posterior = guided.fit(b.array(X), y=b.array(X), **OPTIONS)
    call = {
        "fit": lambda: guided.fit(X, y=X, **OPTIONS).losses,
        "draws": lambda: number(posterior.draws(3)["a"]),
        "predict": lambda: number(posterior.predict(X, num_draws=2)["y"]),
    }[what]
    expected = call()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = "same" if np.array_equal(call(), expected) else "other"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    try:
        ready, _, _ = select.select([reading], [], [], 60.0)
        said = os.read(reading, 10_000).decode() if ready else "nothing: it hangs"
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
    if b.name == "pyro":
        assert said == "same"
    else:
        assert said.startswith("BackendError: this process was forked after JAX had started") and "'spawn'" in said
        assert len(said) <= 300 and "\n" not in said


def releases(monkeypatch, after):
    """A list that grows each time JAX lets go of what it traced, which it does after so many compilations.

    Its memory must go back to the system each time: 100 fits held 1.4 GB of which 1 GB were fragments.
    """
    module = __import__("vi_reparam_numpyro.engine.engine", fromlist=["engine"])
    found, clear = [], module.jax.clear_caches
    monkeypatch.setattr(module, "RELEASE", after)
    trimmed = types.SimpleNamespace(malloc_trim=lambda _: found.append(clear()))
    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: trimmed)
    return found


@SLOW
def test_what_was_compiled_for_old_shapes_is_forgotten(b, monkeypatch):
    module = __import__(f"vi_reparam_{b.name}.engine.engine", fromlist=["Program"])
    made, kept = [], module.Program

    class Noted(kept):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(weakref.ref(self))

    monkeypatch.setattr(module, "Program", Noted)
    cleared = []
    if b.name == "numpyro":
        monkeypatch.setattr(b.vr.Guided.backend.engine, "programs", Cache(2))
        cleared = releases(monkeypatch, 8)
    guided = mean_field(b, slope(b))
    for size in (3, 4, 5, 6, 7):
        guided.fit(b.array(X[:size]), y=b.array(X[:size]), num_steps=2, num_particles=1, progress=False)
    gc.collect()
    assert len(made) == 5 and sum(program() is not None for program in made) <= 2
    assert bool(cleared) is (b.name == "numpyro")


@pytest.mark.parametrize("family", ["FullRank()", "LowRank(rank=4)", "Flow()", "SDE()", "Flow(kind='coupling')"])
def test_a_family_that_would_not_fit_into_memory_is_refused_before_it_is_tried(b, monkeypatch, family):
    def model():
        with b.host.plate("n", 2_000):
            b.host.sample("z", b.dist.Normal(b.array(np.zeros(2_000)), b.array(1.0)))

    monkeypatch.setattr(checks, "free_memory", lambda: 100_000)
    spec = eval(f"vr.{family}", {"vr": b.vr})
    with pytest.raises(
        b.vr.SiteError, match=r"over 2,000 coordinates would hold about .* GB are free: use vr\."
    ) as caught:
        b.vr.guide(spec)(model).fit(progress=False)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def test_a_flow_over_very_many_is_refused(b):
    """17 GB were taken before, without a word."""

    def model():
        with b.host.plate("n", 500_000):
            b.host.sample("z", b.dist.Normal(b.array(np.zeros(500_000)), b.array(1.0)))

    with pytest.raises(b.vr.SiteError, match="over 500,000 coordinates would hold about 2,"):
        b.vr.guide(b.vr.Flow())(model).fit(progress=False)
    assert checks.free_memory() > 10**8
