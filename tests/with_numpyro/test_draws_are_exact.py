"""Ten million draws at a time against their law: what a quick test cannot see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import vi_reparam_numpyro as vr

NUM = 10_000_000
SINGLE = (1e-3, 1e-2, 0.1, 0.5, 0.999, 1.0, 1.5, 3.0, 30.0, 1e3)
CASES = [(a, jnp.float32) for a in SINGLE] + [(a, jnp.float64) for a in (1e6, 1e8)]


def anderson_darling(p, rest):
    """The statistic A^2 of sorted uniforms p, with 1 - p as given."""
    i = np.arange(1, p.size + 1)
    return -p.size - np.mean((2 * i - 1) * (np.log(p) + np.log(rest[::-1])))


def log_law(a, log_z):
    """Distribution function of log z and its complement; for small z by the first terms of its series."""
    z = np.exp(log_z)
    tiny = np.exp(np.clip(a * log_z - special.gammaln(a + 1.0), None, 0.0))
    p = np.where(log_z < -20.0, tiny * (1.0 - a * z / (a + 1.0)), special.gammainc(a, z))
    return p, np.where(log_z < -20.0, 1.0 - p, special.gammaincc(a, z))


@pytest.mark.slow
@pytest.mark.parametrize(("a", "dtype"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_ten_million_log_draws(a, dtype):
    draw = jax.jit(functools.partial(vr.random.log_gamma, a=a, shape=(NUM,), dtype=dtype))
    a = float(np.dtype(dtype).type(a))
    log_z = np.sort(np.asarray(draw(jax.random.key(17)), float))
    mean, variance = special.digamma(a), special.polygamma(1, a)
    assert abs(log_z.mean() - mean) < 4.0 * np.sqrt(variance / NUM) + 2e-8 * abs(mean)
    fourth = special.polygamma(3, a) + 3.0 * variance**2
    assert abs(log_z.var() - variance) < 4.0 * np.sqrt((fourth - variance**2) / NUM)
    p, rest = log_law(a, log_z)
    steps = np.arange(NUM + 1) / NUM
    distance = max(np.max(steps[1:] - p), np.max(p - steps[:-1]))
    assert stats.kstwobign.sf(distance * np.sqrt(NUM)) > 1e-4
    # The probability of an A^2 above 8.1 is 1e-4 (Marsaglia and Marsaglia 2004).
    assert anderson_darling(p, rest) < 8.1


@pytest.mark.slow
@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_ten_million_of_the_noise(law):
    from vi_reparam_numpyro.ops import noise

    x = np.sort(np.asarray(getattr(noise, law)(jax.random.key(23), (NUM,), jnp.float32), float))
    p, rest = (special.ndtr(x), special.ndtr(-x)) if law == "normal" else (x, 1.0 - x + 2.0**-33)
    steps = np.arange(NUM + 1) / NUM
    distance = max(np.max(steps[1:] - p), np.max(p - steps[:-1]))
    assert stats.kstwobign.sf(distance * np.sqrt(NUM)) > 1e-4
    assert anderson_darling(p, rest) < 8.1
