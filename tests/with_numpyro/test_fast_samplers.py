"""Under `vr.fast_samplers()` NumPyro's own distributions draw through ours, and only there."""

import inspect
import threading

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import HMC, MCMC, Predictive, init_to_sample
from scipy import stats

import vi_reparam_numpyro as vr

NUM = 50_000
CASES = {
    "gamma": (dist.Gamma(0.3, 2.0), stats.gamma(0.3, scale=0.5)),
    "inverse_gamma": (dist.InverseGamma(2.5, 1.5), stats.invgamma(2.5, scale=1.5)),
    "chi2": (dist.Chi2(3.0), stats.chi2(3.0)),
    "beta": (dist.Beta(0.7, 2.0), stats.beta(0.7, 2.0)),
    "student_t": (dist.StudentT(4.0, 1.0, 0.5), stats.t(4.0, 1.0, 0.5)),
}


@pytest.mark.parametrize("name", CASES)
def test_draws_are_ours_and_right(name):
    d, reference = CASES[name]
    key = jax.random.key(0)
    own = d.sample(key, (NUM,))
    with vr.fast_samplers():
        ours = jax.jit(lambda key: d.sample(key, (NUM,)))(key)
    assert ours.dtype == own.dtype and ours.shape == own.shape
    assert not np.any(ours == own)
    np.testing.assert_array_equal(d.sample(key, (NUM,)), own)
    assert stats.kstest(np.asarray(ours), reference.cdf).pvalue > 1e-4


def test_dirichlet():
    a = jnp.array([[0.2, 1.0, 3.5], [2.0, 2.0, 2.0]])
    with vr.fast_samplers():
        x = jax.jit(lambda key: dist.Dirichlet(a).sample(key, (NUM,)))(jax.random.key(1))
    assert x.shape == (NUM, 2, 3)
    np.testing.assert_allclose(x.sum(-1), 1.0, rtol=1e-12)
    for i in range(3):
        assert stats.kstest(np.asarray(x[:, 0, i]), stats.beta(a[0, i], a[0].sum() - a[0, i]).cdf).pvalue > 1e-4


def test_the_gradient_is_there():
    def mean(a):
        with vr.fast_samplers():
            return jnp.log(dist.Gamma(a).sample(jax.random.key(0), (NUM,))).mean()

    slope = jax.jit(jax.grad(mean))(2.0)
    assert slope == pytest.approx(np.pi**2 / 6 - 1.0, rel=0.02)


def test_it_nests_and_restores_even_after_an_error():
    own = {kind: kind.sample for kind in (dist.Gamma, dist.Beta, dist.Dirichlet, dist.StudentT)}
    with vr.fast_samplers():
        inside = dist.Gamma.sample
        assert inside is not own[dist.Gamma]
        assert list(inspect.signature(inside).parameters) == list(inspect.signature(own[dist.Gamma]).parameters)
        with pytest.raises(ZeroDivisionError), vr.fast_samplers():
            1 / 0  # noqa: B018
        assert dist.Gamma.sample is inside
    for kind, sample in own.items():
        assert kind.sample is sample


def test_other_threads_draw_as_before():
    key = jax.random.key(3)
    own = dist.Gamma(2.0).sample(key)
    seen = []
    with vr.fast_samplers():
        ours = dist.Gamma(2.0).sample(key)
        thread = threading.Thread(target=lambda: seen.append(dist.Gamma(2.0).sample(key)))
        thread.start()
        thread.join()
    assert seen == [own] and ours != own


def model(y=None):
    shape = numpyro.sample("shape", dist.Gamma(3.0, 1.0))
    share = numpyro.sample("share", dist.Beta(2.0, 3.0))
    with numpyro.plate("data", 5):
        numpyro.sample("y", dist.StudentT(5.0, shape, 0.1 + share), obs=y)


@pytest.mark.slow
def test_predictive_and_mcmc():
    key = jax.random.key(4)
    own = Predictive(model, num_samples=2_000)(key)
    with vr.fast_samplers():
        ours = Predictive(model, num_samples=2_000)(key)
        kernel = HMC(model, trajectory_length=1.0, init_strategy=init_to_sample)
        mcmc = MCMC(kernel, num_warmup=20, num_samples=20, progress_bar=False)
        mcmc.run(key, y=ours["y"][0])
    assert not np.any(ours["shape"] == own["shape"])
    for name, law in (("shape", stats.gamma(3.0)), ("share", stats.beta(2.0, 3.0))):
        assert stats.kstest(np.asarray(ours[name]), law.cdf).pvalue > 1e-4
        assert np.isfinite(mcmc.get_samples()[name]).all()
    assert ours["y"].shape == own["y"].shape == (2_000, 5)
