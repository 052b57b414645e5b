"""The ready models: one program, two hosts, one density."""

import inspect

import numpy as np
import pytest

from vi_reparam.backend.host import Host
from vi_reparam.errors import ArgumentError
from vi_reparam.estimators import Estimator
from vi_reparam_models import get, names

COUNTS = np.random.default_rng(0).poisson(2.0, (6, 5))

CASES = {
    "breast_cancer": ({}, {}),
    "digits": ({}, {"num_factors": 3}),
    "dirichlet_multinomial": ({}, {"shape": 1.5}),
    "eight_schools": ({}, {"centered": True}),
    "gamma_poisson": ({}, {"concentration": 0.5}),
    "sparse_gamma_def": ({"layers": (4, 3, 2), "counts": COUNTS}, {"layers": (2,), "counts": COUNTS}),
}
VARIANTS = [(name, options) for name, pair in CASES.items() for options in pair]


@pytest.fixture(autouse=True)
def double_precision():
    import jax
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(before)


def numpyro_host():
    from vi_reparam_numpyro.host.statements import host

    return host


def pyro_host():
    from vi_reparam_pyro.host.statements import host

    return host


def shapes_of(program, *args, **kwargs):
    """The sites of a program with the shapes of their values; nothing is drawn or compiled."""
    import jax
    from numpyro import handlers

    found = {}

    def run():
        found.update(handlers.trace(handlers.seed(program, 1)).get_trace(*args, **kwargs))

    jax.eval_shape(run)
    return found


def some_values(model):
    """Values of the latent sites, inside their supports."""
    from numpyro.distributions import constraints

    args, kwargs = model.data()
    rng = np.random.default_rng(1)
    values = {}
    for name, site in shapes_of(model.model(numpyro_host()), *args, **kwargs).items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        shape, support = site["value"].shape, site["fn"].support
        if support is constraints.simplex:
            values[name] = rng.dirichlet(np.ones(shape[-1]))
        elif support in (constraints.positive, constraints.nonnegative):
            values[name] = rng.gamma(2.0, 0.5, shape)
        else:
            values[name] = rng.normal(size=shape)
    return values


def numpyro_log_density(program, args, kwargs, values):
    import jax
    from numpyro.infer.util import log_density

    return float(jax.jit(lambda values: log_density(program, args, kwargs, values)[0])(values))


def pyro_log_density(program, args, kwargs, values):
    import pyro
    import torch

    values = {k: torch.tensor(v) for k, v in values.items()}
    trace = pyro.poutine.trace(pyro.poutine.condition(program, data=values)).get_trace(*args, **kwargs)
    return trace.log_prob_sum().item()


def test_every_model_has_a_case():
    assert sorted(CASES) == names()


def test_both_hosts_satisfy_the_protocol():
    assert isinstance(numpyro_host(), Host)
    assert isinstance(pyro_host(), Host)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_hosts_agree_on_the_log_density(name, options):
    model = get(name, **options)
    args, kwargs = model.data()
    values = some_values(model)
    ours = numpyro_log_density(model.model(numpyro_host()), args, kwargs, values)
    theirs = pyro_log_density(model.model(pyro_host()), args, kwargs, values)
    assert np.isfinite(ours)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_data_fits_the_signature_and_is_optional(name, options):
    model = get(name, **options)
    args, kwargs = model.data()
    program = model.model(numpyro_host())
    inspect.signature(program).bind(*args, **kwargs)
    assert all(isinstance(value, np.ndarray) for value in (*args, *kwargs.values()))
    trace = shapes_of(program, *args)
    for key, value in kwargs.items():
        if key in trace:  # drawn rather than observed, with the shape of the data
            assert not trace[key]["is_observed"]
            assert trace[key]["value"].shape == value.shape


@pytest.mark.parametrize("name", ["dirichlet_multinomial", "sparse_gamma_def"])
def test_guides_agree_and_cover_the_latents(name):
    model = get(name, **CASES[name][0])
    args, kwargs = model.data()
    values = some_values(model)
    guide = model.guide(numpyro_host())
    from numpyro import handlers

    trace = handlers.trace(handlers.substitute(guide, data=values)).get_trace(*args, **kwargs)
    sampled = {k for k, site in trace.items() if site["type"] == "sample"}
    assert sampled == set(values)
    params = {k: site["value"] for k, site in trace.items() if site["type"] == "param"}
    fixed = handlers.substitute(guide, data=params)
    import pyro

    pyro.clear_param_store()
    ours = numpyro_log_density(fixed, args, kwargs, values)
    theirs = pyro_log_density(model.guide(pyro_host()), args, kwargs, values)
    pyro.clear_param_store()
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("name", names())
def test_descriptions_and_estimators(name):
    model = get(name, **CASES[name][0])
    assert model.description and model.source
    assert set(model.fit_defaults) in (set(), {"num_steps", "num_particles", "learning_rate"})
    assert all(isinstance(estimator, Estimator) for estimator in model.estimators)


def test_shapes_of_the_real_data():
    assert get("digits").data()[1]["counts"].shape == (1797, 64)
    (x,), observed = get("breast_cancer").data()
    assert x.shape == (569, 30) and observed["y"].shape == (569,)
    np.testing.assert_allclose(x.std(0), 1.0)
    (prior,), observed = get("dirichlet_multinomial").data()
    assert prior.shape == (100,) and observed["counts"].sum() == 100
    assert get("gamma_poisson").data()[1]["y"].sum() == 122


def test_a_batch_of_digits_is_scaled_to_all_of_them():
    model = get("digits", batch_size=100, num_factors=2)
    trace = shapes_of(model.model(numpyro_host()), **model.data()[1])
    assert trace["z"]["value"].shape == (100, 2)
    assert trace["counts"]["value"].shape == (100, 64)
    assert trace["counts"]["scale"] == pytest.approx(17.97)


@pytest.mark.parametrize(("name", "site"), [("gamma_poisson", "lam"), ("dirichlet_multinomial", "p")])
def test_exact_posteriors(name, site):
    """log p(x, z) - log p(z | x) is the log evidence, at any z."""
    model = get(name)
    args, kwargs = model.data()
    assert model.reference is not None
    distribution, parameters = model.reference.posterior[site]
    posterior = getattr(numpyro_host().dist, distribution)(**parameters)
    for values in (some_values(model), {site: np.asarray(posterior.mean)}):
        joint = numpyro_log_density(model.model(numpyro_host()), args, kwargs, values)
        evidence = joint - float(posterior.log_prob(values[site]))
        assert evidence == pytest.approx(model.reference.log_evidence, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nine_schools", {}, "unknown model 'nine_schools'"),
        ("digits", {"factors": 3}, "no option 'factors': its options are num_factors, batch_size"),
        ("digits", {"num_factors": 2.5}, "expected a positive integer"),
        ("digits", {"batch_size": 1798}, "there are 1797 images"),
        ("eight_schools", {"centered": "yes"}, "expected true or false"),
        ("breast_cancer", {"prior_scale": -1.0}, "expected a positive number"),
        ("gamma_poisson", {"rate": float("nan")}, "expected a positive number"),
        ("dirichlet_multinomial", {"shape": 0}, "expected a positive number"),
        ("sparse_gamma_def", {"layers": 3}, "expected sizes such as"),
        ("sparse_gamma_def", {"counts": [[0.5]]}, "whole numbers"),
        ("sparse_gamma_def", {"counts": [1, 2]}, "documents by words"),
    ],
)
def test_bad_requests_are_refused_in_one_line(name, options, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        get(name, **options)
    assert "\n" not in str(caught.value)
