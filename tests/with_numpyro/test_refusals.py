"""What would be wrong raises: under NumPyro's own objectives, in false plates, in control flow."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from gradients import assert_right, gradients
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.distributions import constraints
from numpyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

import vi_reparam_numpyro as vr

HOSTS = [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, RenyiELBO]
SCORED = [vr.Rejection(), vr.ScoreFunction(), vr.MeasureValued()]


def model(y=None):
    z = numpyro.sample("z", dist.Gamma(3.0, 1.0))
    numpyro.sample("y", dist.Poisson(z), obs=y)


def _gamma(estimator):
    # MeasureValued serves the rate alone, so that is what moves.
    return dist.Gamma(2.0, numpyro.param("b", 1.0, constraint=constraints.positive))


def by_handler(estimator):
    return vr.estimate(lambda y=None: numpyro.sample("z", _gamma(estimator)), estimator)


def by_annotation(estimator):
    return lambda y=None: numpyro.sample("z", estimator(_gamma(estimator)))


def by_decorator(estimator):
    return vr.Guided(model, lambda y=None: numpyro.sample("z", _gamma(estimator)), estimators={"z": estimator}).guide


@pytest.mark.parametrize(
    ("host", "estimator", "write"),
    [  # each host, estimator and way to write it; every triple where there is time
        pytest.param(host, estimator, write, marks=() if quick else pytest.mark.slow)
        for i, host in enumerate(HOSTS)
        for j, estimator in enumerate(SCORED)
        for k, write in enumerate([by_handler, by_annotation, by_decorator])
        for quick in [(i + j + k) % 3 == 0]
    ],
    ids=lambda v: getattr(v, "__name__", repr(v)),
)
def test_a_host_objective_that_would_drop_a_score_term_raises(host, estimator, write):
    objective, guide = host(), write(estimator)

    def loss(b):
        return objective.loss(jax.random.key(0), {"b": b}, model, guide, 3.0)

    naming_both = rf"{re.escape(repr(estimator))}.* {host.__name__} would drop.*vr\.ELBO\(\)"
    with pytest.raises(vr.GradientError, match=naming_both):
        jax.eval_shape(jax.grad(loss), 1.0)
    jax.eval_shape(loss, 1.0)


@pytest.mark.parametrize("host", HOSTS, ids=lambda h: h.__name__)
def test_the_decorators_own_guide_raises_under_a_host_objective(host):
    guided = vr.guide(estimators=vr.Rejection())(model)
    svi = SVI(guided.model, guided.guide, optax.adam(0.01), host())
    state = jax.eval_shape(svi.init, jax.random.key(0), 3.0)
    with pytest.raises(vr.GradientError, match=rf"'z'.*Rejection\(boost=3\).*{host.__name__}"):
        jax.eval_shape(lambda s: svi.update(s, 3.0), state)
    if host is Trace_ELBO:  # its value is no gradient
        assert np.isfinite(float(jax.jit(lambda key: svi.evaluate(svi.init(key, 3.0), 3.0))(jax.random.key(0))))
    else:
        jax.eval_shape(svi.evaluate, state, 3.0)


def test_prediction_works_without_an_objective_of_ours():
    guide = by_handler(vr.Rejection())
    draws = Predictive(guide, params={"b": jnp.array(1.0)}, num_samples=50)(jax.random.key(0))["z"]
    assert draws.shape == (50,) and bool(jnp.all(draws > 0.0))
    predictive = Predictive(model, guide=guide, params={"b": jnp.array(1.0)}, num_samples=50)
    assert predictive(jax.random.key(1))["y"].shape == (50,)


def test_differentiating_a_bare_draw_raises():
    def draw(a):
        return vr.Rejection()(dist.Gamma(a, 1.0)).sample(jax.random.key(0))

    assert np.isfinite(float(draw(1.5)))
    with pytest.raises(vr.GradientError, match=r"Rejection\(boost=3\) leaves a score term that this computation"):
        jax.eval_shape(jax.grad(draw), 1.5)


def test_implicit_is_right_under_a_host_objective():
    def bare():
        numpyro.sample("z", dist.Gamma(3.0, 1.0))

    guide = vr.estimate(lambda: numpyro.sample("z", dist.Gamma(numpyro.param("a", 1.5), 1.0)), vr.Implicit())
    found = gradients(Trace_ELBO(), {"a": 1.5}, bare, guide, num=5_000)
    assert_right(found, {"a": -1.40220}, precise=0.03)


# False plates.

N = 4
PERMUTED = np.array([1, 2, 3, 0])


def local(likelihood, *, discrete=False):
    def program(sample_latent, observe):
        with numpyro.plate("n", N):
            prior = dist.Bernoulli(0.3) if discrete else dist.Normal(0.0, 1.0)
            z = numpyro.sample("z", sample_latent(prior))
            if observe:
                numpyro.sample("y", dist.Normal(likelihood(z), 1.0), obs=jnp.arange(float(N)))

    def written():
        own = dist.Bernoulli(logits=numpyro.param("l", jnp.zeros(N))) if discrete else None
        program(lambda _: own or dist.Normal(numpyro.param("a", jnp.full(N, 2.0)), 1.0), observe=False)

    return lambda: program(lambda prior: prior, observe=True), written


@pytest.mark.parametrize(
    ("likelihood", "discrete", "estimator"),
    [
        # the Pyro backend's, and those of every backend, are not slow
        pytest.param(lambda z: z.mean(), False, vr.ScoreFunction(), marks=pytest.mark.slow),
        pytest.param(lambda z: z[PERMUTED], False, vr.ScoreFunction(), marks=pytest.mark.slow),
        (lambda z: z[::-1], False, vr.MeasureValued()),
        pytest.param(lambda z: 1.0 * z[PERMUTED], True, vr.ScoreFunction(), marks=pytest.mark.slow),
        (lambda z: jnp.cumsum(1.0 * z), True, vr.MeasureValued()),
    ],
)
def test_a_false_plate_raises(likelihood, discrete, estimator):
    program, written = local(likelihood, discrete=discrete)
    guide = vr.estimate(written, estimator)
    with pytest.raises(vr.GradientError, match=r"plate 'n' is false: the model cost at 'y'.*draw of 'z'"):
        vr.ELBO(2).loss(jax.random.key(0), {}, program, guide)
    # The same program without a plate-wise score term needs no check.
    if not discrete:
        vr.ELBO(2).check(program, vr.estimate(written, vr.Pathwise()))


def test_a_guide_whose_elements_depend_on_each_other_raises():
    program, _ = local(lambda z: z)

    def written():
        with numpyro.plate("n", N):
            w = numpyro.sample("z", dist.Normal(numpyro.param("a", jnp.full(N, 2.0)), 1.0))
            numpyro.sample("extra", dist.Normal(w.sum(), 1.0))

    def wider():
        program()
        with numpyro.plate("n", N):
            numpyro.sample("extra", dist.Normal(0.0, 1.0))

    with pytest.raises(vr.GradientError, match=r"plate 'n' is false: the (guide|model) cost at 'extra'"):
        vr.ELBO().check(wider, vr.estimate(written, {"z": vr.ScoreFunction()}))


def test_true_plates_do_not_raise():
    def nested(prior, observe):
        with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", N, subsample_size=2, dim=-1) as i:
            z = numpyro.sample("z", prior(i))
            if observe:
                numpyro.sample("y", dist.Normal(z, 1.0), obs=jnp.ones((3, N))[:, i])
        if observe:
            numpyro.sample("total", dist.Normal(z.sum(), 1.0), obs=3.0)  # outside: it may see all elements

    def written():
        a = numpyro.param("a", jnp.full((3, N), 2.0))
        nested(lambda i: dist.Normal(a[:, i], 1.0), observe=False)

    def target():
        nested(lambda i: dist.Normal(2.0, 1.0), observe=True)

    objective, guide = vr.ELBO(2), vr.estimate(written, vr.ScoreFunction())
    objective.check(target, guide)
    assert np.isfinite(float(jax.jit(lambda k: objective.loss(k, {}, target, guide))(jax.random.key(0))))


def test_plates_of_the_guide_may_stand_elsewhere_than_the_models():
    """The divergence of normals from normals by score terms: its derivative by a mean is the mean."""

    def target():
        with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 2, dim=-1):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    def written():
        a = numpyro.param("a", jnp.ones((3, 2)))
        with numpyro.plate("columns", 2, dim=-1), numpyro.plate("rows", 3, dim=-2):
            numpyro.sample("z", dist.Normal(a, 1.0))

    at = np.array([[1.0, -0.5], [0.3, 2.0], [-1.5, 0.8]])
    found = gradients(vr.ELBO(2), {"a": at}, target, vr.estimate(written, vr.ScoreFunction()), num=8_000)
    assert_right(found, {"a": at}, precise=0.05)


def test_score_terms_in_a_plate_see_the_inner_one():
    def target():
        with numpyro.plate("rows", 3, dim=-2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with numpyro.plate("columns", 2, dim=-1):
                numpyro.sample("y", dist.Normal(z, 1.0), obs=jnp.ones((3, 2)))

    def written():
        with numpyro.plate("rows", 3, dim=-2):
            loc, scale = numpyro.param("m", jnp.zeros((3, 1))), numpyro.param("s", jnp.ones((3, 1)))
            numpyro.sample("z", dist.Normal(loc, scale))

    # of (m^2 + s^2) / 2 - log s, and twice of ((1 - m)^2 + s^2) / 2
    m, s = np.array([[0.5], [-0.3], [1.5]]), np.array([[0.8], [1.2], [0.5]])
    found = gradients(vr.ELBO(4), {"m": m, "s": s}, target, vr.estimate(written, vr.ScoreFunction()), num=8_000)
    assert_right(found, {"m": 3.0 * m - 2.0, "s": 3.0 * s - 1.0 / s}, precise=0.05)


def test_a_guides_draw_with_other_plates_than_the_models_is_right_or_raises():
    """The guide draws a plain batch where the model has a plate: sums, without Rao-Blackwellization."""

    def target():
        with numpyro.plate("n", 3):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    def written():
        numpyro.sample("z", dist.Normal(numpyro.param("a", jnp.ones(3)), 1.0))

    at = np.array([1.0, -0.5, 2.0])
    found = gradients(vr.ELBO(2), {"a": at}, target, vr.estimate(written, vr.ScoreFunction()), num=8_000)
    assert_right(found, {"a": at}, precise=0.05)


# Control flow.


def test_draws_in_control_flow_raise():
    def scanned():
        scan(lambda carry, _: (carry, numpyro.sample("z", dist.Gamma(2.0, 1.0))), 0.0, None, length=3)

    def branching():
        cond(True, lambda _: numpyro.sample("z", dist.Gamma(2.0, 1.0)), lambda _: 1.0, None)

    for guide in (scanned, branching):
        with pytest.raises(vr.SiteError, match=r"vr.estimate: the guide uses NumPyro's control flow \(scan or cond\)"):
            handlers.seed(vr.estimate(guide, vr.Rejection()), 0)()


def test_an_annotated_draw_in_control_flow_raises():
    def program():
        scan(lambda carry, _: (carry, numpyro.sample("z", dist.Gamma(2.0, 1.0))), 0.0, None, length=3)

    def guide():
        a = numpyro.param("a", 2.0)
        scan(lambda carry, _: (carry, numpyro.sample("z", vr.Rejection()(dist.Gamma(a, 1.0)))), 0.0, None, length=3)

    with pytest.raises(vr.GradientError, match=r"Rejection\(boost=3\) drew inside NumPyro's control flow"):
        jax.grad(lambda a: vr.ELBO(2).loss(jax.random.key(0), {"a": a}, program, guide))(2.0)


# Values that arrive without their noise.


def test_a_replayed_value_keeps_its_gradient():
    """The guide's own draw is substituted: the noise comes from inversion, or from its conditional law."""

    def bare():
        numpyro.sample("z", dist.Gamma(3.0, 1.0))

    def given(estimator):
        def guide():
            key = numpyro.prng_key()
            value = dist.Gamma(1.5, 1.0).sample(key)  # as another program's draw, at the same parameters
            inner = vr.estimate(lambda: numpyro.sample("z", dist.Gamma(numpyro.param("a", 1.5), 1.0)), estimator)
            handlers.substitute(inner, data={"z": value})()

        return guide

    for estimator in (vr.Rejection(), vr.Implicit()):
        found = gradients(vr.ELBO(2), {"a": 1.5}, bare, given(estimator), num=5_000)
        assert_right(found, {"a": -1.40220}, precise=0.03)


