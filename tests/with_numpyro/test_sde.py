"""vr.SDE in NumPyro: every support, plates, live data, minibatches, objectives, draws, storage."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

import vi_reparam_numpyro as vr
from vi_reparam.objectives.run import first_params
from vi_reparam.programs.vector import SITE
from vi_reparam_numpyro.backend import backend
from vi_reparam_numpyro.ops.ops import ops

SMALL = vr.SDE(num_steps=4, network=vr.MLP(width=8), warm_start=200)
Y = np.array([1.2, -0.3, 0.8, 2.1])


@vr.guide(SMALL, objective=vr.ELBO(32))
def conjugate(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def conjugate_evidence(y):
    covariance = np.eye(len(y)) + 4.0
    return -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2.0 * np.pi * covariance)[1])


@pytest.fixture(scope="module")
def fitted():
    return conjugate.fit(Y, num_steps=150, seed=1, progress=False)


# The bound.


def test_a_conjugate_model(fitted):
    truth = conjugate_evidence(Y)
    elbo, error = fitted.elbo(4_000)
    assert elbo < truth + 3.0 * error and elbo > truth - 0.1
    evidence, error = fitted.log_evidence()
    assert abs(evidence - truth) < 3.0 * error + 1e-6
    draws = np.asarray(fitted.draws(4_000)["mu"])
    precision = len(Y) + 0.25
    assert abs(draws.mean() - Y.sum() / precision) < 0.05 and abs(draws.std() - precision**-0.5) < 0.05


def every_support(y=None):
    """Constrained sites of several ranks, two plates, and a parameter of the model."""
    bias = numpyro.param("bias", 0.3)
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(3)))
    part = numpyro.sample("part", dist.Beta(2.0, 2.0))
    with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 4, dim=-1):
        z = numpyro.sample("z", dist.Normal(bias, rate))
        numpyro.sample("y", dist.Normal(z * part + share[0], 1.0), obs=y)


ONES = jnp.ones((2, 4))
LAID_OUT = vr.guide(SMALL)(every_support)


@pytest.mark.slow  # the contract has them all
@pytest.mark.parametrize("base", ["diagonal", "low_rank", "full", "mixture"])
def test_the_start_is_the_base_on_every_support(base):
    """At the start every draw's weight, and so the ELBO, is that of the base alone."""
    family = dataclasses.replace(SMALL, base=base, num_steps=8, init_scale=0.3)
    guided = vr.guide(family)(every_support)
    guided.base_guide.share(LAID_OUT.base_guide)
    params = first_params(backend, jax.random.key(0), guided.model, guided.guide, (ONES,), {})
    assert params["bias"] == 0.3
    own = {name: params[f"sde_{name}"] for name in ("loc", "log_scale", "factor", "lower") if f"sde_{name}" in params}

    def both(key):
        seeded = numpyro.handlers.substitute(numpyro.handlers.seed(guided.guide, key), data=params)
        site = numpyro.handlers.trace(seeded).get_trace(ONES)[SITE]
        return site["fn"].log_prob(site["value"], site["intermediates"]), family.base.log_prob(ops, own, site["value"])

    found, exact = jax.jit(jax.vmap(both))(random.split(random.key(0), 20))
    assert np.allclose(found, exact, rtol=1e-8, atol=1e-8)


def test_the_vector_holds_every_site():
    seen = {}

    def values():
        seen.update(numpyro.handlers.trace(numpyro.handlers.seed(LAID_OUT.guide, 0)).get_trace(ONES))
        return {name: seen[name]["value"] for name in (SITE, "share", "rate", "z")}

    value = jax.jit(values)()
    assert value[SITE].shape == (1 + 2 + 1 + 8,) and seen[SITE]["infer"]["is_auxiliary"]
    assert np.isclose(value["share"].sum(), 1.0) and value["rate"] > 0.0
    assert value["z"].shape == (2, 4)


# Live data and parameters.


