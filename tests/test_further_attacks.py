"""What another round of attacks found (README.md): in both backends."""

import numpy as np
import pytest
from test_both_backends import mean_field, running
from test_cut_off import FEW, Y, mean
from test_nothing_silent import X, line
from test_what_people_give import refused

# Parameters out of their range whose densities are finite, computed in the model of what it is given.

SKEWED = np.array([[1.0, 0.5], [0.2, 1.0]])
TWO, AXIS = np.array([0.5, 1.0]), np.array([1.0, 0.0, 0.0])


def normal(b, z, **matrix):
    import_module = pytest.importorskip({"numpyro": "numpyro.distributions", "pyro": "pyro.distributions"}[b.name])
    return import_module.MultivariateNormal(z * b.array(np.ones(2)), **matrix)


FINITE = {  # what the model makes of a number or a matrix, what it is given, its data, and the parameter that is named
    "covariance": (lambda b, z, c: normal(b, z, covariance_matrix=2.0 * c), SKEWED, TWO, "covariance_matrix"),
    "precision": (lambda b, z, c: normal(b, z, precision_matrix=2.0 * c), SKEWED, TWO, "precision_matrix"),
    "factor": (lambda b, z, c: normal(b, z, scale_tril=c - 0.1), SKEWED, TWO, "scale_tril"),
    "angle": (lambda b, z, c: b.dist.VonMises(z, -2.0 * c), 1.0, 0.5, "concentration"),
    "of a logarithm": (lambda b, z, c: b.dist.VonMises(z, b.xp.log(c)), 0.5, 0.5, "concentration"),
    "shape": (lambda b, z, c: b.dist.Gamma(c - 2.5, b.xp.exp(z)), 1.0, 0.5, "concentration"),
    "probability": (lambda b, z, c: b.dist.Bernoulli(c + 0.5), 1.0, 1.0, "probs"),
    "on a sphere": (lambda b, z, c: b.vr.VonMisesFisher(b.array(AXIS), -c), 1.0, AXIS, "concentration"),
    "direction": (lambda b, z, c: b.vr.VonMisesFisher(b.array(2.0 * AXIS), c), 1.0, AXIS, "direction"),
}


@pytest.mark.parametrize("what", FINITE)
def test_a_parameter_whose_density_is_finite_out_of_its_range_is_refused(b, what):
    make, given, data, named = FINITE[what]

    def model(c, y):
        z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
        b.host.sample("y", make(b, z, c), obs=y)

    numpyro = rf"site 'y': {named} of its \w+ is out of range for these arguments: expected "
    words = rf"{numpyro}|Expected parameter {named} .* to (satisfy|be) "
    refused(b, words, lambda: mean_field(b, model).fit(b.array(given), b.array(data), **FEW))


def test_what_a_mask_hides_may_be_out_of_range():
    with running("numpyro", 64) as b:  # Pyro looks at it all the same

        def model(c, y):
            z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
            with b.host.plate("n", 2):
                b.host.sample("y", b.dist.VonMises(z, 2.0 * c).mask(c > 0.0), obs=y)

        fit = mean_field(b, model).fit(b.array(np.array([-1.0, 2.0])), b.array(TWO), **FEW)
        assert np.isfinite(fit.losses).all()


BESIDE = {
    "a fraction of a count": (lambda b, z: b.dist.Poisson(b.xp.exp(z)), [0.5, 1.0, 2.0]),
    "a count below zero": (lambda b, z: b.dist.Poisson(b.xp.exp(z)), [-1.0, 1.0, 2.0]),
    "a third class of two": (lambda b, z: b.dist.Bernoulli(logits=z), [0.0, 1.0, 2.0]),
    "a time below zero": (lambda b, z: b.dist.Gamma(b.array(2.0), b.xp.exp(z)), [-3.0, 1.0, 2.0]),
}


@pytest.mark.parametrize("what", BESIDE)
def test_data_out_of_the_support_name_their_site(b, what):
    """NumPyro's error said that the cause did not come again."""
    make, y = BESIDE[what]

    def model(y):
        z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("n", 3):
            b.host.sample("y", make(b, z), obs=y)

    words = "stopped at step 0: site 'y': log density in the model is not finite for 1 of 3|to be within the support"
    refused(b, words, lambda: mean_field(b, model).fit(b.array(np.array(y)), **FEW))


