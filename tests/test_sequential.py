"""Fits that start somewhere, and posteriors that are updated: batch equals sequential on conjugate models."""

from __future__ import annotations

import numpy as np
import pytest

from vi_reparam.errors import ArgumentError

RNG = np.random.default_rng(3)
FIRST, SECOND = RNG.normal(1.0, 2.0, 30), RNG.normal(1.0, 2.0, 20)
XS = RNG.normal(size=(50, 2))
YS = XS @ np.array([1.0, -0.5]) + RNG.normal(size=50)
NUM = 20_000


def rows(vr):
    """Bayesian regression with known noise: w ~ N(0, 2), y ~ N(x w, 1)."""
    host, dist = vr.host, vr.host.dist

    def regression(x, y=None):
        x = host.array(x)
        w = host.sample("w", dist.Normal(host.array(np.zeros(2)), host.array(2.0)).to_event(1))
        with host.plate("rows", len(x)):
            host.sample("y", dist.Normal(x @ w, host.array(1.0)), obs=None if y is None else host.array(y))

    return regression


def exact(x, y):
    precision = x.T @ x + 0.25 * np.eye(2)
    return np.linalg.solve(precision, x.T @ y), np.linalg.inv(precision)


def log_evidence(x, y):
    covariance = 4.0 * x @ x.T + np.eye(len(y))
    return -0.5 * (len(y) * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + y @ np.linalg.solve(covariance, y))


def test_two_halves_are_the_whole(vr, tmp_path):
    """By a Gaussian: means and covariances, and the evidence of the second half given the first."""
    guided = vr.guide(vr.FullRank())(rows(vr))
    first = guided.fit(XS[:30], y=YS[:30], progress=False, num_steps=300)
    both = first.update(XS[30:], y=YS[30:], progress=False, num_steps=300)
    mean, covariance = exact(XS, YS)
    w = np.asarray(both.draws(NUM)["w"])
    z = (w.mean(0) - mean) / np.sqrt(np.diagonal(covariance) / NUM)
    assert np.abs(z).max() < 4.0
    sds = np.sqrt(np.diagonal(covariance))
    spread = (w.std(0) - sds) / (sds / np.sqrt(2 * NUM))
    assert np.abs(spread).max() < 4.0
    gained = both.log_evidence()
    assert abs(gained[0] - (log_evidence(XS, YS) - log_evidence(XS[:30], YS[:30]))) < 4 * gained[1] + 1e-3
    again = vr.load(both.save(tmp_path / "both.npz"), guided)
    np.testing.assert_array_equal(np.asarray(again.draws(5)["w"]), np.asarray(both.draws(5)["w"]))
    np.testing.assert_allclose(again.log_weights, both.log_weights, rtol=1e-9)
    with pytest.raises(ArgumentError, match="holds a posterior of another"):
        vr.load(both.save(tmp_path / "both.npz"), vr.guide(vr.MeanField())(rows(vr)))
    with pytest.raises(ArgumentError, match="an updated posterior needs the data before it"):
        both.save(tmp_path / "both.npz", data=False)


@pytest.mark.parametrize("vr", [pytest.param("numpyro", marks=pytest.mark.slow), "pyro"], indirect=True)
def test_three_parts_one_after_the_other_by_independent_sites(vr):
    """A gamma's rate: Gamma(a, b) and Poisson counts, whose posterior is a gamma again."""
    host, dist = vr.host, vr.host.dist
    counts = np.array([3.0, 5.0, 1.0, 4.0, 2.0, 6.0, 3.0, 2.0, 4.0, 7.0, 2.0, 3.0])

    def model(y=None):
        rate = host.sample("rate", dist.Gamma(host.array(2.0), host.array(0.5)))
        with host.plate("days", 4 if y is None else len(y)):
            host.sample("y", dist.Poisson(rate), obs=None if y is None else host.array(y))

    posterior = vr.guide(vr.MeanField())(model).fit(counts[:5], progress=False, num_steps=1_500, num_particles=32)
    for part in (counts[5:8], counts[8:]):
        posterior = posterior.update(part, progress=False, num_steps=1_500, num_particles=32)
    a, b = 2.0 + counts.sum(), 0.5 + len(counts)
    mean, error = posterior.expectation(lambda z: z["rate"], num_draws=NUM, weighted=True)
    assert abs(mean - a / b) < 4 * error + 0.01 * np.sqrt(a) / b
    assert np.asarray(posterior.draws(NUM)["rate"]).std() == pytest.approx(np.sqrt(a) / b, rel=0.03)


