"""Draws follow their law, and densities and entropies are scipy's."""

import functools

import numpy as np
import pytest
from harness import BACKENDS, ops_or_skip, quickly
from scipy import special, stats

from vi_reparam import Implicit, Rejection, ScoreFunction, SiteError, load
from vi_reparam.families import FAMILIES

INF = np.inf


def _truncated(loc, scale, low, high):
    return stats.truncnorm((low - loc) / scale, (high - loc) / scale, loc, scale)


CONTINUOUS = [
    ("normal", (0.3, 1.7), stats.norm),
    *(("gamma", (a, 0.7), lambda a, b: stats.gamma(a, scale=1 / b)) for a in (0.1, 1.0, 3.0, 1e4)),
    *(("inverse_gamma", (a, 0.7), lambda a, b: stats.invgamma(a, scale=b)) for a in (0.4, 3.0)),
    ("chi2", (3.0,), stats.chi2),
    *(("beta", p, stats.beta) for p in ((0.3, 0.4), (2.0, 5.0), (300.0, 100.0))),
    *(("student_t", (df, 0.3, 1.2), stats.t) for df in (0.8, 5.0, 1e3)),
    *(("von_mises", (0.3, k), lambda loc, k: stats.vonmises(k, loc)) for k in (1e-3, 1.0, 1e3)),
    *(
        ("truncated_normal", p, _truncated)
        for p in (
            (0.5, 2.0, -1.0, 3.0),
            (0.0, 1.0, 0.3, 0.5),
            (0.0, 1.0, 8.0, INF),
            (1.0, 0.5, -INF, -2.0),
            (0.0, 1.0, -INF, INF),
        )
    ),
]
CONTINUOUS_IDS = [f"{name}-{params}" for name, params, _ in CONTINUOUS]
AGAIN = [("numpyro", name) for name in ("inverse_gamma", "chi2", "beta", "student_t")]
NUM = 20_000


@functools.cache
def _program(backend, name, estimator, num):
    """One for all parameters of a family."""
    ops, family = load(backend).ops, FAMILIES[name]

    def draw(key, *params):
        d = estimator.draw(ops, key, family, (num,), *params)
        return d.value, d.log_prob, family.log_prob(d.value, *params)

    return quickly(ops, draw)


def _sample(ops, name, params, estimator=None, num=NUM, seed=1):
    params = tuple(ops.xp.asarray(np.asarray(p, float)) for p in params)
    draw = _program(ops.name, name, estimator or ScoreFunction(), num)
    return FAMILIES[name], params, *(np.asarray(x) for x in draw(ops.key(seed), *params))


@pytest.mark.parametrize(
    ("backend", "name", "params", "reference"),
    [
        # Every day in torch, which compiles nothing: with_pyro/test_pyro_same_noise.py holds the other backend to it.
        pytest.param(
            backend, *row, id=f"{label}-{backend}", marks=pytest.mark.slow if (backend, row[0]) in AGAIN else ()
        )
        for row, label in zip(CONTINUOUS, CONTINUOUS_IDS, strict=True)
        for backend in BACKENDS
    ],
)
def test_draws_and_densities(backend, name, params, reference):
    ops = ops_or_skip(backend)
    _, _, x, log_prob, again = _sample(ops, name, params)
    value, distribution = x, reference(*params)
    cdf = distribution.cdf
    if name == "von_mises":
        assert value.min() >= -np.pi and value.max() < np.pi
        value, cdf = (value - params[0] + np.pi) % (2 * np.pi) - np.pi, stats.vonmises(params[1]).cdf
    assert stats.kstest(value, cdf).pvalue > 1e-4
    scipys = distribution.logpdf(x)
    np.testing.assert_allclose(log_prob, scipys, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(again, scipys, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "params", "reference"), CONTINUOUS, ids=CONTINUOUS_IDS)
def test_entropy_is_the_mean_of_minus_log_density(name, params, reference):
    ops = ops_or_skip("pyro")
    family, arrays, _, log_prob, _ = _sample(ops, name, params)
    try:
        entropy = float(family.entropy(*arrays))
    except SiteError:
        assert name == "student_t"
        return
    minus = -log_prob
    assert abs(minus.mean() - entropy) < 4.0 * minus.std() / np.sqrt(NUM) + 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
def test_dirichlet(backend):
    ops = ops_or_skip(backend)
    a = np.array([0.2, 1.0, 3.5])
    for estimator in (Implicit(), Rejection()):
        family, arrays, x, log_prob, _ = _sample(ops, "dirichlet", (a,), estimator)
        mean, reference = a / a.sum(), stats.dirichlet(a)
        assert np.all(np.abs(x.mean(0) - mean) < 4 * x.std(0) / np.sqrt(NUM))
        for i in range(3):
            assert stats.kstest(x[:, i], stats.beta(a[i], a.sum() - a[i]).cdf).pvalue > 1e-4
        ours = log_prob[:200]
        theirs = [reference.logpdf(row / row.sum()) for row in x[:200]]
        keep = x[:200].min(-1) > 1e-12
        np.testing.assert_allclose(ours[keep], np.array(theirs)[keep], rtol=1e-5, atol=1e-5)
        assert float(family.entropy(*arrays)) == pytest.approx(reference.entropy())


@pytest.mark.parametrize(
    ("backend", "p", "kappa"),
    [
        pytest.param(backend, p, kappa, marks=pytest.mark.slow if backend == "numpyro" and p in (2, 10) else ())
        for p, kappa in ((2, 0.5), (3, 5.0), (10, 300.0), (100, 40.0))
        for backend in BACKENDS
    ],
)
def test_von_mises_fisher(backend, p, kappa):
    ops = ops_or_skip(backend)
    direction = np.sin(np.arange(p) + 0.3)
    direction /= np.sqrt(direction @ direction)
    family, arrays, x, log_prob, again = _sample(ops, "von_mises_fisher", (direction, kappa))
    reference = stats.vonmises_fisher(direction, kappa)
    np.testing.assert_allclose((x * x).sum(-1), 1.0, rtol=1e-10)
    resultant = special.ive(p / 2, kappa) / special.ive(p / 2 - 1, kappa)
    along = x @ direction
    assert abs(along.mean() - resultant) < 4 * along.std() / np.sqrt(NUM)
    # Tangents: no preferred side, and equal spread.
    across = x - along[:, None] * direction
    assert np.all(np.abs(across.mean(0)) < 4.5 * across.std(0) / np.sqrt(NUM) + 1e-12)
    spread = np.mean(1.0 - along**2) / (p - 1) * (1.0 - direction**2)
    np.testing.assert_allclose((across**2).mean(0), spread, rtol=0.08)
    np.testing.assert_allclose(log_prob, reference.logpdf(x), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(again, reference.logpdf(x), rtol=1e-6, atol=1e-6)
    assert float(family.entropy(*arrays)) == pytest.approx(reference.entropy(), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_discrete(backend):
    ops = ops_or_skip(backend)
    _, _, value, log_prob, _ = _sample(ops, "poisson", (2.3,))
    assert abs(value.mean() - 2.3) < 4 * np.sqrt(2.3 / NUM)
    np.testing.assert_allclose(log_prob, stats.poisson(2.3).logpmf(value), rtol=1e-9)
    _, _, value, log_prob, _ = _sample(ops, "bernoulli", (0.7,))
    p = special.expit(0.7)
    assert set(np.unique(value)) == {0.0, 1.0}
    assert abs(value.mean() - p) < 4 * np.sqrt(p * (1 - p) / NUM)
    np.testing.assert_allclose(log_prob, stats.bernoulli(p).logpmf(value), rtol=1e-9)
