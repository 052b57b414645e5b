"""The implicit derivative of a gamma draw, against quadrature."""

import numpy as np
import pytest
from harness import BACKENDS, ops_or_skip, quickly
from scipy import special, stats

from vi_reparam.numerics.gamma_slope import log_slope

# Stated in the docstring of `log_slope`.
BOUNDS = {"float32": 1e-5, "float64": 1e-10}
LARGEST = {"float32": 1e6, "float64": 1e8}
BELOW = {"float32": -60.0, "float64": -600.0}


def exact(w, a, num=801):
    """An exp-sinh rule on the incomplete gamma integral of the tail in which the draw lies.

    Lower tail: INT_0^inf exp(-a u + z (1 - e^-u)) (psi(a) - log z + u) du; the upper is its twin.
    """
    t = np.linspace(-4.5, 4.5, num)
    node = np.exp(0.5 * np.pi * np.sinh(t))
    weight = node * 0.5 * np.pi * np.cosh(t) * (t[1] - t[0])
    out = np.empty_like(w)
    for i in range(0, w.size, 2_000):
        wi, ai = w[i : i + 2_000, None], a[i : i + 2_000, None]
        z = ai * np.exp(wi)
        side, rate = np.sign(wi), ai * np.abs(np.expm1(wi))
        unit = 2.0 / (rate + np.sqrt(rate**2 + 2.0 * z))
        u = unit * node
        x = np.clip(side * u, None, 300.0)  # the decay is zero long before
        near = x**2 / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6))))
        decay = np.exp(-rate * u - z * np.where(np.abs(x) < 1e-3, near, np.expm1(x) - x))
        large = np.maximum(ai, 50.0)
        far = -1 / (2 * large) - 1 / (12 * large**2) + 1 / (120 * large**4) - 1 / (252 * large**6)
        centre = np.where(ai > 50.0, far, special.digamma(ai) - np.log(ai)) - wi
        out[i : i + 2_000] = (unit * weight * decay * np.where(decay > 0.0, u - side * centre, 0.0)).sum(1)
    return out


def pairs(num, dtype, seed):
    """Concentrations over all orders of magnitude; half draws, half evenly from -6 to 6 deviations."""
    rng = np.random.default_rng(seed)
    a = np.exp(rng.uniform(np.log(1e-3), np.log(LARGEST[dtype]), num)).astype(dtype).astype(float)
    drawn = np.log(rng.gamma(a + 1.0)) + np.log(rng.uniform(size=num)) / a
    p = special.log_ndtr(rng.uniform(-6.0, 6.0, num))
    body = special.gammaincinv(a + 1.0, np.exp(p))
    tail = np.log(np.maximum(body, 1e-300)) + np.log(rng.uniform(size=num) ** 4) / a
    log_z = np.clip(np.where(rng.uniform(size=num) < 0.5, drawn, tail), BELOW[dtype], None)
    return (log_z - np.log(a)).astype(dtype).astype(float), a


def ours(ops, w, a, dtype):
    kind = getattr(ops.xp, dtype)
    program = quickly(ops, log_slope, optimized=True)
    return np.asarray(program(ops.xp.asarray(w, dtype=kind), ops.xp.asarray(a, dtype=kind)), float)


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [
        # the mathematics is the same in both: in double precision once is enough for every day
        pytest.param(d, b, id=f"{d}-{b}", marks=pytest.mark.slow if (d, b) == ("float64", "numpyro") else ())
        for d in BOUNDS
        for b in BACKENDS
    ],
)
def test_within_its_stated_error(backend, dtype):
    ops = ops_or_skip(backend)
    w, a = pairs(100_000 if backend == "numpyro" else 20_000, dtype, seed=1)
    error = np.abs(ours(ops, w, a, dtype) / exact(w, a) - 1.0)
    worst = error.argmax()
    assert error[worst] < BOUNDS[dtype], (a[worst], w[worst])
    few = slice(0, 64)  # a short array takes another way through the nodes
    np.testing.assert_allclose(ours(ops, w[few], a[few], dtype), exact(w[few], a[few]), rtol=BOUNDS[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_what_a_draw_is_given_has_that_error_too(backend, dtype):
    """A backend may have a way of its own through the same integral; a draw's derivative is what it gives."""
    ops = ops_or_skip(backend)
    w, a = pairs(20_000, dtype, seed=2)
    kind = getattr(ops.xp, dtype)
    for rows in (slice(None), slice(0, 5)):
        held, moving = (ops.xp.asarray(x[rows], dtype=kind) for x in (w, a))
        if backend == "numpyro":
            import jax

            one = jax.grad(lambda a, held=held: ops.with_slope(held, a, log_slope).sum())
            slope = jax.jit(one)(moving)
        else:
            moving.requires_grad_()
            ops.with_slope(held, moving, log_slope).sum().backward()
            slope = moving.grad
        error = np.abs(np.asarray(slope, float) / exact(w[rows], a[rows]) - 1.0)
        worst = error.argmax()
        assert error[worst] < BOUNDS[dtype], (a[rows][worst], w[rows][worst])


def test_the_reference_is_right():
    """At concentration 1, F = 1 - exp(-z); and by scipy's quantiles, differentiated numerically."""
    z = np.array([0.01, 0.5, 0.99, 1.01, 3.0, 20.0])
    one = np.ones_like(z)
    # -dF/da at a = 1, from the derivative of the upper incomplete gamma: by a difference of scipy's quantile.
    for a, points, rtol in ((1.0, z, 1e-7), (30.0, 30.0 * np.array([0.3, 0.9, 1.1, 2.0]), 1e-7)):
        a = a * np.ones_like(points)
        h = 1e-4 * a
        d = stats.gamma(a)
        low = points < a
        with np.errstate(all="ignore"):
            up = np.where(low, special.gammaincinv(a + h, d.cdf(points)), special.gammainccinv(a + h, d.sf(points)))
            down = np.where(low, special.gammaincinv(a - h, d.cdf(points)), special.gammainccinv(a - h, d.sf(points)))
        np.testing.assert_allclose(exact(np.log(points / a), a), np.log(up / down) / (2 * h), rtol=rtol)
    assert np.all(exact(np.log(z), one) > 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("a", [1e-3, 0.1, 1.0, 10.0, 1e5])
def test_mean_slope_is_trigamma_by_quadrature(backend, a):
    """d/da E[log z] = E[d log z / da], whose exact value is trigamma(a): the bias, with no sampling error."""
    ops = ops_or_skip(backend)
    for dtype in BOUNDS:
        a = float(np.dtype(dtype).type(a))
        # Log z over the whole law, by the midpoints of 40,000 equal steps.
        spread = np.sqrt(special.polygamma(1, a))
        low, high = special.digamma(a) - 40.0 * spread, special.digamma(a) + 12.0 * spread
        log_z = np.linspace(low, min(high, np.log(a + 40.0 * np.sqrt(a) + 60.0)), 40_001)
        w = (log_z - np.log(a)).astype(dtype).astype(float)
        density = np.exp(stats.loggamma(a).logpdf(w + np.log(a)))
        step = np.gradient(w)
        slope = ours(ops, w, np.full_like(w, a), dtype)
        mean = np.sum(density * slope * step) / np.sum(density * step)
        assert abs(mean / special.polygamma(1, a) - 1.0) < 1e-4, dtype