def test_a_given_value_of_a_host_sampler_raises():
    def bare():
        numpyro.sample("z", dist.Laplace(0.0, 1.0))

    def guide():
        inner = vr.estimate(lambda: numpyro.sample("z", dist.Laplace(numpyro.param("m", 0.5), 1.0)), vr.Pathwise())
        handlers.substitute(inner, data={"z": 0.3})()

    with pytest.raises(vr.GradientError, match=r"Pathwise\(\) on Laplace: the value was given"):
        gradients(vr.ELBO(), {"m": 0.5}, bare, guide, num=2)


# Estimators and sites.


@pytest.mark.parametrize(
    ("estimators", "error", "match"),
    [
        (
            {"z": vr.Pathwise()},
            vr.SiteError,
            r"site 'z': Pathwise\(\) does not apply to gamma; use one of Implicit, MeasureValued, Rejection",
        ),
        (vr.Pathwise(), vr.SiteError, r"Pathwise\(\) does not apply to gamma"),
        (
            {"w": vr.Implicit()},
            vr.ArgumentError,
            r"estimators name \['w'\], which the guide does not draw: it draws \['z'\]",
        ),
        ({"z": "rejection"}, vr.ArgumentError, r"estimators\['z'\] is 'rejection': expected an estimator"),
    ],
)
def test_bad_estimators(estimators, error, match):
    with pytest.raises(error, match=match):
        handlers.seed(vr.estimate(lambda: numpyro.sample("z", dist.Gamma(1.0, 1.0)), estimators), 0)()


