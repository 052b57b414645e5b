"""vr.Flow: every kind starts as the Gaussian it bends, knows its density, and has the gradient of the bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import seed, substitute, trace

import vi_reparam_numpyro as vr
from vi_reparam.guides.flow import KINDS
from vi_reparam.objectives.run import first_params
from vi_reparam_numpyro.backend import backend
from vi_reparam_numpyro.host.statements import host
from vi_reparam_numpyro.ops.ops import ops

QUICK = ("inverse_autoregressive",)


def rows(*, without=""):
    """The kinds; those that take long are slow tests."""
    return [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != without]


KIND_ROWS = rows()


def banana():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.LogNormal(x**2, 0.5).expand([2]).to_event(1))  # bent in its logarithm


def _params(guided, *, moved=0.0):
    params = first_params(backend, jax.random.key(0), guided.model, guided.guide, (), {})
    params["flow_root"] = jnp.linalg.cholesky(jnp.eye(3) + 0.5)
    rng = np.random.default_rng(1)
    weights = {n: w + moved * rng.standard_normal(w.shape) for n, w in params.items() if n.startswith("flow_weight")}
    skew = params["flow_skew"] + 3.0 * moved * rng.standard_normal(3)
    return {**params, **weights, "flow_skew": skew}


def _draw(guided, params, key):
    found = trace(seed(substitute(guided.guide, data=params), key)).get_trace()["vr_joint"]
    return found["value"], found["intermediates"][0]


@pytest.mark.parametrize("kind", KIND_ROWS)
def test_every_kind_goes_there_and_back(kind):
    network = host.bijection(vr.Flow(kind=kind, num_layers=2, hidden=8), 3, None)
    layers, x = network.bind(network.init(jax.random.key(0))), jnp.array([0.3, -1.2, 2.0])
    y, log_det = jax.jit(lambda x: layers.at(x, None))(x)
    assert jnp.isfinite(log_det)
    if kind == "block_autoregressive":  # no inverse in closed form, and no identity at the start
        volume = jnp.linalg.slogdet(jax.jit(jax.jacfwd(lambda x: layers.at(x, None)[0]))(x))[1]
        np.testing.assert_allclose(log_det, volume, atol=1e-10)
    else:
        np.testing.assert_allclose(jnp.sort(y), jnp.sort(x), atol=1e-12)
        np.testing.assert_allclose(jax.jit(lambda y: layers.inverse(y, None))(y), x, atol=1e-10)


@pytest.mark.parametrize("kind", KIND_ROWS)
def test_log_q_is_the_density_of_the_draw(kind):
    guided = vr.guide(vr.Flow(kind=kind, num_layers=2, hidden=8))(banana)
    params = {**_params(guided, moved=0.2), "flow_tail": jnp.asarray(0.02)}
    noise = jnp.array([0.3, -1.2, 2.0])

    def place(noise):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops, "normal", lambda *_: noise)
            return _draw(guided, params, jax.random.key(3))

    value, log_q = jax.jit(place)(noise)
    volume = jnp.linalg.slogdet(jax.jit(jax.jacfwd(lambda n: place(n)[0]))(noise))[1]
    assert value.shape == (3,)
    assert abs(float(log_q - (jnp.sum(dist.Normal().log_prob(noise)) - volume))) < 1e-8


@pytest.mark.parametrize("kind", rows(without="block_autoregressive"))
def test_it_starts_as_its_gaussian(kind):
    guided = vr.guide(vr.Flow(kind=kind, num_layers=2, hidden=8))(banana)
    params = _params(guided)
    values, log_q = jax.jit(jax.vmap(lambda k: _draw(guided, params, k)))(jax.random.split(jax.random.key(0), 500))
    gaussian = dist.MultivariateNormal(params["flow_center"], scale_tril=params["flow_root"])
    np.testing.assert_allclose(log_q, jax.jit(jax.vmap(gaussian.log_prob))(values), atol=1e-9)


def _gradients(guided, params, num):
    def gradient(key):
        def loss(moving):
            return guided.objective.loss(key, {**params, **moving}, guided.model, guided.guide)

        moving = {name: value for name, value in params.items() if name.startswith(("flow_weight", "flow_skew"))}
        return jax.flatten_util.ravel_pytree(jax.grad(loss)(moving))[0]

    return np.asarray(jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(2), num)))


@pytest.mark.slow  # the Pyro backend's is not
@pytest.mark.parametrize("kind", KIND_ROWS)
def test_the_path_gradient_is_that_of_the_bound(kind):
    """In mean that of plain reparameterization, by paired draws."""
    found = []
    for gradient in ("path", "reparameterization"):
        family = vr.Flow(kind=kind, num_layers=2, hidden=4, gradient=gradient)
        guided = vr.guide(family, objective=vr.ELBO(1))(banana)
        found.append(_gradients(guided, _params(guided, moved=0.1), 4_000))
    gap = found[0] - found[1]
    error = gap.std(0) / len(gap) ** 0.5
    z = np.abs(gap.mean(0)) / np.where(error > 0.0, error, np.inf)
    assert z.max() < 4.5
    assert np.abs(gap[:, error == 0.0]).max(initial=0.0) < 1e-9


@pytest.mark.parametrize("kind", ["inverse_autoregressive", pytest.param("coupling", marks=pytest.mark.slow)])
def test_the_path_gradient_vanishes_at_the_posterior(kind):
    def standard():
        numpyro.sample("z", dist.MultivariateNormal(jnp.array([1.0, -2.0]), jnp.array([[1.0, 0.4], [0.4, 2.0]])))

    guided = vr.guide(vr.Flow(kind=kind, num_layers=2, hidden=4), objective=vr.ELBO(1))(standard)
    params = first_params(backend, jax.random.key(0), guided.model, guided.guide, (), {})
    params["flow_center"] = jnp.array([1.0, -2.0])
    params["flow_root"] = jnp.linalg.cholesky(jnp.array([[1.0, 0.4], [0.4, 2.0]]))
    assert np.abs(_gradients(guided, params, 20)).max() < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_small_gamma_needs_the_skew(side):
    """No normal is within 0.23 nats of the logarithm of a gamma variate of concentration 0.3 (or of its inverse)."""

    def model():
        numpyro.sample("z", (dist.Gamma if side > 0.0 else dist.InverseGamma)(jnp.full(4, 0.3), 1.0).to_event(1))

    bounds = {}
    for skew in (True, False):
        posterior = vr.guide(vr.Flow(num_layers=1, hidden=4, skew=skew))(model).fit(
            num_steps=1_500, num_particles=16, optimizer=optax.adam(0.02), progress=False
        )
        bounds[skew] = posterior.elbo()
    assert -0.1 < bounds[True][0] < 4.0 * bounds[True][1]
    assert bounds[False][0] < -4 * 0.23 + 4.0 * bounds[False][1]


@pytest.mark.slow
def test_one_coordinate_and_a_file(tmp_path):
    def model():
        numpyro.sample("scale", dist.Gamma(0.5, 1.0))

    guided = vr.guide(vr.Flow(kind="coupling", num_layers=1))(model)
    posterior = guided.fit(num_steps=20, num_particles=8, progress=False)
    again = vr.load(posterior.save(tmp_path / "flow.npz"), guided)
    np.testing.assert_array_equal(posterior.draws(5)["scale"], again.draws(5)["scale"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "planar"}, r"Flow\(kind='planar'\): expected one of \('coupling'"),
        ({"gradient": "score"}, r"Flow\(gradient='score'\)"),
        ({"num_layers": 0}, r"Flow\(num_layers=0\): expected an integer"),
        ({"hidden": 2.5}, r"Flow\(hidden=2.5\): expected an integer"),
        ({"skew": 1}, r"Flow\(skew=1\): expected True or False"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(vr.ArgumentError, match=match):
        vr.Flow(**options)
