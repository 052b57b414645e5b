"""vr.Escalate, the default: how far it goes, what it says, and fits that end by themselves."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import vi_reparam_numpyro as vr
from vi_reparam.fit import loop

RNG = np.random.default_rng(5)
X = np.column_stack([np.ones(40), 100.0 + 15.0 * RNG.normal(size=40)])  # not centred: the coefficients are correlated
Y = X @ np.array([20.0, 0.6]) + 3.0 * RNG.normal(size=40)
COVARIANCE = np.linalg.inv(np.diag([1e-2, 1.0]) + X.T @ X / 9.0)
LOG_EVIDENCE = multivariate_normal(np.zeros(40), X @ np.diag([1e2, 1.0]) @ X.T + 9.0 * np.eye(40)).logpdf(Y)


@vr.guide
def regression(x, y=None):
    beta = numpyro.sample("beta", dist.Normal(0.0, jnp.array([10.0, 1.0])).to_event(1))
    numpyro.sample("y", dist.Normal(x @ beta, 3.0).to_event(1), obs=y)


@pytest.fixture(scope="module")
def fitted():
    return regression.fit(X, y=Y, progress=False)


def test_correlated_coefficients_get_the_exact_posterior(fitted):
    value, error = fitted.elbo()
    assert abs(LOG_EVIDENCE - value) < 4.0 * error + 1e-4
    beta = np.asarray(fitted.draws(20_000)["beta"])
    scale = np.sqrt(np.diag(COVARIANCE))
    assert np.abs((beta.mean(0) - COVARIANCE @ X.T @ Y / 9.0) / scale).max() < 0.05
    assert np.abs(np.log(beta.std(0) / scale)).max() < 0.05
    assert fitted.verdict.grade == "good" and fitted.record["converged"]


def test_it_says_what_was_tried(fitted):
    (kept,) = fitted.tried
    assert kept["family"] == fitted.record["family"] == "FullRank()" and kept["steps"] > 0
    assert "is good" in fitted.why
    text = str(fitted.summary())
    assert "* FullRank" in text and fitted.why in text


def test_its_posterior_is_stored_with_its_family(fitted, tmp_path):
    again = vr.load(fitted.save(tmp_path / "posterior.npz"), regression)
    np.testing.assert_array_equal(fitted.draws(5)["beta"], again.draws(5)["beta"])
    assert again.tried == fitted.tried


def test_a_checkpoint_goes_on_to_the_same_end(tmp_path, monkeypatch):
    guided, looks = vr.guide(vr.FullRank())(regression.model), []
    whole = guided.fit(X, y=Y, progress=False)
    look = loop._look

    class CutError(Exception):
        pass

    def cut(*arguments):
        looks.append(arguments)
        if len(looks) > 9:
            raise CutError
        return look(*arguments)

    options = {"y": Y, "progress": False, "checkpoint": tmp_path / "state.npz"}
    with monkeypatch.context() as patched:
        patched.setattr(loop, "SAVE_EVERY", 0.0)
        patched.setattr(loop, "_look", cut)
        with pytest.raises(CutError):
            guided.fit(X, **options)
    for _ in range(2):  # goes on; and, finished, only gives its end again
        resumed = guided.fit(X, **options)
        np.testing.assert_array_equal(resumed.losses, whole.losses)
        np.testing.assert_array_equal(resumed.params["gaussian_loc"], whole.params["gaussian_loc"])
        assert resumed.record["converged"] == whole.record["converged"]


@pytest.mark.slow  # the Pyro backend's is not
def test_a_model_that_reads_its_data_is_searched_too():
    @vr.guide(vr.Escalate(budget=1e-3))
    def model(y):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        width = 2.0 if y.max() > 0.0 else 1.0
        numpyro.sample("y", dist.Normal(loc, width * scale), obs=jnp.asarray(y))

    y = np.array([0.3, -0.2, 0.8])
    with pytest.warns(UserWarning, match="reads its data in Python") as caught:
        posterior = model.fit(y, progress=False)
    assert len(caught) == 1 and posterior.tried


def test_discrete_latents_and_named_estimators_stay_with_the_mean_field():
    @vr.guide(estimators={"flag": vr.ScoreFunction()})
    def model():
        flag = numpyro.sample("flag", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(1.0 * flag, 1.0), obs=jnp.asarray(0.2))

    posterior = model.fit(num_steps=50, progress=False)
    assert posterior.record["family"].startswith("MeanField")
    assert [a["family"] for a in posterior.tried] == [posterior.record["family"]]


@pytest.mark.slow  # the Pyro backend's is not
def test_two_modes_are_told():
    @vr.guide(vr.FullRank())
    def model(y):
        z = numpyro.sample("z", dist.Normal(0.0, 3.0))
        numpyro.sample("y", dist.Normal(jnp.abs(z), 0.1), obs=y)

    posterior = model.fit(jnp.asarray(2.0), progress=False)
    assert posterior.record["rivals"] and abs(posterior.record["rivals"][0]) < 0.1
    assert posterior.verdict.grade == "poor"
    assert any("another mode was found" in reason for reason in posterior.verdict.reasons)


def test_no_finite_density_anywhere_is_refused():
    @vr.guide
    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.factor("nothing", jnp.sum(z) * jnp.nan)

    with pytest.raises(vr.NonFiniteError, match="log p of the model is not finite at any of 32 starts"):
        model.fit(progress=False)


@pytest.mark.slow
def test_a_funnel_needs_the_flow():
    """Centred eight schools: log evidence -31.316 (standard error 0.006, by importance sampling)."""

    @vr.guide
    def schools(sigma, y):
        mu, tau = numpyro.sample("mu", dist.Normal(0.0, 5.0)), numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    sigma = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    posterior = schools.fit(sigma, y, progress=False)
    value, error = posterior.elbo()
    assert posterior.record["family"].startswith("Flow")
    assert -31.316 - value < 0.05 + 3.0 * error
    assert posterior.khat < 0.7


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget": 0.0}, r"Escalate\(budget=0.0\): expected seconds"),
        ({"families": ()}, r"Escalate\(families=\(\)\): expected families"),
        ({"families": (vr.Escalate(),)}, "expected families such as"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(vr.ArgumentError, match=match):
        vr.Escalate(**options)