def test_data_are_live_and_compile_once(fitted):
    programs = conjugate.backend.engine.programs.entries
    mine = [key for key, program in programs.items() if program.task.model is conjugate.model]
    other = conjugate.fit(Y + 5.0, num_steps=150, seed=1, progress=False)
    assert mine == [key for key, program in programs.items() if program.task.model is conjugate.model]
    moved = float(other.draws(1_000)["mu"].mean() - fitted.draws(1_000)["mu"].mean())
    assert abs(moved - 5.0 * len(Y) / (len(Y) + 0.25)) < 0.15


def test_the_gradient_of_log_p_is_of_todays_parameters_and_data():
    """The drift's target is called with what is given now, and its own subsample is all of the data."""
    layout = conjugate.base_guide.layout((Y,), {})
    for y in (Y, Y + 2.0):
        target = conjugate.base_guide._target(layout, (jnp.asarray(y),), {})
        slope = jax.jit(jax.grad(target))(jnp.asarray([0.5]))
        assert np.isclose(slope[0], np.sum(y - 0.5) - 0.5 / 4.0)

    def model():
        scale = numpyro.param("scale", 1.0)
        numpyro.sample("z", dist.Normal(0.0, scale))

    guided = vr.guide(SMALL)(model)
    layout = guided.base_guide.layout((), {})
    for scale in (1.0, 3.0):
        with numpyro.handlers.substitute(data={"scale": jnp.asarray(scale)}):
            target = guided.base_guide._target(layout, (), {})
        assert np.isclose(jax.jit(jax.grad(target))(jnp.asarray([0.9]))[0], -0.9 / scale**2)


@pytest.mark.slow  # the mean field's, and the drift's at today's parameters, are not
def test_parameters_of_the_model_are_fitted():
    @vr.guide(SMALL, objective=vr.ELBO(32))
    def model(y):
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, scale))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = 3.0 * np.random.default_rng(0).normal(size=20)
    found = model.fit(y, num_steps=400, optimizer=optax.adam(0.02), progress=False).params["scale"]
    assert abs(found - np.sqrt(np.mean(y**2) - 1.0)) < 0.3


# Minibatches.


def _subsampled(y, size):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("n", len(y), subsample_size=size) as i:
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y[i])


def test_minibatches_switch_the_gradient_off_and_say_so():
    guided = vr.guide(SMALL)(_subsampled)
    with pytest.warns(UserWarning, match="'n' is subsampled, so the drift goes without"):
        jax.eval_shape(lambda y: numpyro.handlers.seed(guided.guide, 0)(y, 2), jnp.asarray(Y))
    quiet = vr.guide(dataclasses.replace(SMALL, network=vr.MLP(width=8, target="off")))(_subsampled)
    jax.eval_shape(lambda y: numpyro.handlers.seed(quiet.guide, 0)(y, 2), jnp.asarray(Y))


def test_full_data_gradient_under_minibatches():
    family = dataclasses.replace(SMALL, network=vr.MLP(width=8, target="full"))
    guided = vr.guide(family)(_subsampled)
    y = jnp.asarray(Y)
    layout = guided.base_guide.layout((y, 2), {})
    target = guided.base_guide._target(layout, (y, 2), {})
    vector = jnp.asarray([0.1, 0.2, 0.3, 0.4, 0.5])
    slope = jax.jit(jax.grad(target))(vector)
    assert np.allclose(slope[1:], (0.1 - vector[1:]) + (Y - vector[1:]) / 0.25)


@pytest.mark.parametrize("target", ["full", pytest.param("off", marks=pytest.mark.slow)])
def test_minibatches_leave_the_bound_unbiased(target):
    family = dataclasses.replace(SMALL, network=vr.MLP(width=8, target=target), init_scale=0.5)
    guided = vr.guide(family)(_subsampled)
    y, values = jnp.asarray(Y), {}
    params = jax.jit(lambda key: first_params(backend, key, guided.model, guided.guide, (y, 4), {}))(jax.random.key(0))
    params = {n: (p + 0.1 if n.startswith("sde_out") else p) for n, p in params.items()}
    for size in (2, 4):
        one = jax.jit(lambda k, n=size: vr.ELBO(2_000).loss(random.key(k), params, guided.model, guided.guide, y, n))
        losses = [one(k) for k in range(8)]
        values[size] = np.mean(losses), np.std(losses, ddof=1) / 8**0.5
    error = np.hypot(values[2][1], values[4][1])
    assert abs(values[2][0] - values[4][0]) < 3.5 * error


