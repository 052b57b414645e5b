"""vr.guide and vr.MeanField: the decorator, every support, plates, minibatches, modules."""

from __future__ import annotations

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.contrib.module import eqx_module, flax_module
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, SVI, Predictive

import vi_reparam_numpyro as vr

Y = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])


@vr.guide(vr.MeanField())
def counts(y=None):
    """Counts with one rate."""
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("n", len(Y)):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


class Clinic:
    def __init__(self, prior):
        self.prior = prior

    @vr.guide(vr.MeanField(init_scale=0.2), objective=vr.ELBO(4))
    def model(self, y):
        rate = numpyro.sample("rate", dist.Gamma(self.prior, 1.0))
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Poisson(rate), obs=y)


# The decorator.


def test_bare_and_with_arguments():
    assert counts.name == "counts" and counts.__doc__ == "Counts with one rate."
    assert counts.family == vr.MeanField() and counts.objective.num_particles == 8
    chosen = vr.guide(vr.MeanField(init_scale=0.3), estimators=vr.Implicit(), objective=vr.ELBO(2))(counts.model)
    assert chosen.family.init_scale == 0.3 and chosen.objective.num_particles == 2
    assert vr.guide()(counts.model).family == vr.Escalate()
    assert "counts" in repr(counts) and "MeanField" in repr(counts)


def test_it_is_still_the_model():
    tr = handlers.trace(handlers.seed(counts, 0)).get_trace()
    assert tr["y"]["value"].shape == (8,)
    assert Predictive(counts, num_samples=3)(jax.random.key(0))["y"].shape == (3, 8)
    conditioned = handlers.condition(counts, data={"rate": 2.0})
    assert handlers.trace(handlers.seed(conditioned, 0)).get_trace()["rate"]["is_observed"]


@pytest.mark.slow
def test_nuts_runs_on_it():
    mcmc = MCMC(NUTS(counts), num_warmup=100, num_samples=200, progress_bar=False)
    mcmc.run(jax.random.key(0), Y)
    assert float(mcmc.get_samples()["rate"].mean()) == pytest.approx(33.0 / 9.0, abs=0.3)


def test_plain_svi():
    svi = SVI(counts.model, counts.guide, optax.adam(0.02), counts.objective)
    state = jax.jit(svi.init)(jax.random.key(0), Y)
    evaluate = jax.jit(svi.evaluate)
    before = float(evaluate(state, Y))
    state = jax.jit(lambda s: jax.lax.fori_loop(0, 300, lambda _, s: svi.update(s, Y)[0], s))(state)
    assert float(evaluate(state, Y)) < before + 0.2  # both are noisy, and the start is near the optimum
    params = svi.get_params(state)
    assert float(params["rate_mean"]) == pytest.approx(33.0 / 9.0, rel=0.1)  # the posterior is Gamma(33, 9)
    draws = Predictive(counts.guide, params=params, num_samples=5)(jax.random.key(1), Y)
    assert draws["rate"].shape == (5,)


def test_methods():
    clinic = Clinic(2.0)
    assert clinic.model is clinic.model  # so that what it compiled is kept
    assert clinic.model.objective.num_particles == 4
    start = clinic.model.start(Y)
    assert set(start) == {"rate_concentration", "rate_mean"}
    handlers.seed(clinic.model, 0)(Y)
    assert Clinic(3.0).model is not clinic.model


def test_pickles():
    assert pickle.loads(pickle.dumps(counts)) is counts
    again = pickle.loads(pickle.dumps(vr.Guided(_bare, vr.MeanField(init_scale=0.3), estimators=vr.Implicit())))
    assert again.name == "_bare" and again.family.init_scale == 0.3 and again.estimators["*"] == vr.Implicit()
    assert copy.copy(counts) is counts


def _bare(y):
    numpyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: vr.guide("mean-field"), r"vr.guide\('mean-field'\): expected a guide family"),
        (lambda: vr.guide()(3), r"decorates a model, and 3 is not callable"),
        (lambda: vr.guide(estimators=3)(_bare), r"estimators"),
        (lambda: vr.MeanField(init_scale=0.0), r"MeanField\(init_scale=0.0\): expected a positive number"),
    ],
)
def test_bad_decorations(make, match):
    with pytest.raises((vr.ArgumentError, TypeError), match=match):
        make()


