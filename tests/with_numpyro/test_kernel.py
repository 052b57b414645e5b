"""The Pallas kernel, in Pallas's interpreter: the numbers of the plain version, and how it is chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import vi_reparam_numpyro as vr
from vi_reparam.backend.kernel_choice import KernelTiming
from vi_reparam_numpyro.sampling import kernels

interpreted = functools.partial(kernels.ratios, interpret=True)


@pytest.mark.parametrize("num", [1, 256, 999, 4_097])  # an odd number, and more than one program
def test_it_makes_the_numbers_of_the_plain_version(num):
    a = jnp.exp(2.0 * jax.random.normal(jax.random.key(1), (num,), jnp.float32))
    key = jax.random.key(5)
    plain = jax.jit(kernels._plain)(key, a)
    np.testing.assert_allclose(
        jax.jit(interpreted)(key, a), plain, rtol=1e-5, atol=1e-6
    )  # w is a sum of terms of order 1


@pytest.mark.parametrize("a", [1e-3, pytest.param(0.5, marks=pytest.mark.slow), 3.0, 1e6])
def test_its_draws_follow_their_law(a):
    a = np.float32(a)
    w = jax.jit(interpreted)(jax.random.key(2), jnp.full((50_000,), a))
    assert stats.kstest(np.asarray(w, float) + np.log(float(a)), stats.loggamma(float(a)).cdf).pvalue > 1e-4


def test_a_lane_does_not_see_the_others():
    a = jnp.exp(jax.random.normal(jax.random.key(0), (2_000,), jnp.float32))
    others = jnp.where(jnp.arange(2_000) % 7 == 0, a, 1e-3)
    draw = jax.jit(interpreted)
    one, two = (draw(jax.random.key(1), x) for x in (a, others))
    np.testing.assert_array_equal(one[::7], two[::7])
    assert not np.any(one == draw(jax.random.key(2), a))


def test_exhaustion_is_reported():
    a = jnp.full((3_000,), 0.7, jnp.float32)
    first, all_ = interpreted(jax.random.key(3), a, most=1), interpreted(jax.random.key(3), a)
    left = jnp.isnan(first)
    assert 0.005 < left.mean() < 0.1 and not jnp.isnan(all_).any()
    np.testing.assert_array_equal(first[~left], all_[~left])


def test_under_vmap_and_for_nothing():
    keys = jax.random.split(jax.random.key(0), 3)
    a = jnp.linspace(0.1, 5.0, 300, dtype=jnp.float32)
    draw = jax.jit(interpreted)
    alone = jnp.stack([draw(key, a) for key in keys])
    np.testing.assert_allclose(jax.jit(jax.vmap(interpreted, (0, None)))(keys, a), alone, rtol=1e-6)
    assert interpreted(keys[0], a.reshape(3, 100)).shape == (3, 100)
    assert interpreted(keys[0], a[:0]).shape == (0,)


def test_it_lowers_for_a_gpu():
    """What the kernel holds is known to the compiler of GPU code, which needs no GPU to say so."""
    traced = jax.jit(kernels.ratios).trace(jax.random.key(0), jnp.ones(10_000, jnp.float32))
    assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU whose kernel runs in the interpreter; the timings are the caller's.

    Which version draws is chosen where a program is traced: give what it draws a shape of its own.
    """

    def pretend(kernel_takes, plain_takes):
        times = iter([kernel_takes, plain_takes])
        monkeypatch.setattr(kernels, "device_kind", lambda: "pretended")
        monkeypatch.setattr(kernels, "CHOICE", KernelTiming("gamma draws", lambda run: next(times)))
        monkeypatch.setattr(kernels, "ratios", lambda key, a: calls.append(1) or interpreted(key, a))
        return calls

    calls = []
    return pretend


@pytest.mark.parametrize(
    ("traced", "faster"),
    [(True, True), (False, False), *(pytest.param(t, not t, marks=pytest.mark.slow) for t in (True, False))],
)
def test_the_faster_one_draws_and_both_draw_the_same(faster, traced, gpu):
    key, a = jax.random.key(4), jnp.linspace(0.1, 5.0, 5_000, dtype=jnp.float32)
    other = a.reshape((1 + faster, 1, -1) if traced else (1 + faster, -1, 1))

    def draw(a):
        return jax.value_and_grad(lambda a: vr.random.gamma(key, a, dtype=jnp.float32).sum())(a)

    value, slope = draw(a)
    calls = gpu(1.0 if faster else 3.0, 2.0)
    found, other_slope = (jax.jit(draw) if traced else draw)(other)
    assert bool(calls) == faster
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(other_slope.reshape(-1), slope, rtol=1e-5)


def test_never_on_a_cpu_for_few_lanes_or_in_double_precision(gpu):
    key = jax.random.key(0)
    assert not kernels.chosen(key, 10**7, jnp.float32)  # a CPU
    calls = gpu(1.0, 2.0)
    vr.random.gamma(key, jnp.ones(103, jnp.float32), dtype=jnp.float32)
    vr.random.gamma(key, jnp.ones(5_003), dtype=jnp.float64)
    vr.random.gamma(jax.random.key(0, impl="rbg"), jnp.ones(5_003, jnp.float32), dtype=jnp.float32)
    assert not calls
    assert kernels.chosen(key, 10**5, jnp.float32)