def test_a_bad_annotation_of_a_site():
    guide = vr.estimate(lambda: numpyro.sample("z", dist.Gamma(1.0, 1.0), infer={"estimator": "implicit"}), {})
    with pytest.raises(vr.ArgumentError, match=r"site 'z': infer\['estimator'\] is 'implicit', expected an estimator"):
        handlers.seed(guide, 0)()
    with pytest.raises(vr.SiteError, match=r"Pathwise\(\) does not apply to gamma"):
        vr.Pathwise()(dist.Gamma(1.0, 1.0))


def test_no_boost_below_a_concentration_of_one_raises():
    def bare():
        numpyro.sample("z", dist.Gamma(3.0, 1.0))

    def guide(a):
        return lambda: numpyro.sample("z", vr.Rejection(boost=0)(dist.Gamma(numpyro.param("a", a), 1.0)))

    with pytest.raises(vr.GradientError, match=r"Rejection\(boost=0\) on gamma with concentration .* 0\.5"):
        vr.ELBO().loss(jax.random.key(0), {}, bare, guide(0.5))
    with pytest.raises(vr.GradientError, match=r"under jit the concentration is not known"):
        jax.eval_shape(lambda a: vr.ELBO().loss(jax.random.key(0), {"a": a}, bare, guide(1.5)), 1.5)
