"""The Pallas kernel: the numbers of the plain version in Pallas's interpreter, and how it is chosen."""

import contextlib
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import vi_reparam_numpyro as vr
from vi_reparam.backend.kernel_choice import FastestWay
from vi_reparam.samplers import LogGamma
from vi_reparam.samplers.base import Attempt
from vi_reparam.samplers.truncated_normal import TruncatedNormalOffset
from vi_reparam.samplers.von_mises import VonMisesDeviation
from vi_reparam_numpyro.ops import kernels, retry
from vi_reparam_numpyro.ops.ops import ops

in_kernel = kernels.accepted


def interpreted(sampler, words, params, most):
    return in_kernel(sampler, words, params, most, interpret=True)


GAMMA = LogGamma()


def attempt(sampler=GAMMA):
    return Attempt(ops, sampler, jnp.float32)


@functools.partial(jax.jit, static_argnames=("sampler", "most"))
def by_kernel(key, *params, sampler=GAMMA, most=2_000):
    return interpreted(sampler, jax.random.key_data(key), params, most)


@functools.partial(jax.jit, static_argnames="way")
def by_rounds(key, a, way):
    return way(attempt(), key, (a,), most=2_000)


def program_for(platform, fn, *args):
    """The program for a CPU or a GPU, as text; JAX 0.11 asks for which GPU."""
    sharding: Any = jax.sharding
    device = contextlib.nullcontext()
    if hasattr(sharding, "AbstractDevice"):
        kind = sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
        device = sharding.use_abstract_mesh(sharding.AbstractMesh((1,), ("x",), abstract_device=kind))
    with device, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls its compiler deprecated too
        return jax.jit(fn).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("num", [1, 256, 999, 9_001])  # an odd number, and more than one program
