"""One-sided tails: moments, densities and slopes of the bend against quadrature, by both backends' arrays."""

import math

import numpy as np
import pytest
from harness import BACKENDS, ops_or_skip
from scipy.special import gammaln, log_ndtr
from scipy.stats import gamma, norm

from vi_reparam.gaussians.skew import match, skew

RAWS = (-3.0, -0.4, 0.0, 0.7, 2.0)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(150)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def at(ops, x, raw, dtype="float64"):
    kind = getattr(ops.xp, dtype)
    x, raw = np.broadcast_arrays(x, raw)
    found = skew(ops, ops.xp.asarray(x.copy(), dtype=kind), ops.xp.asarray(raw.copy(), dtype=kind))
    return [np.asarray(part) for part in found]


@pytest.mark.parametrize("raw", RAWS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_keeps_mean_and_variance_and_knows_its_slopes(backend, raw):
    ops = ops_or_skip(backend)
    value, log_slope, bend = at(ops, NODES, raw)
    assert abs((WEIGHTS * value).sum()) < 1e-10
    assert abs((WEIGHTS * value**2).sum() - 1.0) < 1e-10
    inner, step = np.linspace(-6.0, 6.0, 41), 1e-4
    (low, log_low, _), (high, log_high, _) = at(ops, inner - step, raw), at(ops, inner + step, raw)
    _, log_slope, bend = at(ops, inner, raw)
    np.testing.assert_allclose(np.exp(log_slope), (high - low) / (2.0 * step), rtol=1e-6)
    np.testing.assert_allclose(bend, (log_high - log_low) / (2.0 * step), atol=1e-6)
    if raw == 0.0:
        np.testing.assert_allclose(at(ops, NODES, raw)[0], NODES, rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_ends_at_the_exponential(backend):
    """log U of a uniform U, standardized, to the left; and mirrored to the right."""
    x = np.linspace(-8.0, 3.0, 23)
    np.testing.assert_allclose(at(ops_or_skip(backend), x, 30.0)[0], log_ndtr(x) + 1.0, rtol=1e-10)
    np.testing.assert_allclose(at(ops_or_skip(backend), -x, -30.0)[0], -log_ndtr(x) - 1.0, rtol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_precision_is_finite_far_out(backend):
    ops = ops_or_skip(backend)
    x, raw = (a.ravel() for a in np.meshgrid(np.linspace(-30.0, 30.0, 61), [-20.0, -3.0, -1e-4, 0.0, 0.3, 8.0, 20.0]))
    single, double = at(ops, x, raw, "float32"), at(ops, x, raw)
    assert all(np.isfinite(part).all() for part in single)
    near = np.abs(x) <= 8.0
    for one, other in zip(single, double, strict=True):
        np.testing.assert_allclose(one[near], other[near], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("concentration", [0.05, 0.3, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_match_is_near_the_logarithm_of_a_gamma(backend, concentration):
    """The divergence of what L-moments of exact quantiles give, by quadrature, beside the best normal's."""
    ops = ops_or_skip(backend)
    levels = (np.arange(4_000) + 0.5) / 4_000
    quantiles = np.log(np.maximum(gamma(concentration).ppf(levels), 1e-300))
    tiny = levels < 0.5 * gamma(concentration).cdf(1e-3)
    quantiles[tiny] = (np.log(levels[tiny]) + gammaln(concentration + 1.0)) / concentration  # where ppf underflows

    def divergence(location, scale, raw):
        g, log_slope, _ = at(ops, NODES, raw)
        y = location + scale * g
        log_q = norm.logpdf(NODES) - log_slope - math.log(scale)
        return (WEIGHTS * (log_q - concentration * y + np.exp(y) + gammaln(concentration))).sum()

    def matched(draws, mask):
        found = match(ops, ops.xp.asarray(draws[:, None]), ops.xp.asarray(np.array([mask])))
        return [float(part[0]) for part in found]

    location, scale, raw = matched(quantiles, 1.0)
    assert raw > 0.0
    assert -1e-9 < divergence(location, scale, raw) < 0.015
    if concentration < 1.0:
        assert divergence(*matched(quantiles, 0.0)) > 0.2
    np.testing.assert_allclose(matched(-quantiles, 1.0), [-location, scale, -raw], rtol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_match_finds_what_made_the_draws(backend):
    """Its L-moments are in closed form: quantiles of the bend itself give it back."""
    ops = ops_or_skip(backend)
    levels = (np.arange(200_000) + 0.5) / 200_000
    for raw in (-1.5, -0.3, 0.0, 0.8):
        draws = 3.0 + 2.0 * at(ops, norm.ppf(levels), raw)[0]
        found = match(ops, ops.xp.asarray(draws[:, None]), ops.xp.asarray(np.ones(1)))
        np.testing.assert_allclose([float(p[0]) for p in found], [3.0, 2.0, raw], atol=2e-4)


def test_draws_that_are_all_the_same_have_a_scale():
    ops = ops_or_skip("numpyro")
    location, scale, raw = match(ops, ops.xp.full((9, 1), 2.0), ops.xp.ones(1))
    assert float(location[0]) == 2.0 and 0.0 < float(scale[0]) < 1e-4 and float(raw[0]) == 0.0