# Supports.

FIXED = {
    "real": dist.Normal(1.0, 2.0),
    "half": dist.HalfNormal(2.0),
    "positive": dist.LogNormal(0.0, 1.0),
    "unit": dist.Beta(2.0, 3.0),
    "uniform": dist.Uniform(0.0, 1.0),
    "interval": dist.Uniform(-2.0, 3.0),
    "simplex": dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])),
    "sphere": dist.ProjectedNormal(jnp.array([1.0, 0.0, 0.0])),
    "circular": dist.VonMises(0.5, 2.0),
    "ordered": dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([3]).to_event(1), dist.transforms.OrderedTransform()
    ),
    "cholesky": dist.LKJCholesky(3, 2.0),
    "corr": dist.LKJ(3, 2.0),
    "lower_cholesky": dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand([3]).to_event(1), dist.transforms.LowerCholeskyTransform()
    ),
    "vector": dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
    "event": dist.Gamma(2.0, 1.0).expand([2, 3]).to_event(1),
    "batch": dist.Normal(0.0, 1.0).expand([4]),
}
EXPECTED = {
    "half": "gamma",
    "unit": "beta",
    "uniform": "beta",
    "simplex": "dirichlet",
    "sphere": "von_mises_fisher",
    "circular": "von_mises",
}


QUICK = ("real", "half", "unit", "simplex", "sphere", "circular")
"""Those that compile quickly; all of them together take a minute."""


def supports(names, discrete):
    for name in names:
        numpyro.sample(name, FIXED[name])
    if discrete:
        numpyro.sample("flag", dist.Bernoulli(0.3))
        numpyro.sample("count", dist.Poisson(2.0))
    improper = numpyro.sample("improper", dist.ImproperUniform(constraints.positive, (), ()))
    numpyro.sample("anchor", dist.Normal(improper, 1.0), obs=2.0)


@pytest.mark.parametrize(
    ("names", "discrete"),
    [(QUICK, False), *(pytest.param(names, True, marks=pytest.mark.slow) for names in (QUICK, tuple(FIXED)))],
    ids=["quick", "quick, discrete", "all"],
)
def test_every_support(names, discrete):
    estimators = {"flag": vr.MeasureValued(), "count": vr.ScoreFunction(baseline=None)} if discrete else None
    guided = vr.guide(vr.MeanField(), estimators=estimators, objective=vr.ELBO())(
        functools.partial(supports, names, discrete)
    )
    wanted = {name: FIXED[name] for name in names}
    params = guided.start()
    held = {n: v for n, v in params.items() if n.startswith("vr.")}
    sites = {}

    def value_and_checks(trained):
        def loss(p):
            # not a key that counts 2, the rate at the start: there its score is zero
            return guided.objective.loss(jax.random.key(4), {**held, **p}, guided.model, guided.guide)

        drawn = handlers.substitute(handlers.seed(guided.guide, 0), data={**held, **trained})
        sites.update(handlers.trace(drawn).get_trace())
        inside = {n: jnp.all(d.support(sites[n]["value"])) for n, d in wanted.items()}
        scores = {n: d.log_prob(sites[n]["value"]) for n, d in wanted.items()}
        return jax.value_and_grad(loss)(trained), inside, scores

    trained = {n: v for n, v in params.items() if not n.startswith("vr.")}
    (value, grads), inside, scores = jax.jit(value_and_checks)(trained)
    for name, d in wanted.items():
        fn = sites[name]["fn"]
        assert inside[name], f"{name} left its support"
        assert np.isfinite(np.asarray(scores[name])).all(), name
        assert sites[name]["value"].shape == d.shape(), name
        assert fn.batch_shape == d.batch_shape and fn.event_shape == d.event_shape, name
        assert name not in EXPECTED or fn.family.name == EXPECTED[name]
    if discrete:
        assert sites["flag"]["fn"].family.name == "bernoulli" and sites["count"]["fn"].family.name == "poisson"
    assert np.isfinite(float(value))
    assert all(np.isfinite(np.asarray(g)).all() for g in grads.values())
    moving = [n for n, g in grads.items() if np.any(np.asarray(g) != 0.0)]
    assert set(moving) == set(trained)


