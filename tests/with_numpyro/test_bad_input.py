"""Bad input is refused in one line, before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import Trace_ELBO

import vi_reparam_numpyro as vr

Y = np.array([3.0, 1.0, 4.0, 1.0])


def program(y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_data_that_is_not_finite(bad):
    with pytest.raises(vr.ArgumentError) as error:
        vr.guide(program).fit(np.array([3.0, bad, 4.0, 1.0]), progress=False)
    assert "argument 0" in line(error)


def test_keyword_data_is_named():
    @vr.guide
    def model(*, y):
        program(y)

    with pytest.raises(vr.ArgumentError) as error:
        model.fit(y=np.array([np.nan, 1.0]), progress=False)
    assert "'y'" in line(error)


def test_wrong_shapes():
    with pytest.raises(vr.ArgumentError) as error:
        vr.guide(program).fit(np.ones(7), progress=False)
    assert "(7,)" in line(error)


@pytest.mark.parametrize(
    "option",
    [
        {"num_steps": 0},
        {"num_steps": 2.5},
        {"num_particles": 0},
        {"optimizer": "adam"},
        {"seed": "zero"},
        {"seed": 1.5},
        {"progress": "yes"},
    ],
)
def test_options_of_fit(option):
    with pytest.raises(vr.ArgumentError) as error:
        vr.guide(program).fit(Y, **{"progress": False, **option})
    assert next(iter(option)) in line(error)


def test_an_objective_that_is_not_ours():
    with pytest.raises(vr.ArgumentError, match=r"vr\.ELBO"):
        vr.guide(objective=Trace_ELBO())(program)


def test_an_argument_named_like_an_option_of_fit():
    def model(seed):
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(vr.ArgumentError, match="seed"):
        vr.guide(model)


def test_an_estimator_that_does_not_apply_to_its_site():
    with pytest.raises(vr.SiteError) as error:
        vr.guide(estimators={"rate": vr.Pathwise()})(program).fit(Y, progress=False)
    assert "'rate'" in line(error) and "Implicit" in str(error.value)


@pytest.mark.slow  # the objective refuses it in test_objective.py
def test_measure_valued_does_not_serve_a_learned_concentration():
    with pytest.raises(vr.GradientError, match="concentration"):
        vr.guide(estimators={"rate": vr.MeasureValued()})(program).fit(Y, num_steps=2, progress=False)


def test_estimators_for_a_site_that_is_not_there():
    with pytest.raises(vr.ArgumentError, match="'nowhere'"):
        vr.guide(estimators={"nowhere": vr.Implicit()})(program).fit(Y, progress=False)


def test_something_that_is_no_estimator():
    with pytest.raises(vr.ArgumentError, match="expected an estimator"):
        vr.guide(estimators={"rate": "implicit"})(program)


def test_a_discrete_latent_without_a_discrete_estimator():
    @vr.guide
    def model():
        numpyro.sample("k", dist.Bernoulli(0.3))

    with pytest.raises(vr.SiteError, match="'k' is discrete"):
        model.fit(progress=False)


def test_a_support_that_no_family_covers():
    @vr.guide(estimators=vr.ScoreFunction())
    def model():
        numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))

    with pytest.raises(vr.SiteError, match="'k': no family covers"):
        model.fit(progress=False)


def test_a_support_that_moves():
    @vr.guide
    def model():
        top = numpyro.sample("top", dist.Gamma(2.0, 1.0))
        numpyro.sample("x", dist.Uniform(0.0, top))

    with pytest.raises(vr.SiteError, match="'x': its support"):
        model.fit(progress=False)


def test_a_guide_that_misses_a_site():
    def guide(y):
        numpyro.sample("other", dist.Gamma(2.0, 1.0))

    with pytest.raises(vr.SiteError, match="misses the latent site 'rate'"):
        vr.Guided(program, guide).fit(Y, progress=False)


def test_a_family_that_does_not_live_there():
    with pytest.raises(vr.ArgumentError, match="'rate'"):
        vr.guide(vr.MeanField(families={"rate": "beta"}))(program).fit(Y, progress=False)
    with pytest.raises(vr.ArgumentError, match="expected one of"):
        vr.MeanField(families={"rate": "gauss"})


def test_a_minibatch_passed_as_an_argument():
    @vr.guide
    def model(y):
        with numpyro.plate("n", 100, subsample_size=4):
            z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
            numpyro.sample("y", dist.Poisson(z), obs=y)

    with pytest.raises(vr.ArgumentError, match="does not depend on its indices"):
        model.fit(Y, progress=False)


def test_a_nan_names_its_step_and_site():
    @vr.guide(vr.MeanField())
    def model(y):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        # The log density is NaN as soon as the guide has moved far enough.
        numpyro.factor("far", jnp.where(z > 3.0, jnp.nan, 0.0) + 5.0 * z)

    with pytest.raises(vr.NonFiniteError) as error:
        model.fit(Y, num_steps=500, optimizer=optax.adam(0.1), progress=False)
    assert "far" in error.value.sites
    assert f"step {error.value.step}" in str(error.value)
    assert 0 < error.value.step < 500
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(error.value.params))
    assert len(error.value.losses) == error.value.step + 1


@pytest.mark.slow  # the objective refuses it in test_refusals.py
def test_a_false_plate():
    @vr.guide(estimators=vr.Rejection())
    def model(y):
        with numpyro.plate("n", 4):
            z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
            numpyro.sample("y", dist.Poisson(z.mean()), obs=y)

    with pytest.raises(vr.GradientError, match="plate 'n' is false"):
        model.fit(Y, progress=False)
