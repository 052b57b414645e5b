"""Single precision: losses and gradients stay finite and right from tiny to huge concentrations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from gradients import gradients, kl_gamma
from scipy.special import polygamma

import vi_reparam_numpyro as vr
from vi_reparam_numpyro.engine.optimizers import clip_by_norm

CONCENTRATIONS = np.array([1e-3, 1e-2, 0.1, 0.3, 1.0, 10.0, 1e3, 1e6])


@pytest.fixture(autouse=True)
def single_precision():
    with jax.enable_x64(False):
        yield


def divergence():
    with numpyro.plate("n", len(CONCENTRATIONS)):
        numpyro.sample("z", dist.Gamma(3.0, 1.0))


def guide():
    with numpyro.plate("n", len(CONCENTRATIONS)):
        a = numpyro.param("a", jnp.asarray(CONCENTRATIONS, jnp.float32))
        numpyro.sample("z", dist.Gamma(a, numpyro.param("b", jnp.ones(len(CONCENTRATIONS)))))


@pytest.mark.parametrize(
    "estimator", [vr.Implicit(), pytest.param(vr.Rejection(boost=1), marks=pytest.mark.slow), vr.Rejection()], ids=repr
)
def test_gradients_from_1e_minus_3_to_1e6(estimator):
    """(a - 3) trigamma(a) at a rate of one, within single precision's own error of the sum's mean."""
    at = {"a": CONCENTRATIONS, "b": np.ones_like(CONCENTRATIONS)}
    found = gradients(vr.ELBO(4), at, divergence, vr.estimate(guide, estimator), num=4_000)["a"]
    assert found.dtype == np.float32 and np.isfinite(found).all()
    exact = (CONCENTRATIONS - 3.0) * polygamma(1, CONCENTRATIONS)
    mean, error = found.mean(0, dtype=np.float64), found.std(0, dtype=np.float64) / np.sqrt(len(found))
    assert np.all(np.abs(mean - exact) < 4.5 * error + 1e-4 * np.abs(exact) + 1e-5), (mean, exact, error)


def test_losses_are_those_of_double_precision():
    """The mean loss against the closed form, term by term."""

    def loss(p, key):
        return vr.ELBO(64).loss(key, p, divergence, vr.estimate(guide, vr.Implicit()))

    keys, losses = jax.random.split(jax.random.key(0), 200), jax.jit(jax.vmap(loss, (None, 0)))
    for a in (1e-3, 0.3, 1e3, 1e6):
        p = {
            "a": jnp.full(len(CONCENTRATIONS), a, jnp.float32),
            "b": jnp.full(len(CONCENTRATIONS), a / 3.0, jnp.float32),
        }
        values = np.asarray(losses(p, keys), np.float64)
        with jax.enable_x64(True):
            exact = len(CONCENTRATIONS) * float(kl_gamma(jnp.asarray(a), jnp.asarray(a / 3.0), 3.0, 1.0))
        error = values.std() / np.sqrt(len(values))
        assert np.isfinite(values).all()
        assert abs(values.mean() - exact) < 4.5 * error + 2e-5 * abs(exact) + 1e-4, (a, values.mean(), exact)


@pytest.mark.parametrize("estimator", [pytest.param(vr.Implicit(), marks=pytest.mark.slow), vr.Rejection()], ids=repr)
def test_a_sparse_prior_gives_no_nan(estimator):
    """Gamma(0.1, .) priors put draws at the edge of single precision."""

    def model(y):
        with numpyro.plate("n", 4):
            z = numpyro.sample("z", dist.Gamma(0.1, 0.1))
            numpyro.sample("y", dist.Poisson(z), obs=y)

    def own(y):
        with numpyro.plate("n", 4):
            numpyro.sample("z", dist.Gamma(numpyro.param("a", jnp.full(4, 1e-2)), numpyro.param("b", jnp.full(4, 0.1))))

    y = np.array([0.0, 0.0, 1.0, 5.0])
    at = {"a": np.array([1e-3, 1e-2, 0.1, 1.0]), "b": np.full(4, 0.1)}
    found = gradients(vr.ELBO(4), at, model, vr.estimate(own, estimator), y, num=500)
    assert all(np.isfinite(g).all() for g in found.values())


@pytest.mark.slow
def test_a_fit_in_single_precision():
    @vr.guide(vr.MeanField())
    def model(y):
        with numpyro.plate("n", 4):
            z = numpyro.sample("z", dist.Gamma(0.3, 0.3))
            numpyro.sample("y", dist.Poisson(z), obs=y)
        numpyro.sample("share", dist.Dirichlet(jnp.full(3, 0.1)))
        numpyro.sample("half", dist.Beta(0.2, 0.2))

    y = np.array([0.0, 0.0, 1.0, 50.0], np.float32)
    posterior = model.fit(y, num_steps=1_500, progress=False)
    assert posterior.params["z_mean"].dtype == jnp.float32
    np.testing.assert_allclose(posterior.params["z_mean"], (0.3 + y) / 1.3, rtol=0.25)
    value, error = posterior.elbo()
    assert np.isfinite(value) and np.isfinite(error)


def test_a_gradient_whose_square_overflows_still_moves():
    """Clipped to the norm that was asked for, and not to nothing."""
    grads = {"a": jnp.asarray([3e25, 0.0]), "b": jnp.asarray([[-4e25]])}
    found, _ = clip_by_norm(10.0).update(grads, None)
    assert np.allclose(found["a"], [6.0, 0.0]) and np.allclose(found["b"], -8.0)
    small = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.zeros((1, 1))}
    found, _ = clip_by_norm(10.0).update(small, None)
    assert np.array_equal(found["a"], small["a"]) and np.array_equal(found["b"], small["b"])
    assert np.isnan(clip_by_norm(10.0).update({"a": jnp.asarray([1.0, np.nan])}, None)[0]["a"][1])


def sparse():
    numpyro.sample("z", dist.Gamma(0.05, 1.0).expand([3]).to_event(1))


def test_joint_guides_of_positive_latents_do_not_round_to_zero():
    """Half of the prior's logarithms are below single precision's range, where its density would be infinite."""
    layout = vr.guide(vr.FullRank())(sparse).base_guide.layout((), {})
    value, log_det = layout.unpack(jnp.array([-200.0, 0.0, 100.0]))["z"]
    assert value.dtype == np.float32 and log_det == -100.0
    assert np.isfinite(dist.Gamma(0.05, 1.0).log_prob(value)).all()
    np.testing.assert_array_equal(value, [np.finfo(np.float32).tiny, 1.0, np.finfo(np.float32).max])