def test_a_family_can_be_named():
    def model():
        numpyro.sample("a", dist.HalfNormal(1.0))
        numpyro.sample("b", dist.HalfNormal(1.0))

    guided = vr.guide(vr.MeanField(families={"a": "inverse_gamma", "b": "transformed_normal"}))(model)
    tr = handlers.trace(handlers.seed(guided.guide, 0)).get_trace()
    assert tr["a"]["fn"].family.name == "inverse_gamma"
    assert isinstance(tr["b"]["fn"].base, dist.TransformedDistribution)


# Exact answers.


def hierarchy(y, batch_size=None):
    """Local rates, one a count: the posterior of each is Gamma(2 + y, 1 + 1)."""
    with numpyro.plate("n", len(y), subsample_size=batch_size) as i:
        z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
        numpyro.sample("y", dist.Poisson(z), obs=y[i])


@pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.slow), 3])
def test_local_latents_with_and_without_minibatches(batch_size):
    guided = vr.guide(vr.MeanField(), objective=vr.ELBO(4))(hierarchy)
    steps = 1_000 if batch_size is None else 4_000
    posterior = guided.fit(Y, batch_size, num_steps=steps, progress=False)
    np.testing.assert_allclose(posterior.params["z_mean"], (2.0 + Y) / 2.0, rtol=0.06)
    np.testing.assert_allclose(posterior.params["z_concentration"], 2.0 + Y, rtol=0.25)


@pytest.mark.slow  # of local ones is not
def test_a_global_latent_with_minibatches():
    @vr.guide(vr.MeanField(), objective=vr.ELBO(8))
    def model(y, batch_size):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        with numpyro.plate("n", len(y), subsample_size=batch_size) as i:
            numpyro.sample("y", dist.Poisson(rate), obs=y[i])

    posterior = model.fit(Y, 4, num_steps=3_000, progress=False)
    assert float(posterior.params["rate_mean"]) == pytest.approx(33.0 / 9.0, rel=0.03)
    assert float(posterior.params["rate_concentration"]) == pytest.approx(33.0, rel=0.15)