@pytest.mark.parametrize("vr", [pytest.param("numpyro", marks=pytest.mark.slow), "pyro"], indirect=True)
def test_two_halves_of_a_logistic_regression_are_the_whole(vr):
    """Exact moments by quadrature. Of 2 x 500 rows the skew that a Gaussian loses makes sds 1% to 2% too small."""
    host, dist, rng = vr.host, vr.host.dist, np.random.default_rng(8)
    x = rng.normal(size=4_000)
    y = (rng.random(4_000) < 1.0 / (1.0 + np.exp(-(0.5 + x)))).astype(float)

    def model(x, y=None):
        w = host.sample("w", dist.Normal(host.array(np.zeros(2)), host.array(2.0)).to_event(1))
        with host.plate("rows", len(x)):
            host.sample("y", dist.Bernoulli(logits=w[0] + w[1] * host.array(x)), obs=host.array(y))

    guided = vr.guide(vr.FullRank())(model)
    both = guided.fit(x[:2_000], y=y[:2_000], progress=False)
    both = both.update(x[2_000:], y=y[2_000:], progress=False)
    grid = np.stack(np.meshgrid(np.linspace(0.3, 0.7, 61), np.linspace(0.75, 1.25, 61), indexing="ij"), -1)
    logits = grid[..., :1] + grid[..., 1:] * x
    log_p = (y * logits - np.logaddexp(0.0, logits)).sum(-1) - (grid**2).sum(-1) / 8.0
    p = np.exp(log_p - log_p.max())[..., None]
    mean = (p * grid).sum((0, 1)) / p.sum()
    sd = np.sqrt((p * (grid - mean) ** 2).sum((0, 1)) / p.sum())
    w = np.asarray(both.draws(NUM)["w"])
    assert (np.abs(w.mean(0) - mean) < 4 * sd / np.sqrt(NUM)).all()
    assert (np.abs(w.std(0) - sd) < 4 * sd / np.sqrt(2 * NUM)).all()


@pytest.mark.parametrize("vr", ["numpyro", pytest.param("pyro", marks=pytest.mark.slow)], indirect=True)
def test_new_groups_keep_the_models_prior(vr):
    """Local latents of the second data are new; the global ones carry over."""
    host, dist = vr.host, vr.host.dist

    def model(y):
        y = host.array(y)
        mu = host.sample("mu", dist.Normal(host.array(0.0), host.array(3.0)))
        with host.plate("groups", len(y)):
            z = host.sample("z", dist.Normal(mu, host.array(1.0)))
            host.sample("y", dist.Normal(z, host.array(1.0)), obs=y)

    guided = vr.guide(vr.FullRank())(model)
    y = RNG.normal(2.0, 1.4, 9)
    first = guided.fit(y[:5], progress=False, num_steps=300)
    both = first.update(y[5:], progress=False, num_steps=300)
    again = first.update(y[4:], fresh_sites="z", progress=False, num_steps=300)
    for posterior, data in ((both, y), (again, np.concatenate([y[:5], y[4:]]))):
        precision = len(data) / 2.0 + 1 / 9.0
        mean, sd = data.sum() / 2.0 / precision, precision**-0.5
        mu = np.asarray(posterior.draws(NUM)["mu"])
        assert abs(mu.mean() - mean) < 4 * sd / np.sqrt(NUM)
        assert abs(mu.std() - sd) < 4 * sd / np.sqrt(2 * NUM)
    with pytest.raises(ArgumentError, match="fresh_sites names x"):
        first.update(y, fresh_sites=["x"])


def test_a_guide_without_a_density_is_refused(vr):
    guided = vr.guide(vr.StudentT())(rows(vr))
    start = guided.start(XS, y=YS)
    posterior = vr.Posterior(guided, start, args=(XS,), kwargs={"y": YS}, losses=[], seed=0, record={})
    with pytest.raises(ArgumentError, match=r"no density that can be evaluated.*FullRank"):
        posterior.update(XS, y=YS)


def test_a_fit_goes_on_from_a_posterior(vr):
    """Two steps from where another fit ended are as good as it was."""
    guided = vr.guide(vr.MeanField())(rows(vr))
    long = guided.fit(XS, y=YS, progress=False, num_steps=600)
    warm = guided.fit(XS, y=YS, progress=False, num_steps=2, init=long, seed=1)
    cold = guided.fit(XS, y=YS, progress=False, num_steps=2, seed=1)
    assert warm.elbo()[0] == pytest.approx(long.elbo()[0], abs=0.1)
    assert cold.elbo()[0] < long.elbo()[0] - 1.0
    other = vr.guide(vr.Escalate(families=(vr.MeanField(),)))(rows(vr))
    assert other.fit(XS, y=YS, progress=False, num_steps=2, init=long).elbo()[0] > long.elbo()[0] - 0.5


def test_a_fit_starts_at_values_of_latents(vr):
    host, dist = vr.host, vr.host.dist

    def model(y):
        scale = host.sample("scale", dist.HalfNormal(host.array(1.0)))
        z = host.sample("z", dist.Normal(host.array(0.0), host.array(10.0)))
        host.sample("y", dist.Normal(z, scale), obs=host.array(y))

    guided = vr.guide(vr.MeanField(init_scale=0.01))(model)
    started = guided.fit(1.0, progress=False, num_steps=1, init={"z": 7.0})
    assert np.asarray(started.draws(200)["z"]).mean() == pytest.approx(7.0, abs=0.2)
    mean_field = guided.fit(1.0, progress=False, num_steps=1, init={"z": 7.0, "scale": 2.0})
    assert np.asarray(mean_field.draws(200)["scale"]).mean() == pytest.approx(2.0, rel=0.2)
    moved = vr.guide(vr.LowRank(rank=1, init_scale=0.01))(model)
    follows = moved.fit(1.0, progress=False, num_steps=1, init=mean_field)
    assert np.isfinite(follows.elbo()[0])
    for init, message in (
        ({"x": 1.0}, "names 'x', not a latent site; there are: scale, z"),
        ({"z": [1.0, 2.0]}, r"'z' has shape \(2,\); the site has \(\)"),
        ({"scale": -1.0}, "outside of its support"),
        (3.0, "expected a posterior, or a dict"),
    ):
        with pytest.raises(ArgumentError, match=message):
            guided.fit(1.0, progress=False, num_steps=1, init=init)