# Objectives.


@pytest.mark.slow
def test_a_host_objective_that_is_right_works():
    losses = {}
    for objective in (vr.ELBO(2_000), Trace_ELBO(2_000)):
        svi = SVI(conjugate.model, conjugate.guide, optax.adam(1e-3), objective)
        state = svi.init(random.key(0), jnp.asarray(Y))
        losses[type(objective).__name__] = float(svi.evaluate(state, jnp.asarray(Y)))
        svi.update(state, jnp.asarray(Y))
    assert abs(losses["ELBO"] - losses["Trace_ELBO"]) < 0.5


def test_objectives_that_would_be_wrong_are_refused():
    def update(family, objective):
        guided = vr.guide(family)(conjugate.model)
        svi = SVI(guided.model, guided.guide, optax.adam(1e-3), objective)
        # To trace it is enough.
        return jax.eval_shape(lambda y: svi.update(svi.init(random.key(0), y), y), jnp.asarray(Y))

    with pytest.raises(vr.GradientError, match="biased under RenyiELBO"):
        update(SMALL, RenyiELBO(num_particles=4))
    update(dataclasses.replace(SMALL, gradient="reparameterization"), RenyiELBO(num_particles=4))
    varied = dataclasses.replace(SMALL, gradient="log_variance")
    with pytest.raises(vr.GradientError, match="score term that Trace_ELBO would drop"):
        update(varied, Trace_ELBO(4))
    with pytest.raises(vr.GradientError, match="two or more particles"):
        vr.guide(varied, objective=vr.ELBO(1))(conjugate.model).fit(Y, num_steps=2, progress=False)
    with pytest.raises(vr.SiteError, match="no entropy"):
        vr.guide(SMALL, objective=vr.ELBO(2, entropy="analytic"))(conjugate.model).fit(Y, num_steps=2, progress=False)


@pytest.mark.slow  # the Pyro backend's is not
def test_log_variance_fits():
    guided = vr.guide(dataclasses.replace(SMALL, gradient="log_variance"), objective=vr.ELBO(64))(conjugate.model)
    posterior = guided.fit(Y, num_steps=150, progress=False)
    elbo, error = posterior.elbo(4_000)
    assert conjugate_evidence(Y) - 0.1 < elbo < conjugate_evidence(Y) + 3.0 * error


def test_what_it_cannot_draw_is_refused():
    def discrete():
        numpyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(vr.SiteError, match="'k' is discrete"):
        vr.guide(SMALL)(discrete).fit(num_steps=2, progress=False)
    with pytest.raises(vr.ArgumentError, match="no latent site"):
        vr.guide(SMALL)(lambda: None).fit(num_steps=2, progress=False)
    with pytest.raises(vr.ArgumentError, match="draws all sites together"):
        vr.guide(SMALL, estimators=vr.Implicit())(discrete)
    guided = vr.guide(SMALL)(conjugate.model)
    replayed = numpyro.handlers.substitute(numpyro.handlers.seed(guided.guide, 0), data={SITE: jnp.zeros(1)})
    tr = numpyro.handlers.trace(replayed).get_trace(jnp.asarray(Y))
    with pytest.raises(vr.SiteError, match="lost its path"):
        tr[SITE]["fn"].log_prob(tr[SITE]["value"])


# The posterior.