@pytest.mark.slow
def test_nested_plates_and_batch_dimensions_without_plates():
    shape = (3, 2)
    y = np.arange(6.0).reshape(shape)

    def model(y):
        numpyro.sample("free", dist.Gamma(3.0, jnp.array([1.0, 2.0])))
        with numpyro.plate("rows", 3, dim=-2):
            row = numpyro.sample("row", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            with numpyro.plate("columns", 2, dim=-1):
                numpyro.sample("z", dist.Gamma(2.0, 1.0))
                numpyro.sample("y", dist.Normal(row.sum(-1), 1.0), obs=y)

    guided = vr.guide(vr.MeanField())(model)
    tr = handlers.trace(handlers.seed(guided.guide, 0)).get_trace(y)
    assert tr["row"]["value"].shape == (3, 1, 2) and tr["row"]["fn"].batch_shape == (3, 1)
    assert tr["z"]["value"].shape == shape and {f.name for f in tr["z"]["cond_indep_stack"]} == {"rows", "columns"}
    posterior = guided.fit(y, num_steps=1_500, progress=False)
    np.testing.assert_allclose(posterior.params["free_mean"], [3.0, 1.5], rtol=0.06)
    np.testing.assert_allclose(posterior.params["z_concentration"], np.full(shape, 2.0), rtol=0.2)
    # Two equal normals behind each row: the mean of each is (y1 + y2) / 5, and mean-field keeps it.
    np.testing.assert_allclose(posterior.params["row_loc"][:, 0], np.repeat(y.sum(1), 2).reshape(3, 2) / 5.0, atol=0.1)


# What else a model may hold.


def test_params_in_the_model_are_learned():
    @vr.guide(vr.MeanField())
    def model(y):
        loc = numpyro.param("loc", 0.0)
        z = numpyro.sample("z", dist.Normal(loc, 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5).expand([len(y)]).to_event(1), obs=y)

    posterior = model.fit(Y, num_steps=1_500, progress=False)
    assert float(posterior.params["loc"]) == pytest.approx(Y.mean(), abs=0.1)  # the evidence is largest there


def test_an_improper_prior():
    @vr.guide(vr.MeanField())
    def model(y):
        z = numpyro.sample("z", dist.ImproperUniform(constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(z, 1.0).expand([len(y)]).to_event(1), obs=y)

    posterior = model.fit(Y, num_steps=1_500, progress=False)
    assert float(posterior.params["z_loc"]) == pytest.approx(Y.mean(), abs=0.1)
    assert float(posterior.params["z_scale"]) == pytest.approx(8.0**-0.5, rel=0.1)


@pytest.mark.slow  # the Pyro backend's is not
def test_an_improper_posterior():
    def model():
        numpyro.sample("z", dist.ImproperUniform(constraints.real, (), ()))
        numpyro.sample("w", dist.Normal(0.0, 1.0))

    verdict = vr.guide(vr.FullRank())(model).fit(progress=False).verdict
    assert verdict.grade == "poor"
    assert "['z'] lie beyond 1e+15: the posterior may be improper" in verdict.reasons[0]


def test_a_flax_module_in_the_model():
    linen = pytest.importorskip("flax.linen")
    x = np.linspace(-1.0, 1.0, 8)[:, None]

    @vr.guide(vr.MeanField(), objective=vr.ELBO(2))
    def model(x, y):
        net = flax_module("net", linen.Dense(1), input_shape=(1,))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        with numpyro.plate("n", len(x)):
            numpyro.sample("y", dist.Normal(net(x)[:, 0], noise), obs=y)

    posterior = model.fit(x, 2.0 * x[:, 0] + 1.0, num_steps=600, progress=False)
    net = posterior.params["net$params"]
    assert float(np.ravel(net["kernel"])[0]) == pytest.approx(2.0, abs=0.2)
    assert float(np.ravel(net["bias"])[0]) == pytest.approx(1.0, abs=0.2)


def test_an_equinox_module_in_the_model():
    eqx = pytest.importorskip("equinox")
    x = np.linspace(-1.0, 1.0, 8)[:, None]
    start = eqx.nn.Linear(1, 1, key=jax.random.key(0))

    @vr.guide(vr.MeanField(), objective=vr.ELBO(2))
    def model(x, y):
        net = eqx_module("net", start)
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        with numpyro.plate("n", len(x)):
            numpyro.sample("y", dist.Normal(jax.vmap(net)(x)[:, 0], noise), obs=y)

    posterior = model.fit(x, 2.0 * x[:, 0] + 1.0, num_steps=600, progress=False)
    leaves = [float(np.ravel(v)[0]) for v in jax.tree.leaves(posterior.params["net$params"])]
    assert sorted(leaves) == pytest.approx([1.0, 2.0], abs=0.2)


def test_discrete_latents_with_a_named_estimator():
    """One flag, enumerable: the guide's probability goes to the posterior's."""

    @vr.guide(vr.MeanField(), estimators={"flag": vr.MeasureValued()})
    def model(x):
        flag = numpyro.sample("flag", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(2.0 * flag, 1.0), obs=x)

    posterior = model.fit(np.array(1.4), num_steps=1_500, seed=1, progress=False)
    odds = 0.3 / 0.7 * np.exp(-0.5 * (1.4 - 2.0) ** 2 + 0.5 * 1.4**2)
    assert float(posterior.params["flag_logits"]) == pytest.approx(np.log(odds), abs=0.1)


def test_the_start_is_near_the_data():
    """A start far from everything costs a guide most of its steps."""

    @vr.guide(vr.MeanField())
    def model(y):
        level = numpyro.sample("level", dist.Normal(0.0, 100.0))
        numpyro.sample("y", dist.Normal(level, 10.0).expand([len(y)]).to_event(1), obs=y)

    assert abs(float(model.start(Y + 100.0)["level_loc"]) - 104.0) < 40.0


def test_bounds_come_from_data_and_not_from_draws():
    def computed_from_a_draw(y):
        z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
        numpyro.sample("u", dist.Uniform(0.0, 2.0 * z))

    def computed_from_data(y):
        numpyro.sample("u", dist.Uniform(0.0, jnp.max(y)))

    with pytest.raises(vr.SiteError, match="its support follows site 'z'"):
        handlers.seed(vr.guide(vr.MeanField())(computed_from_a_draw).guide, 0)(Y)
    guide = vr.guide(vr.MeanField())(computed_from_data).guide
    assert jax.jit(handlers.seed(guide, 0))(Y)["u"] < Y.max()
    assert handlers.seed(guide, 0)(Y)["u"] < Y.max()
