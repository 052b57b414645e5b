"""Data as people have them are taken, or refused in one line that says what to write: in both backends."""

import contextlib
import functools
import importlib.util

import numpy as np
import pytest
from test_both_backends import mean_field, number, running
from test_nothing_silent import line as line_of

X = np.linspace(-1.0, 1.0, 6)
Y = 2.0 * X + 0.1 * np.cos(7.0 * X)
OPTIONS = {"num_steps": 2, "num_particles": 1, "progress": False}


line = functools.partial(line_of, noise=0.5)


def refused(b, words, call):
    """What is raised: ours, in one line, with these words."""
    with pytest.raises(b.vr.ViReparamError, match=words) as caught:
        call()
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


# Arrays of other libraries.


def pandas_series(x):
    return pytest.importorskip("pandas").Series(x, index=[f"row {i}" for i in range(len(x))])


def pandas_index(x):
    return pytest.importorskip("pandas").Index(x)


def pandas_nullable(x):
    return pandas_series(x).astype("Float64")


def polars_series(x):
    return pytest.importorskip("polars").Series("x", x)


def xarray_array(x):
    return pytest.importorskip("xarray").DataArray(x, dims="row")


def a_list(x):
    return x.tolist()


def list_of_scalars(x):
    return list(x)


def other_byte_order(x):
    return x.astype(">f8")


def every_other_of_more(x):
    return np.repeat(x, 2)[::2]


def backward_of_backward(x):
    return x[::-1].copy()[::-1]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def a_column_of_a_table(x):
    return np.stack([x, -x], axis=1)[:, 0]


def nothing_masked(x):
    return np.ma.masked_array(x)


@pytest.mark.parametrize(
    "form",
    [
        pandas_series,
        pandas_index,
        pandas_nullable,
        polars_series,
        xarray_array,
        a_list,
        list_of_scalars,
        other_byte_order,
        every_other_of_more,
        backward_of_backward,
        read_only,
        a_column_of_a_table,
        nothing_masked,
    ],
    ids=lambda f: f.__name__,
)
def test_other_forms_of_an_array_give_its_fit(b, form):
    x, y = form(X), form(Y)
    np.testing.assert_array_equal(mean_field(b, line(b)).fit(x, y=y, **OPTIONS).losses, the_losses(b))


LOSSES = {}


def the_losses(b):
    if b.name not in LOSSES:
        LOSSES[b.name] = mean_field(b, line(b)).fit(X, y=Y, **OPTIONS).losses
    return LOSSES[b.name]


def test_an_array_in_a_file(b, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(mean_field(b, line(b)).fit(mapped, y=Y, **OPTIONS).losses, the_losses(b))


def test_an_array_of_the_other_framework(b):
    if any(importlib.util.find_spec(name) is None for name in ("jax", "torch")):
        pytest.skip("one framework")
    import jax.numpy as jnp
    import torch

    other = torch.as_tensor if b.name == "numpyro" else jnp.asarray
    found = mean_field(b, line(b)).fit(other(X), y=other(Y), **OPTIONS).losses
    np.testing.assert_allclose(found, the_losses(b), rtol=1e-12)


def test_a_posterior_of_lists_and_series_is_saved_and_predicts(b, tmp_path):
    guided = mean_field(b, line(b))
    posterior = guided.fit(X.tolist(), y=pandas_series(Y), **OPTIONS)
    loaded = b.vr.load(posterior.save(tmp_path / "file"), guided)
    drawn = [number(p.predict(x, num_draws=5)["y"]) for p in (posterior, loaded) for x in ([0.0, 1.0], np.arange(2.0))]
    for other in drawn[1:]:
        np.testing.assert_array_equal(drawn[0], other)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "uint64"])
def test_groups_and_outcomes_of_any_integer(b, dtype):
    """A group's index is one, whatever its type; torch takes bytes for a mask."""

    def model(group, y):
        with b.host.plate("groups", 2):
            logit = b.host.sample("logit", b.dist.Normal(b.array(np.zeros(2)), b.array(np.ones(2))))
        with b.host.plate("n", len(group)):
            b.host.sample("y", b.dist.Bernoulli(logits=logit[group]), obs=y)

    group, y = np.array([0, 1, 1, 0, 1, 1]), np.array([0, 1, 1, 1, 0, 1])
    given = group if dtype == "bool" else group.astype(dtype)
    losses = [
        mean_field(b, model).fit(g, o, **OPTIONS).losses
        for g, o in ((given, y.astype(dtype)), (group, y.astype(float)))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-12)


