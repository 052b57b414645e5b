"""vr.IWELBO: its gradients against quadrature, what it refuses; and path gradients of any guide."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from bounds import PARAMS, Y, slopes
from numpyro.infer import SVI

import vi_reparam_numpyro as vr
from vi_reparam.objectives.multisample import GRADIENTS


def model():
    z = numpyro.sample("z", dist.Normal(numpyro.param("t", PARAMS["t"]), 1.0))
    u = numpyro.sample("u", dist.Normal(z, 1.0))
    numpyro.sample("y", dist.Normal(u, 0.5), obs=Y)


def guide():
    z = numpyro.sample("z", dist.Normal(numpyro.param("m", PARAMS["m"]), numpyro.param("s", PARAMS["s"])))
    numpyro.sample("u", dist.Normal(numpyro.param("a", PARAMS["a"]) * z, 0.7))


def _gradients(objective, guide, num=20_000):
    params = {name: jnp.asarray(value) for name, value in PARAMS.items()}

    def slope(key):
        return jax.grad(lambda p: -objective.loss(key, p, model, guide))(params)

    return jax.jit(jax.vmap(slope))(jax.random.split(jax.random.key(3), num))


@pytest.mark.parametrize("estimated", [False, True])
@pytest.mark.parametrize("gradient", ["doubly_reparameterized", "reparameterization"])
def test_the_gradient_is_that_of_the_bound(gradient, estimated):
    found = _gradients(vr.IWELBO(2, gradient=gradient), vr.estimate(guide, vr.Auto()) if estimated else guide)
    for name, exact in slopes().items():
        values = np.asarray(found[name])
        assert abs(values.mean() - exact) < 4.0 * values.std() / np.sqrt(len(values)), name


def test_the_doubly_reparameterized_one_has_the_smaller_variance():
    doubly, plain = (_gradients(vr.IWELBO(16, gradient=g), guide, 2_000) for g in GRADIENTS)
    for name in ("m", "s", "a"):
        assert np.var(doubly[name]) < 0.7 * np.var(plain[name])


def test_it_goes_where_an_elbo_goes():
    svi = SVI(model, guide, optax.adam(0.02), vr.IWELBO(8))
    result = svi.run(jax.random.key(0), 200, progress_bar=False)
    assert np.isfinite(result.losses).all()


def funnel():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(0.0, jnp.exp(x)))


@pytest.mark.slow
def test_it_is_between_the_elbo_and_the_evidence():
    """The funnel's evidence is one. Trained by its own bound, a Gaussian covers the mouth."""
    values = {}
    for objective in (vr.ELBO(64), vr.IWELBO(64)):
        guided = vr.guide(vr.FullRank(), objective=objective)(funnel)
        posterior = guided.fit(num_steps=700, progress=False)
        params = posterior.params
        loss = jax.jit(lambda key, params=params, guided=guided: -vr.IWELBO(64).loss(key, params, funnel, guided.guide))
        values[type(objective).__name__] = np.array([loss(key) for key in jax.random.split(jax.random.key(1), 400)])
    elbo = posterior.elbo()[0]
    error = values["IWELBO"].std() / 20.0
    assert elbo < values["IWELBO"].mean() < 3.0 * error
    assert values["IWELBO"].mean() > values["ELBO"].mean() + 3.0 * error


def halves(batch=None):
    a = numpyro.sample("a", dist.Gamma(2.0, 1.0))
    with numpyro.plate("rows", 4, subsample_size=batch) as rows:
        numpyro.sample("y", dist.Normal(a, 1.0), obs=jnp.arange(4.0)[rows])


@pytest.mark.parametrize(
    ("family", "options", "batch", "match"),
    [
        (vr.MeanField(), {"estimators": vr.ScoreFunction()}, None, r"'a': ScoreFunction.*IWELBO would drop"),
        (vr.MeanField(), {"estimators": {"a": vr.Rejection()}}, None, r"'a': Rejection.*IWELBO would drop"),
        (vr.MeanField(), {}, 2, "plate 'rows' is subsampled, and IWELBO"),
        (vr.FullRank(gradient="reparameterization"), {}, None, "biased under IWELBO.*doubly"),
        (vr.SDE(gradient="log_variance"), {}, None, "IWELBO"),
    ],
)
def test_what_would_be_wrong_is_refused(family, options, batch, match):
    with pytest.raises(vr.GradientError, match=match):
        vr.guide(family, objective=vr.IWELBO(4), **options)(halves).fit(batch, num_steps=2, progress=False)


@pytest.mark.parametrize("options", [{"num_particles": 0}, {"num_particles": 2.0}, {"gradient": "path"}])
def test_bad_options(options):
    with pytest.raises(vr.ArgumentError, match=r"IWELBO\("):
        vr.IWELBO(**options)


def conjugate():
    a = numpyro.sample("a", dist.Gamma(2.0, 1.0))
    numpyro.sample("z", dist.Normal(0.3, 0.7))
    numpyro.sample("y", dist.Poisson(a), obs=3.0)


@pytest.mark.slow  # the Pyro backend's is not
def test_path_gradients_of_a_mean_field_vanish_at_the_posterior():
    """The posterior is Gamma(5, 2) times the prior of z."""
    guided = vr.guide(vr.MeanField(), estimators=vr.Implicit(), objective=vr.ELBO(4, entropy="path"))(conjugate)
    exact = {"a_concentration": 5.0, "a_mean": 2.5, "z_loc": 0.3, "z_scale": 0.7}
    params = {name: jnp.asarray(exact[name]) for name in guided.start()}
    for entropy, largest in (("path", 1e-12), ("monte_carlo", None)):
        objective = vr.ELBO(4, entropy=entropy)

        def loss(p, objective=objective):
            return objective.loss(jax.random.key(0), p, guided.model, guided.guide)

        size = max(abs(float(g)) for g in jax.jit(jax.grad(loss))(params).values())
        assert size < largest if largest else size > 1e-3