def test_all_ways_make_the_same_numbers(num):
    a = jnp.exp(2.0 * jax.random.normal(jax.random.key(1), (num,), jnp.float32)).at[num // 2].set(jnp.nan)
    key = jax.random.key(5)
    plain = by_rounds(key, a, retry.compacted)
    assert np.isnan(plain).sum() == 1
    np.testing.assert_array_equal(by_rounds(key, a, retry.whole), plain)
    np.testing.assert_allclose(by_kernel(key, a), plain, rtol=1e-5)


SAMPLERS = {
    "von Mises": (VonMisesDeviation(), (np.linspace(0.1, 50.0, 300),)),
    "truncated normal": (TruncatedNormalOffset(), (np.linspace(-3.0, 3.0, 300), np.linspace(-2.5, 9.0, 300))),
    "gamma, boost 3": (LogGamma(3), (np.geomspace(1e-3, 1e4, 300),)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_other_samplers_go_through_it(name):
    sampler, params = SAMPLERS[name]
    params = tuple(jnp.asarray(p, jnp.float32) for p in params)
    assert kernels.serves(sampler, jnp.float32) and not kernels.serves(sampler, jnp.float64)
    key = jax.random.key(5)
    plain = jax.jit(lambda key, *params: retry.compacted(attempt(sampler), key, params, most=2_000))(key, *params)
    np.testing.assert_allclose(by_kernel(key, *params, sampler=sampler), plain, rtol=1e-5, atol=1e-6)
    whole = functools.partial(in_kernel, sampler, params=params, most=2_000)
    assert kernels.NAME in program_for("cuda", whole, jax.random.key_data(key))


def test_a_sampler_of_ones_own_is_not_put_into_it():
    class Own(LogGamma):
        pass

    assert not kernels.serves(Own(), jnp.float32)


@pytest.mark.parametrize("a", [1e-3, pytest.param(0.5, marks=pytest.mark.slow), 3.0, 1e6])
def test_its_draws_follow_their_law(a, gpu):
    gpu("kernel")
    x = vr.random.log_gamma(jax.random.key(2), jnp.full((50_000,), a, jnp.float32), dtype=jnp.float32)
    assert stats.kstest(np.asarray(x, float), stats.loggamma(float(np.float32(a))).cdf).pvalue > 1e-4


def test_a_lane_does_not_see_the_others():
    a = jnp.exp(jax.random.normal(jax.random.key(0), (2_000,), jnp.float32))
    others = jnp.where(jnp.arange(2_000) % 7 == 0, a, 1e-3)
    one, two = (by_kernel(jax.random.key(1), x) for x in (a, others))
    np.testing.assert_array_equal(one[::7], two[::7])
    assert not np.any(one == by_kernel(jax.random.key(2), a))


def test_exhaustion_is_reported():
    a = jnp.full((3_000,), 0.7, jnp.float32)
    first, all_ = by_kernel(jax.random.key(3), a, most=1), by_kernel(jax.random.key(3), a)
    left = jnp.isnan(first)
    assert 0.005 < left.mean() < 0.1 and not jnp.isnan(all_).any()
    np.testing.assert_array_equal(first[~left], all_[~left])


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU whose kernel runs in the interpreter, and the way that is the fastest there.

    The way is chosen where a program is traced: give what it draws a shape of its own.
    """

    def pretend(fastest, measure=None):
        times = iter([1.0 if name == fastest else 2.0 for name in retry._WAYS])
        monkeypatch.setattr(retry, "GPU", "cpu")
        monkeypatch.setattr(retry, "device_kind", lambda: "pretended")
        monkeypatch.setattr(retry, "CHOICE", FastestWay("draws", measure or (lambda run: next(times))))
        monkeypatch.setattr(kernels, "accepted", lambda *given: calls.append(1) or interpreted(*given))
        return calls

    calls = []
    return pretend


def wrapped(draw):
    """`draw(key, a)` where users call it: the same numbers, shape ``[3, a]``."""
    return {
        "jit": lambda keys, a: jnp.stack([jax.jit(draw)(key, a) for key in keys]),
        "vmap": jax.jit(jax.vmap(draw, (0, None))),
        "scan": jax.jit(lambda keys, a: jax.lax.scan(lambda c, key: (c, draw(key, a)), 0, keys)[1]),
        "grad of a map": lambda keys, a: jax.jit(jax.vmap(lambda key: jax.grad(lambda a: draw(key, a).sum())(a)))(keys),
    }


@pytest.mark.parametrize("place", ["jit", "vmap", "scan", "grad of a map"])
def test_it_is_timed_and_serves_inside_a_trace(place, gpu, monkeypatch):
    keys = jax.random.split(jax.random.key(4), 3)
    a = jnp.linspace(0.1, 5.0, retry.SMALLEST + len(place), dtype=jnp.float32)

    def draw(key, a):
        return vr.random.gamma(key, a, dtype=jnp.float32)

    plain = wrapped(draw)[place](keys, a)
    jax.clear_caches()
    timed = []

    def measure(run):  # really run, and of few lanes: an interpreter is slow
        value, slope = run()
        timed.append((float(value), slope))
        return 1.0 if len(timed) == 3 else 2.0

    calls = gpu("kernel", measure)
    monkeypatch.setattr(retry, "_MEASURED", 512)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = wrapped(draw)[place](keys, a)
    assert len(timed) == 3 and len(calls) >= 2
    for value, slope in timed[1:]:
        assert value == pytest.approx(timed[0][0], rel=1e-4, abs=1e-3)
        np.testing.assert_allclose(slope, timed[0][1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, plain, rtol=2e-5)


@pytest.mark.parametrize("fastest", ["plain loop", "rounds of all lanes"])
def test_another_way_may_be_the_fastest(fastest, gpu):
    a = jnp.linspace(0.1, 5.0, 5_000, dtype=jnp.float32).reshape(-1, len(fastest) - 9)[:, :1]
    plain = vr.random.beta(jax.random.key(0), a, a + 1.0, dtype=jnp.float32)
    jax.clear_caches()
    calls = gpu(fastest)
    a = jnp.broadcast_to(a, (a.shape[0], 1))
    np.testing.assert_array_equal(vr.random.beta(jax.random.key(0), a, a + 1.0, dtype=jnp.float32), plain)
    assert not calls


def test_a_kernel_that_fails_leaves_the_rounds(gpu):
    """As where a later JAX has no such compiler: said once, and the next fastest serves."""
    times = iter([3.0, 2.0])

    def measure(run):
        run()
        return next(times)

    gpu("", measure)
    kernels.accepted = lambda *given: (_ for _ in ()).throw(NotImplementedError("gone"))
    with pytest.warns(UserWarning, match="no kernel on pretended, another way serves \\(gone\\)"):
        assert retry._way(attempt(), jax.random.key(0), 5_000) == "rounds of all lanes"


def test_the_program_for_a_gpu_holds_it(gpu, monkeypatch):
    """Inside jit, vmap, scan and grad; and a program for a CPU made there does not."""
    gpu("kernel")
    monkeypatch.setattr(retry, "GPU", "cuda")
    monkeypatch.setattr(kernels, "accepted", in_kernel)

    def loss(a, key):
        def step(total, key):
            draws = jax.vmap(lambda key: vr.random.gamma(key, a, dtype=jnp.float32))(jax.random.split(key, 2))
            return total + draws.sum(), None

        return jax.lax.scan(step, jnp.float32(0.0), jax.random.split(key, 3))[0]

    given = jax.value_and_grad(loss), jnp.ones(6_001, jnp.float32), jax.random.key(0)
    assert kernels.NAME in program_for("cuda", *given)
    assert kernels.NAME not in program_for("cpu", *given)


def test_never_on_a_cpu_for_few_lanes_or_other_generators(gpu):
    key = jax.random.key(0)
    assert retry._way(attempt(), key, 10**7) == retry.PLAIN  # a CPU, where no time is taken
    calls = gpu("kernel")
    vr.random.gamma(key, jnp.ones(103, jnp.float32), dtype=jnp.float32)
    vr.random.gamma(key, jnp.ones(5_003), dtype=jnp.float64)
    vr.random.gamma(jax.random.key(0, impl="rbg"), jnp.ones(5_003, jnp.float32), dtype=jnp.float32)
    assert not calls
    assert retry._way(attempt(), key, 10**5) == "kernel"