def test_whole_numbers_are_numbers(b):
    losses = [mean_field(b, line(b)).fit(np.arange(6), y=y, **OPTIONS).losses for y in (X > 0, (X > 0) * 1.0)]
    np.testing.assert_allclose(*losses, rtol=1e-12)


# What is no array of numbers.


def frame(kind):
    return lambda: pytest.importorskip(kind).DataFrame({"x": X})


def structured():
    return np.zeros(6, dtype=[("a", float), ("b", float)])


def masked():
    return np.ma.masked_array(Y, X > 0.5)


BAD = {
    "pandas frame": (frame("pandas"), r"argument 'y' is a pandas DataFrame: give an array, x\.to_numpy\(\)"),
    "polars frame": (frame("polars"), r"argument 'y' is a polars DataFrame: give an array, x\.to_numpy\(\)"),
    "xarray dataset": (lambda: pytest.importorskip("xarray").Dataset({"x": ("n", X)}), "xarray Dataset: give an array"),
    "text": (lambda: np.array(list("abcdef")), "an array of text: give numbers, such as the codes"),
    "bytes": (lambda: np.array([b"a"] * 6), "an array of text"),
    "text in a series": (lambda: pandas_series(np.array(list("abcdef"))), "an array of text"),
    "a category": (lambda: pandas_series(np.array(list("abcabc"))).astype("category"), "an array of text"),
    "objects": (lambda: np.array([1.0, None] * 3, dtype=object), r"of objects: give numbers, by \.astype\(float\)"),
    "complex": (lambda: Y + 1j, "of complex numbers: give their real and their imaginary parts"),
    "complex list": (lambda: list(Y + 1j), "of complex numbers"),
    "a complex number": (lambda: 1j, "of complex numbers"),
    "dates": (lambda: np.arange(6).astype("datetime64[D]"), r"of dates: give numbers, such as \(x - x\[0\]\)"),
    "spans": (lambda: np.arange(6).astype("timedelta64[h]"), "of spans of time: give numbers"),
    "structured": (structured, "a structured array: give its columns"),
    "masked": (masked, r"with masked values: give x\.filled\(0\.0\), and the mask"),
    "a list with None": (lambda: [None, *Y[1:].tolist()], "a list with None in it: give np.nan"),
    "a generator": (lambda: (y for y in Y), "a generator, which gives its values once: give an array"),
    "an iterator": (lambda: iter(Y), "which gives its values once"),
    "a file of lines": (lambda: map(float, Y), "a map, which gives its values once"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_array_of_numbers_is_refused(b, what):
    make, words = BAD[what]
    refused(b, words, lambda: mean_field(b, line(b)).fit(X, y=make(), **OPTIONS))


def test_the_place_within_an_argument_is_named(b):
    refused(
        b,
        r"argument 0\['x'\]\[1\] is an array of text",
        lambda: mean_field(b, line(b)).fit({"x": (X, np.array(["a"]))}),
    )


def test_a_sparse_matrix_is_refused(b):
    sparse = pytest.importorskip("scipy.sparse").csr_matrix(X)
    refused(b, r"a sparse csr_matrix: give x\.toarray\(\)", lambda: mean_field(b, line(b)).fit(sparse, y=Y, **OPTIONS))


# Where and how a fit is called.


def transforms(b):
    if b.name == "numpyro":
        import jax

        return [jax.jit, jax.vmap, jax.grad, lambda f: jax.jit(lambda x: f(np.asarray(X)))]
    import torch

    return [torch.func.vmap, torch.func.grad, lambda f: lambda x: torch.jit.trace(f, x)]


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize("which", range(4))
def test_a_fit_inside_a_transformation_is_refused(b, which):
    if which >= len(transforms(b)):
        pytest.skip("it has three")
    transformed = transforms(b)[which](lambda x: b.array(mean_field(b, line(b)).fit(x, y=Y, **OPTIONS).losses.sum()))
    refused(b, "a fit cannot run inside .* call fit outside", lambda: transformed(b.array(X)))


def test_a_model_that_is_compiled_already_is_refused():
    """JAX's error had thirteen lines."""
    import jax

    with running("numpyro", 64) as b:
        words = "model is compiled by jax.jit, which shows its sites once: give the function itself"
        refused(b, words, lambda: mean_field(b, jax.jit(line(b))).fit(X, y=Y))


@pytest.mark.parametrize("family", ["MeanField", "FullRank", "Escalate", "AdaptiveMixture"])
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_a_fit_without_gradients_is_refused(mode, family):
    """It took its steps, and none of them moved."""
    import torch

    with running("pyro", 64) as b, getattr(torch, mode)():
        guided = b.vr.guide(getattr(b.vr, family)())(line(b))
        refused(b, rf"a fit cannot run inside torch\..*{mode}\(\).*: call fit outside", lambda: guided.fit(X, y=Y))
        assert guided.prior(2, X)["y"].shape == (2, 6)


def test_optimizers_of_the_host_and_others_are_refused(b):
    if b.name == "numpyro":
        import numpyro.optim as optim
        import optax

        wrong, words = [optim.Adam(0.1), optim.Adam, optax.adam, "adam"], r"optax\.adam\(1e-2\)"
    else:
        import pyro.optim as optim
        import torch

        made = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        wrong, words = [optim.Adam({"lr": 0.1}), optim.Adam, made, "adam"], r"lambda params: torch\.optim\.Adam"
    for optimizer in wrong:
        refused(b, words, lambda o=optimizer: mean_field(b, line(b)).fit(X, y=Y, optimizer=o, **OPTIONS))


# Models that no guide serves.


def delta_of_a_latent(b):
    z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
    return b.host.sample("d", b.dist.Delta(2.0 * z))


def delta_in_a_plate(b):
    with b.host.plate("two", 2):
        return b.host.sample("d", b.dist.Delta(b.array(np.ones(2)))) + b.host.sample("z", b.dist.Normal(0.0, 1.0))


def delta_of_events(b):
    b.host.sample("z", b.dist.Normal(0.0, 1.0))
    return b.host.sample("d", b.dist.Delta(b.array(np.ones(6))).to_event(1))


@pytest.mark.parametrize("family", ["MeanField", "FullRank", "Escalate"])
@pytest.mark.parametrize("model", [delta_of_a_latent, delta_in_a_plate, delta_of_events], ids=lambda f: f.__name__)
def test_a_delta_names_deterministic(b, model, family):
    guided = b.vr.guide(getattr(b.vr, family)())(lambda: model(b))
    refused(b, rf"site 'd' is a Delta.*{b.name}\.deterministic\('d', value\)", lambda: guided.fit(progress=False))


def by_if(b):
    z = b.host.sample("z", b.dist.Normal(0.0, b.array(1.0)))
    b.host.sample("a" if z > 0.0 else "b", b.dist.Normal(z, 1.0))


def by_while(b):
    count = 0
    while count < 9 and b.host.sample(f"u{count}", b.dist.Uniform(b.array(0.0), 1.0)) > 0.3:
        count += 1


def by_size(b):
    count = int(4.0 * b.host.sample("u", b.dist.Uniform(b.array(0.0), 1.0))) + 1
    with b.host.plate("n", count):
        b.host.sample("m", b.dist.Normal(b.array(0.0), 1.0))


@pytest.mark.parametrize("family", ["MeanField", "Escalate"])
@pytest.mark.parametrize("model", [by_if, by_while, by_size], ids=lambda f: f.__name__)
def test_sites_chosen_by_a_draw_are_refused(b, model, family):
    guided = b.vr.guide(getattr(b.vr, family)())(lambda: model(b))
    refused(
        b,
        "every run (of a model )?must have the same sites; choose by .*or give plates a fixed size",
        lambda: guided.fit(),
    )


@pytest.mark.parametrize("family", ["MeanField", "FullRank", "Escalate"])
@pytest.mark.parametrize("prior", ["Categorical", "Bernoulli", "Binomial"])
def test_a_mark_for_enumeration_is_named(b, prior, family):
    made = {
        "Categorical": lambda: b.dist.Categorical(b.array(np.full((6, 2), 0.5))),
        "Bernoulli": lambda: b.dist.Bernoulli(b.array(0.3)),
        "Binomial": lambda: b.dist.Binomial(3, b.array(0.3)),
    }

    def model(y):
        with b.host.plate("n", len(y)):
            z = b.host.sample("z", made[prior](), infer={"enumerate": "parallel"})
            b.host.sample("y", b.dist.Normal(1.0 * z, b.array(1.0)), obs=y)

    words = r"site 'z' is marked infer=\{'enumerate': 'parallel'\}.*MixtureSameFamily.*TraceEnum_ELBO"
    refused(b, words, lambda: b.vr.guide(getattr(b.vr, family)())(model).fit(Y, progress=False))


# Predictions.


@pytest.fixture(scope="module")
def fitted():
    return {}


@pytest.fixture
def posterior(b, fitted):
    if b.name not in fitted:
        fitted[b.name] = mean_field(b, line(b)).fit(X, y=Y, **OPTIONS)
    return fitted[b.name]


NAN = np.where(X > 0.0, X, np.nan)
WRONG = {
    "missing": (lambda p: p.predict(y=Y), r"predict: missing a required argument: 'x'; it takes .*\(x, y=None\)"),
    "too many": (lambda p: p.predict(X, Y, 1.0), "predict: too many positional arguments"),
    "unknown": (lambda p: p.predict(X, z=1.0), "predict: got an unexpected keyword argument 'z'"),
    "twice": (lambda p: p.predict(X, x=X), "predict: multiple values for argument 'x'"),
    "NaN": (
        lambda p: p.predict(NAN),
        "predict: argument 0 holds 3 NaN or infinite values of 6, and .*: drop those rows",
    ),
    "infinite": (lambda p: p.predict(NAN * np.inf), "predict: argument 0 holds 6 NaN"),
    "a column": (
        lambda p: p.predict(X[:, None]),
        r"'y' has shape \(6, 6\).*\(6,\) in the fit: .* as many dimensions as the fit's, such as x\.ravel\(\)",
    ),
    "two lengths": (
        lambda p: p.predict(X, Y[:4]),
        r"predict: the model could not run on arguments of shapes \(\(6,\), \(4,\)\)",
    ),
    "a number": (lambda p: p.predict(1.0), "predict: the model could not run on arguments of shapes"),
    "None": (lambda p: p.predict(None), "predict: the model could not run"),
    "text": (lambda p: p.predict(np.array(["a"])), "argument 0 is an array of text"),
    "a frame": (lambda p: p.predict(frame("pandas")()), "argument 0 is a pandas DataFrame"),
    "no names": (lambda p: p.predict(X, return_sites=3), r"return_sites=3: expected names of sites, as \['mu'\]"),
    "numbers": (lambda p: p.predict(X, fresh_sites=[0, "a"]), r"fresh_sites=\[0, 'a'\]: expected names of sites"),
    "a prior of too many": (lambda p: p.guided.prior(2, X, Y, 1.0, 2.0), "could not run on arguments .*positional"),
}


@pytest.mark.parametrize("what", WRONG)
def test_predictions_of_what_cannot_be_are_refused(b, posterior, what):
    call, words = WRONG[what]
    with contextlib.ExitStack() as stack:
        if b.name == "numpyro":
            import jax

            stack.enter_context(jax.numpy_rank_promotion("allow"))  # as users have it
        refused(b, words, lambda: call(posterior))


def test_an_outcome_may_be_missing_in_predictions(b, posterior):
    assert np.isfinite(number(posterior.predict(X, y=NAN, num_draws=3)["y"])).all()


# Outcomes that were forgotten.


def test_an_outcome_that_was_forgotten_is_told(b):
    with pytest.warns(
        UserWarning, match="site 'y' is fitted as a latent, for the argument 'y' .* is None: .*give it"
    ) as told:
        mean_field(b, line(b)).fit(X, **OPTIONS)
    assert all(len(str(one.message)) <= 300 for one in told)


def test_an_outcome_of_another_name_that_was_forgotten_is_told(b):
    def model(x, data=None, scale=None):
        slope = b.host.sample("slope", b.dist.Normal(b.array(0.0), 5.0))
        b.host.sample("y", b.dist.Normal(slope * x, b.array(0.5)).to_event(1), obs=data)

    with pytest.warns(UserWarning, match="site 'y' is fitted as a latent, for the argument 'data'") as told:
        mean_field(b, model).fit(X, **OPTIONS)
    assert len(told) == 1


def test_an_outcome_within_an_object_that_was_forgotten_is_told(b):
    def model(x, *, y1=None, y2=None):
        slope = b.host.sample("slope", b.dist.Normal(b.array(0.0), 5.0))
        for name, y in (("first", y1), ("second", y2)):
            b.host.sample(name, b.dist.Normal(slope * x, b.array(0.5)).to_event(1), obs=y)

    with pytest.warns(UserWarning, match="site 'second' is fitted as a latent, for the argument 'y2'") as told:
        mean_field(b, model).fit(X, y1=Y, **OPTIONS)
    assert len(told) == 1


def test_an_option_that_is_none_is_no_outcome(b, recwarn):
    def model(x, y, scale=None):
        slope = b.host.sample("slope", b.dist.Normal(b.array(0.0), 5.0 if scale is None else scale))
        b.host.sample("y", b.dist.Normal(slope * x, b.array(0.5)).to_event(1), obs=y)

    mean_field(b, model).fit(X, Y, **OPTIONS)
    assert not [one for one in recwarn if "latent" in str(one.message)]