@pytest.mark.parametrize("kind", ["Multinomial", "DirichletMultinomial"])
def test_totals_that_are_not_those_of_the_rows_are_told(kind):
    """Pyro's tutorials give the largest of all; in NumPyro the density is zero."""
    with running("pyro", 64) as b:
        make = getattr(pytest.importorskip("pyro.distributions"), kind)

        def model(y):
            z = b.host.sample("z", b.dist.Dirichlet(b.array(np.ones(3))))
            with b.host.plate("n", 2):
                b.host.sample("y", make(10, z) if kind == "Multinomial" else make(z, 10), obs=y)

        words = (
            f"a {kind} of total_count=.*10.* has data whose rows hold from 6 to 10: its density counts each row's own"
        )
        with pytest.warns(UserWarning, match=words):
            mean_field(b, model).fit(b.array(np.array([[1.0, 2.0, 3.0], [4.0, 3.0, 3.0]])), **FEW)


# Names: a host forgets the first of two things.


def test_two_things_of_one_name_are_refused(b):
    def drawn():
        return b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))

    def with_parameter(y):
        b.host.sample("y", b.dist.Normal(drawn() * b.host.param("z", b.array(1.0)), b.array(1.0)), obs=y)

    def with_plate(y):
        z = drawn()
        with b.host.plate("z", 3):
            b.host.sample("y", b.dist.Normal(z, b.array(1.0)), obs=y)

    for model in (with_parameter, with_plate):
        words = "site 'z' is a sample site and a p.*: give each a name|z is already in the trace|Multiple sample sites"
        refused(b, words, lambda model=model: mean_field(b, model).fit(b.array(Y), **FEW))


def test_a_model_whose_call_runs_nothing_is_refused(b):
    def yields():
        yield b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))

    async def waits():
        b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))

    for model in (yields, waits):
        refused(b, "has yield or async in it, so that a call runs none of it", lambda model=model: b.vr.guide(model))


# What is asked of a posterior.

RETURNED = {
    "text": (lambda z: "a", "expectation: fn returned 'a': expected real numbers"),
    "text beside numbers": (lambda z: {"a": z["mu"], "b": "c"}, "expectation: fn returned 'c'"),
    "nothing": (lambda z: None, "expectation: fn returned None"),
    "complex numbers": (lambda z: z["mu"] * 1j, "expectation: fn returned "),
    "another site": (lambda z: z["nu"], "expectation: fn asks for 'nu', and the sites are: mu"),
}


def test_what_a_function_of_a_draw_returns_is_numbers(b):
    posterior = mean_field(b, mean(b)).fit(b.array(Y), **FEW)
    for fn, words in RETURNED.values():
        refused(b, words, lambda fn=fn: posterior.expectation(fn, 10))
    words = "expected names of sites, as "
    refused(b, words, lambda: posterior.predict(return_sites=[1]))

    def other():
        b.host.sample("nu", b.dist.Normal(b.array(0.0), b.array(1.0)))

    words = r"fit\(init=\): the posterior has none of this model's latents: it has mu, not nu"
    refused(b, words, lambda: mean_field(b, other).fit(init=posterior, **FEW))


# Groups that pandas says are missing.


def test_a_code_of_what_is_missing_is_told(b):
    def model(group, y):
        with b.host.plate("groups", 3):
            z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("n", 4):
            b.host.sample("y", b.dist.Normal(z[group], b.array(1.0)), obs=y)

    codes = pytest.importorskip("pandas").Series(["a", None, "b", "c"], dtype="category").cat.codes.to_numpy()
    with pytest.warns(UserWarning, match="index -1 counts from the end: it takes the last row"):
        mean_field(b, model).fit(codes.astype(np.int64), b.array(np.ones(4)), **FEW)


def test_a_density_of_no_data_or_of_other_data_is_refused(b):
    posterior = mean_field(b, line(b)).fit(X, y=0.1 * X, **FEW)
    refused(b, "log_likelihood: nothing is observed in these arg", lambda: posterior.log_likelihood(X))
    words = "log_likelihood: the density could not run on arguments of shapes|predict: the model could not run"
    refused(b, words, lambda: posterior.log_likelihood(X, y=np.ones(5)))
    words = "argument 'y' holds 1 NaN or infinite values of 6, and so is the log likelihood of 'y'"
    refused(b, words, lambda: posterior.log_likelihood(X, y=np.where(X[1] == X, np.nan, X)))
    refused(b, "compare_models: give two posteriors at least", lambda: b.vr.compare_models({"a": posterior, "b": 1}))


# Ctrl-C in a study.


def test_a_study_ends_where_a_fit_was_interrupted(b, monkeypatch):
    """Its row stood beside those of whole fits."""
    guided = mean_field(b, mean(b))
    posterior = guided.fit(b.array(Y), **FEW)
    posterior.record["interrupted"] = "the fit was interrupted after 3 of 9 steps"
    monkeypatch.setattr(b.vr.Guided, "fit", lambda *_, **__: posterior)
    for study in (b.vr.compare_guides, b.vr.compare_fits, b.vr.calibrate):
        with pytest.raises(KeyboardInterrupt, match="interrupted after 3 of 9 steps"):
            study(guided, b.array(Y), progress=False)