def test_draws_with_other_steps(fitted):
    trained = fitted.draws(500, seed=3)["mu"]
    assert np.array_equal(trained, fitted.draws(500, seed=3)["mu"])
    draws, log_weights = fitted.draws(4_000, num_steps=8, with_weights=True)
    w = np.exp(log_weights - conjugate_evidence(Y))
    assert draws["mu"].shape == log_weights.shape == (4_000,)
    assert abs(w.mean() - 1.0) < 3.0 * w.std() / 4_000**0.5
    _, log_weights = fitted.draws(fitted.default_num_weights, with_weights=True)
    assert np.allclose(log_weights, fitted.log_weights)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": vr.Adams(order=2, corrector=3), "num_steps": 16},
        pytest.param({"order": 2, "num_steps": 8}, marks=pytest.mark.slow),
        pytest.param({"tau": 0.0, "order": 2, "num_steps": 32}, marks=pytest.mark.slow),
        {"solver": vr.Adams(form="noise"), "tau": vr.Ramp(1.0, 0.0), "num_steps": 32},
    ],
    ids=repr,
)
def test_draws_by_another_solver(fitted, options):
    draws = np.asarray(fitted.draws(2_000, seed=3, **options)["mu"])
    assert draws.shape == (2_000,)
    assert abs(draws.mean() - Y.sum() / 4.25) < 0.15 and abs(draws.std() - 4.25**-0.5) < 0.15


def test_draws_that_cannot_be(fitted):
    with pytest.raises(vr.ArgumentError, match="has no density"):
        fitted.draws(10, tau=0.0, with_weights=True)
    with pytest.raises(vr.ArgumentError, match="has no density"):
        fitted.draws(10, solver=vr.Adams(corrector=2), with_weights=True)
    for options in ({"solver": 3}, {"order": 9}, {"num_steps": 0}, {"tau": -1.0}):
        with pytest.raises(vr.ArgumentError, match="expected"):
            fitted.draws(10, **options)
    plain = vr.guide(vr.MeanField())(conjugate.model)
    plain = vr.Posterior(plain, plain.start(Y), args=(Y,), kwargs={}, losses=[], seed=0, record={})
    with pytest.raises(vr.ArgumentError, match=r"only a guide of vr\.SDE"):
        plain.draws(10, order=2)


def test_it_is_a_posterior_like_any_other(fitted, tmp_path):
    assert fitted.predict(num_draws=7)["y"].shape == (7, 4)
    data = fitted.to_arviz(num_draws=10)
    assert set(data.posterior.data_vars) == {"mu"} and data.posterior["mu"].shape == (1, 10)
    assert "mu" in str(fitted.summary())
    path = tmp_path / "posterior.vr"
    fitted.save(path)
    again = vr.load(path, conjugate)
    assert np.allclose(again.draws(50)["mu"], fitted.draws(50)["mu"])
    assert pickle.loads(pickle.dumps(conjugate)).family == SMALL


# Networks.


@pytest.mark.slow  # the Pyro backend's is not
def test_a_network_of_ones_own():
    import equinox

    class Drift(equinox.Module):
        inner: equinox.nn.MLP

        def __call__(self, x, lam):
            return self.inner(jnp.append(x, lam)) * 0.1

    own = Drift(equinox.nn.MLP(2, 1, 8, 1, key=random.key(0)))
    family = dataclasses.replace(SMALL, network=own, warm_start=50)
    posterior = vr.guide(family, objective=vr.ELBO(32))(conjugate.model).fit(Y, num_steps=100, progress=False)
    assert abs(posterior.elbo(2_000)[0] - conjugate_evidence(Y)) < 0.2
    before = jax.tree.leaves(equinox.filter(own, equinox.is_inexact_array))
    after = jax.tree.leaves(posterior.params["sde_network"])
    assert any(not np.allclose(a, b) for a, b in zip(before, after, strict=True))


def test_a_network_of_the_wrong_shape():
    family = dataclasses.replace(SMALL, network=lambda x, lam: jnp.zeros(3))
    with pytest.raises(vr.ArgumentError, match="returned shape"):
        vr.guide(family)(conjugate.model).fit(Y, num_steps=2, progress=False)
