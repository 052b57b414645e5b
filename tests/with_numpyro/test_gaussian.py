"""vr.FullRank and vr.LowRank: Gaussians over all latents, on a model whose posterior is one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import vi_reparam_numpyro as vr

RNG = np.random.default_rng(3)
X = RNG.normal(size=(30, 3)) @ np.array([[1.0, 0.9, 0.0], [0.0, 0.5, 0.7], [0.0, 0.0, 0.6]])
Y = X @ np.array([1.0, -2.0, 0.5]) + 0.5 * RNG.normal(size=30)
PRECISION = np.eye(3) + X.T @ X / 0.25
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ X.T @ Y / 0.25
LOG_EVIDENCE = multivariate_normal(np.zeros(30), X @ X.T + 0.25 * np.eye(30)).logpdf(Y)


def regression(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)


@pytest.mark.parametrize(
    "family",
    [pytest.param(vr.FullRank(), marks=pytest.mark.slow), vr.LowRank(rank=2)],  # the Pyro backend's is not
    ids=repr,
)
def test_it_reaches_a_gaussian_posterior(family):
    posterior = vr.guide(family)(regression).fit(X, Y, num_steps=2_000, progress=False)
    value, error = posterior.elbo()
    w = posterior.draws(20_000)["w"]
    scale = np.sqrt(np.diag(COVARIANCE))
    exact = isinstance(family, vr.FullRank)
    assert LOG_EVIDENCE - value < (0.002 if exact else 0.05) + 4.0 * error
    np.testing.assert_allclose(w.mean(0), MEAN, atol=0.05 * scale.min())
    np.testing.assert_allclose(np.cov(w.T) / np.outer(scale, scale), COVARIANCE / np.outer(scale, scale), atol=0.05)
    assert posterior.khat < 0.5


def test_the_gradient_vanishes_where_q_is_the_posterior():
    """Path gradients: zero variance, to rounding."""
    lower = np.linalg.cholesky(COVARIANCE)
    scale = np.diag(lower)
    params = {
        "gaussian_center": jnp.zeros(3),
        "gaussian_root": jnp.eye(3),
        "gaussian_tail": jnp.zeros(()),
        "gaussian_loc": jnp.asarray(MEAN),
        "gaussian_log_scale": jnp.log(scale),
        "gaussian_lower": jnp.asarray(lower / scale[:, None] - np.eye(3)),
    }
    guided = vr.guide(vr.FullRank(), objective=vr.ELBO(1))(regression)

    def gradient(key):
        loss = lambda p: guided.objective.loss(key, p, guided.model, guided.guide, X, Y)  # noqa: E731
        return jax.grad(loss)(params)

    found = jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(0), 50))
    for name, values in found.items():
        assert np.abs(np.asarray(values)).max() < 1e-9, name


def test_many_coordinates_are_refused_before_memory_is_taken():
    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0).expand([20_000]).to_event(1))

    with pytest.raises(vr.SiteError, match=r"FullRank\(.*20,000 coordinates would hold 400,000,000"):
        vr.guide(vr.FullRank())(model).fit(num_steps=1, progress=False)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: vr.FullRank(init_scale=0.0), r"FullRank\(init_scale=0.0\): expected a positive number"),
        (lambda: vr.LowRank(rank=0), r"LowRank\(rank=0\): expected an integer"),
    ],
)
def test_bad_options(make, match):
    with pytest.raises(vr.ArgumentError, match=match):
        make()
