"""One workflow, two backends: what a user sees must not depend on the framework behind it.

Models are written once, over a `Host`. A test that takes `backend` runs on each; one that takes `both` compares them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

NAMES = ("numpyro", "pyro")


class Backend:
    """A backend's package with its host, under short names."""

    def __init__(self, name):
        self.name = name
        self.vr = importlib.import_module(f"vi_reparam_{name}")
        self.host = self.vr.host
        self.dist, self.xp, self.array = self.host.dist, self.host.xp, self.host.array

    def __repr__(self):
        return self.name


@contextlib.contextmanager
def running(name, bits):
    """Its framework in this precision, with nothing left behind."""
    if name == "numpyro":
        import jax

        quick = jax.config.read("jax_disable_most_optimizations")  # these tests compile much and compute little
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            with jax.enable_x64(bits == 64):
                yield Backend(name)
        finally:
            jax.config.update("jax_disable_most_optimizations", quick)
        return
    import pyro
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if bits == 64 else torch.float32)
    try:
        with pyro.get_param_store().scope():
            yield Backend(name)
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(params=NAMES)
def backend(request):
    with running(request.param, 64) as made:
        yield made


@pytest.fixture(params=NAMES)
def in_float32(request):
    with running(request.param, 32) as made:
        yield made


@pytest.fixture
def both():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running(name, 64)) for name in NAMES]


def number(x):
    """An array of either framework as NumPy's."""
    return np.asarray(x.detach() if hasattr(x, "detach") else x)


def normal_model(b):
    """z ~ N(0, 1), y ~ N(z, 1)."""

    def model(y=None):
        z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
        b.host.sample("y", b.dist.Normal(z, b.array(1.0)), obs=None if y is None else b.array(y))

    return model


def mean_field(b, model=None, **options):
    return b.vr.guide(b.vr.MeanField(**options))(normal_model(b) if model is None else model)


def unfitted(b, guided, *args):
    """The posterior of a guide at its start: no step is taken."""
    return b.vr.Posterior(guided, guided.start(*args), args=args, kwargs={}, losses=[], seed=0, record={})


# Scoring.


def gammas(b, shape):
    ones = b.array(np.ones(50))
    with b.host.plate("n", 50):
        b.host.sample("z", b.dist.Gamma(shape * ones, ones))


def betas(b, shape):
    ones = b.array(np.ones(50))
    b.host.sample("z", b.dist.Beta(shape * ones, shape * ones).to_event(1))


def one_dirichlet(b, shape):
    b.host.sample("z", b.dist.Dirichlet(shape * b.array(np.ones(50))))


@pytest.mark.parametrize("draw", [gammas, betas, one_dirichlet], ids=lambda f: f.__name__)
def test_scoring_takes_the_precise_logarithms_of_a_draw(in_float32, draw):
    """At a shape of 0.01 most draws round to 0 (or to 1): only the logarithms that the sampler knows can be scored."""
    b = in_float32

    def program():
        draw(b, 0.01)

    posterior = unfitted(b, b.vr.Guided(program, program, estimators=b.vr.Auto()))
    mean, error = posterior.elbo(500)  # q is p
    assert abs(mean) < 1e-3 and error < 1e-4
    if draw is gammas:
        assert np.abs(posterior.log_weights).max() < 0.01  # log p and log q are as large as 5,000
        assert posterior.khat == 0.0


# Checkpoints.


def test_a_checkpoint_of_another_seed_is_refused(backend, tmp_path):
    b, guided, file = backend, mean_field(backend), tmp_path / "fit"
    fit = functools.partial(guided.fit, 1.0, num_steps=4, num_particles=1, progress=False, checkpoint=file)
    first = fit(seed=3)
    np.testing.assert_array_equal(fit(seed=3).losses, first.losses)
    with pytest.raises(b.vr.ArgumentError, match=r"seed\D*3\b.*\b4\b"):
        fit(seed=4)
    if b.name == "numpyro":
        import jax

        with pytest.raises(b.vr.ArgumentError, match="seed"):
            fit(seed=jax.random.key(4))


@pytest.mark.parametrize("what", ["estimators", "optimizer"])
def test_a_checkpoint_of_another_kind_of_fit_is_refused(backend, tmp_path, what):
    b, file = backend, tmp_path / "fit"
    options = {"num_steps": 4, "num_particles": 2, "progress": False, "checkpoint": file}
    mean_field(b).fit(1.0, **options)
    if what == "estimators":
        other = b.vr.guide(b.vr.MeanField(), estimators=b.vr.ScoreFunction())(normal_model(b))
    else:
        other, options["optimizer"] = mean_field(b), b.host.adam(0.3)
    with pytest.raises(b.vr.ArgumentError, match="is of another fit"):
        other.fit(1.0, **options)


# Where a guide starts. The true rules: candidates are the median and the mean of the same number of prior draws in
# both backends, and the unconstrained origin; the best by the joint density is taken.

MANY = 10_000


def many_starts(b, distribution):
    """The starting values of independent sites, which are 5 at the middle of their prior."""

    def model():
        with b.host.plate("n", MANY):
            b.host.sample("x", distribution(b.array(np.full(MANY, 5.0)), b.array(1.0)))

    return number(mean_field(b, model, init_scale=1e-9).start()["x_loc"])


def test_as_many_prior_draws_stand_behind_a_start(both):
    """Of normals far from the origin the mean is the best candidate, and its variance is one over their number."""
    first, second = (1.0 / np.var(many_starts(b, b.dist.Normal)) for b in both)
    assert first == pytest.approx(second, rel=0.07)


def test_a_start_at_the_median_leans_to_no_side(backend):
    """Of Cauchys the median is the best candidate; the lower one of two middle draws would be too low."""
    found = many_starts(backend, backend.dist.Cauchy)
    error = found.std() / np.sqrt(MANY)
    assert error < 0.005 and abs(found.mean() - 5.0) < 3.0 * error


def test_the_start_on_a_sphere_without_a_prior_is_one_point(both):
    def start(b):
        def model():
            b.host.sample("x", b.dist.ImproperUniform(b.dist.constraints.sphere, (), (3,)))

        return number(mean_field(b, model).start()["x_direction"])

    first, second = map(start, both)
    np.testing.assert_allclose(first, second, atol=1e-12)


def reading_model(b):
    """It looks at a value of its data in Python."""

    def model(y):
        z = b.host.sample("z", b.dist.Normal(b.array(9.0), b.array(1.0)))
        if float(y) > 0.0:
            b.host.sample("y", b.dist.Normal(z, b.array(1.0)), obs=b.array(9.0))

    return model


@pytest.mark.filterwarnings("ignore:.*reads its data in Python")
def test_a_model_that_reads_its_data_in_python_has_a_start(backend):
    found = mean_field(backend, reading_model(backend), init_scale=1e-9).start(np.array(1.0))
    assert float(found["z_loc"]) == pytest.approx(9.0, abs=0.5)


@pytest.mark.filterwarnings("ignore:.*reads its data in Python")
@pytest.mark.parametrize("study", ["estimators", "guides"])
def test_a_model_that_reads_its_data_in_python_can_be_studied(backend, study, few_weights):
    b, model = backend, reading_model(backend)
    if study == "estimators":
        found = b.vr.compare_estimators(
            mean_field(b, model), np.array(1.0), estimators=[b.vr.Pathwise()], stages=("start",), num_replicates=4
        )
        assert list(found.dataset["parameter"].values) == ["z_loc", "z_scale"]
        return
    options = {"num_steps": 2, "num_particles": 2, "num_replicates": 2, "progress": False}
    found = b.vr.compare_guides(model, np.array(1.0), families=[b.vr.MeanField()], gradients=("path",), **options)
    assert found.dataset.sizes["family"] == 1


# Plates whose elements are not independent: the score terms of a false one would miss part of their cost.

N = 4
NEXT = np.array([1, 2, 3, 0])


def check_plate(b, cost, *, discrete=False, observed=(1.0, 1.0, 1.0, 1.0)):
    """Check a plate of N latents z and observations y ~ N(cost(z), 1) for score functions."""

    def model():
        zeros = b.array(np.zeros(N))
        with b.host.plate("n", N):
            z = b.host.sample("z", b.dist.Bernoulli(logits=zeros) if discrete else b.dist.Normal(zeros, 1.0))
            b.host.sample("y", b.dist.Normal(cost(z), 1.0), obs=b.array(np.array(observed)))

    def guide():
        middle = b.host.param("middle", b.array(np.full(N, 0.5)))
        with b.host.plate("n", N):
            b.host.sample("z", b.dist.Bernoulli(logits=middle) if discrete else b.dist.Normal(middle, 1.0))

    b.vr.ELBO(2).check(model, b.vr.estimate(guide, b.vr.ScoreFunction()))


STEPS = {
    "the sign": lambda b, z: b.xp.sign(z[NEXT]),
    "a rounded value": lambda b, z: b.xp.round(z[NEXT]),
    "a comparison": lambda b, z: b.xp.where(z[0] > 0.5, 1.0 + 0.0 * z, 0.0 * z),
    "the rank": lambda b, z: b.array(1.0) * (z[:, None] > z[None]).sum(-1),
}


def test_a_true_plate_is_let_through(backend):
    check_plate(backend, lambda z: z)


@pytest.mark.parametrize("step", STEPS)
def test_a_false_plate_that_no_derivative_shows_is_refused(backend, step):
    """Each element's cost depends on another element's draw by a step: its derivative is zero."""
    with pytest.raises(backend.vr.GradientError, match=r"plate 'n' is false: the model cost at 'y'.*draw of 'z'"):
        check_plate(backend, lambda z: STEPS[step](backend, z))


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("name", NAMES)
def test_a_large_cost_hides_no_false_plate(name, bits, discrete):
    """What is rounding for the cost of an outlier (500,000 nats) is a dependence in those of the others."""
    observed = (1.0, 1.0, 1.0, 1000.0)
    with running(name, bits) as b:
        others = b.array(np.array([1.0, 1.0, 1.0, 0.0]))
        check_plate(b, lambda z: z, discrete=discrete, observed=observed)
        with pytest.raises(b.vr.GradientError, match="plate 'n' is false"):
            check_plate(b, lambda z: others * z[NEXT], discrete=discrete, observed=observed)


# Refusals: of one class, in one line, and in the same words.

WORDS = (
    (" or a jax.random.key", ""),
    ("an optax transformation, such as optax.adam(1e-2)", "an optimizer"),
    ("a torch.optim factory, such as lambda params: torch.optim.Adam(params, lr=0.01)", "an optimizer"),
    ("NumPyro", "the host"),
    ("Pyro", "the host"),
    ("numpyro", "host"),
    ("pyro", "host"),
    ("jax.numpy", "arrays"),
    ("torch", "arrays"),
)
"""The frameworks' own names, and what stands for them where two texts are compared."""


def refusal(b, act):
    """How a backend refuses: the error's class and text, the framework's own names aside."""
    try:
        act(b)
    except Exception as error:
        text = str(error)
        for own, common in WORDS:
            text = text.replace(own, common)
        text = re.sub(r"(could not run on arguments of shapes .*\}): .*", r"\1: as the framework says", text)
        return type(error).__name__, text
    return "nothing raised", ""


def fit(b, *args, model=None, family=None, estimators=None, objective=None, **options):
    """A short fit of a mean field."""
    family = b.vr.MeanField() if family is None else family
    guided = b.vr.guide(family, estimators=estimators, objective=objective)(model or normal_model(b))
    return guided.fit(*args, **{"num_steps": 1, "num_particles": 1, "progress": False, **options})


def by_hand(b, guide, **options):
    return b.vr.Guided(normal_model(b), guide, **options).fit(1.0, num_steps=1, num_particles=1, progress=False)


def draws_of(b):
    """A posterior to ask for draws."""
    return unfitted(b, mean_field(b), 1.0)


def nothing():
    pass


def fixed_guide(b):
    return lambda y=None: b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))


def other_shape(b):
    return lambda y=None: b.host.sample("z", b.dist.Normal(b.host.param("m", b.array(np.zeros(2))), b.array(1.0)))


def clashing_model(b):
    def model(y=None):
        b.host.param("z_loc", b.array(3.0))
        normal_model(b)(y)

    return model


def model_of_a_coin(b):
    def model(y=None):
        coin = b.host.sample("coin", b.dist.Bernoulli(b.array(0.3)))
        b.host.sample("y", b.dist.Normal(1.0 * coin, b.array(1.0)), obs=None if y is None else b.array(y))

    return model


def model_of_a_choice(b):
    return lambda y=None: b.host.sample("choice", b.dist.Categorical(b.array(np.array([0.3, 0.7]))))


def undefined_model(b):
    def model(y=None):
        z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
        b.host.factor("f", z * float("nan"))

    return model


def minibatch_model(b):
    def model(y):
        z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("rows", 6, subsample_size=2):
            b.host.sample("y", b.dist.Normal(z, b.array(1.0)), obs=b.array(y))

    return model


def named(argument):
    """A model whose argument is called so."""
    scope: dict = {}
    exec(f"def model({argument}=None): pass", scope)
    return scope["model"]


BAD_SEEDS = {"'a'": "a", "1.5": 1.5, "True": True, "None": None, "2**70": 2**70}
NOT_FINITE = {
    "NaN": np.array([1.0, np.nan]),
    "an infinity": np.array([-np.inf, 0.0]),
    "NaN in a dict": {"a": [np.array([np.nan])]},
    "NaN of NumPy": np.float64("nan"),
    "NaN of Python": float("nan"),
}
BAD_DATA = {**NOT_FINITE, "text": "three", "an array of text": np.array(["a"])}
REFUSED = {
    **{f"seed {n} of a fit": lambda b, s=s: fit(b, 1.0, seed=s) for n, s in BAD_SEEDS.items()},
    **{f"seed {n} of a start": lambda b, s=s: mean_field(b).start(1.0, seed=s) for n, s in BAD_SEEDS.items()},
    **{f"seed {n} of draws": lambda b, s=s: draws_of(b).draws(2, seed=s) for n, s in BAD_SEEDS.items()},
    **{
        f"seed {n} of predictions": lambda b, s=s: draws_of(b).predict(num_draws=2, seed=s)
        for n, s in BAD_SEEDS.items()
    },
    **{f"{what} as data": lambda b, y=y: fit(b, y) for what, y in BAD_DATA.items()},
    "NaN by keyword": lambda b: fit(b, y=np.array([np.nan])),
    "too many arguments": lambda b: fit(b, 1.0, 2.0),
    **{f"num_steps {n!r}": lambda b, n=n: fit(b, 1.0, num_steps=n) for n in (0, 2.5, True, "3")},
    **{f"num_particles {n!r}": lambda b, n=n: fit(b, 1.0, num_particles=n) for n in (0, 2.5, True, "3")},
    **{f"ELBO of {n!r}": lambda b, n=n: b.vr.ELBO(n) for n in (0, 2.5, True)},
    **{f"IWELBO of {n!r}": lambda b, n=n: b.vr.IWELBO(n) for n in (0, 2.5, True)},
    **{f"draws of {n!r}": lambda b, n=n: draws_of(b).draws(n) for n in (0, 2.5, True)},
    "an entropy": lambda b: b.vr.ELBO(entropy="exact"),
    "progress": lambda b: fit(b, 1.0, progress="yes"),
    "an optimizer": lambda b: fit(b, 1.0, optimizer="adam"),
    "an objective": lambda b: b.vr.guide(objective=3)(normal_model(b)),
    "a family": lambda b: b.vr.guide("mean field"),
    "a model": lambda b: b.vr.guide()(3),
    **{
        f"an argument named {option}": lambda b, option=option: b.vr.guide()(named(option))
        for option in ("num_steps", "num_particles", "optimizer", "seed", "progress", "checkpoint")
    },
    **{f"estimators {e!r}": lambda b, e=e: b.vr.estimate(fixed_guide(b), e) for e in (3, "implicit", [3], {"z": 3})},
    "estimators of a decorator": lambda b: b.vr.guide(b.vr.MeanField(), estimators=3)(normal_model(b)),
    "estimators of no site": lambda b: fit(b, 1.0, estimators={"q": b.vr.Pathwise()}),
    "an estimator that does not apply": lambda b: fit(b, 1.0, estimators=b.vr.Rejection()),
    "a family that does not live there": lambda b: fit(b, 1.0, family=b.vr.MeanField(families={"z": "gamma"})),
    "nothing that is annotated": lambda b: b.vr.annotate(3, b.vr.Implicit()),
    "leave one out of one": lambda b: fit(b, 1.0, estimators=b.vr.ScoreFunction(baseline="leave_one_out")),
    "no latent": lambda b: fit(b, model=nothing),
    "no latent for the ladder": lambda b: fit(b, model=nothing, family=b.vr.Escalate()),
    "no latent for a Gaussian": lambda b: fit(b, model=nothing, family=b.vr.FullRank()),
    "no parameter": lambda b: by_hand(b, fixed_guide(b)),
    "a guide that draws nothing": lambda b: by_hand(b, lambda y=None: None),
    "a guide of another shape": lambda b: by_hand(b, other_shape(b)),
    "a parameter with a guide's name": lambda b: fit(b, 1.0, model=clashing_model(b)),
    "a coin without an estimator": lambda b: fit(b, 1.0, model=model_of_a_coin(b)),
    "a coin in a Gaussian": lambda b: fit(b, 1.0, model=model_of_a_coin(b), family=b.vr.FullRank()),
    "a choice": lambda b: fit(b, 1.0, model=model_of_a_choice(b), estimators=b.vr.ScoreFunction()),
    "a density that is NaN": lambda b: fit(b, 1.0, model=undefined_model(b), num_particles=4),
    "a minibatch as an argument": lambda b: fit(b, np.ones(2), model=minibatch_model(b)),
    "parameters that are missing": lambda b: b.vr.Posterior(
        mean_field(b), {}, args=(1.0,), kwargs={}, losses=[], seed=0, record={}
    ),
    "predictions of no site": lambda b: draws_of(b).predict(num_draws=2, return_sites=["q"]),
    "fresh draws of no latent": lambda b: draws_of(b).predict(num_draws=2, fresh_sites=["y"]),
    "steps of a mean field": lambda b: draws_of(b).draws(2, order=2),
    "a function that reads values": lambda b: draws_of(b).expectation(lambda values: float(values["z"]), 3),
    "a file that is not there": lambda b: b.vr.load("no such file", mean_field(b)),
    "a file for no model": lambda b: b.vr.load("no such file", 3),
    "estimators to compare": lambda b: b.vr.compare_estimators(mean_field(b), 1.0, estimators=[3]),
    "a comparison without a guide": lambda b: b.vr.compare_estimators(3, 1.0, estimators=[b.vr.Implicit()]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_the_same_and_in_one_line(both, what):
    (kind, text), (other_kind, other_text) = (refusal(b, REFUSED[what]) for b in both)
    own, other = (re.sub(r"refuses them \(.*\)", "", words) for words in (text, other_text))  # the framework's words
    assert (kind, own) == (other_kind, other)
    assert kind in {"ArgumentError", "SiteError", "GradientError", "NonFiniteError"}
    assert "\n" not in text


@pytest.mark.parametrize("what", NOT_FINITE)
def test_data_that_are_not_finite_are_refused_before_anything_runs(backend, what):
    with pytest.raises(backend.vr.ArgumentError, match=r"argument 0.* holds 1 NaN or infinite values of \d"):
        fit(backend, NOT_FINITE[what])


@pytest.mark.parametrize("seed", BAD_SEEDS)
def test_a_bad_seed_is_refused_in_the_same_words_everywhere(backend, seed):
    b, posterior, seed = backend, draws_of(backend), BAD_SEEDS[seed]
    texts = {
        refusal(b, lambda b: fit(b, 1.0, seed=seed)),
        refusal(b, lambda b: posterior.draws(2, seed=seed)),
        refusal(b, lambda b: posterior.predict(num_draws=2, seed=seed)),
    }
    assert len(texts) == 1 and {kind for kind, _ in texts} == {"ArgumentError"}


@pytest.mark.parametrize(("given", "match"), [(["z_loc"], "z_scale"), (["z_loc", "z_scale", "q"], "q")])
def test_estimators_are_compared_at_all_parameters_and_no_others(backend, given, match):
    b = backend
    with pytest.raises(b.vr.ArgumentError, match=match):
        b.vr.compare_estimators(
            mean_field(b),
            1.0,
            estimators=[b.vr.Pathwise()],
            params={name: b.array(0.5) for name in given},
            stages=("start",),
            num_replicates=4,
        )


# Small things, each of which one of the backends did otherwise.


def test_the_posterior_knows_a_seed_of_numpy(backend):
    assert fit(backend, 1.0, seed=np.int64(7)).seed == 7


def pickled_model(y):
    backend = Backend(y[0])
    z = backend.host.sample("z", backend.dist.Normal(backend.array(0.0), backend.array(1.0)))
    backend.host.sample("y", backend.dist.Normal(z, backend.array(1.0)), obs=backend.array(y[1]))


@pytest.mark.parametrize("family", ["MeanField", "SDE"])
def test_a_posterior_is_pickled(backend, family):
    guided, data = backend.vr.guide(getattr(backend.vr, family)())(pickled_model), (backend.name, 0.5)
    if family == "SDE":
        fitted = unfitted(backend, guided, data)
    else:
        fitted = guided.fit(data, num_steps=2, num_particles=2, progress=False)
    again = pickle.loads(pickle.dumps(fitted))
    assert again.guided is not guided
    np.testing.assert_array_equal(again.draws(3)["z"], fitted.draws(3)["z"])


def test_a_pickle_of_the_version_before_is_refused_in_one_line():
    with pytest.raises(ImportError, match=r"earlier version .* fit again"):
        pickle.loads(b"cvi_reparam_numpyro.posterior\nPosterior\n.")


def test_the_data_of_a_posterior_are_its_own(backend):
    """The user's array may change after the fit."""
    b, y = backend, np.ones(3)

    def model(y):
        z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("n", 3):
            b.host.sample("y", b.dist.Normal(z, b.array(1.0)), obs=y)

    posterior = fit(b, y, model=model)
    y[:] = 50.0
    np.testing.assert_array_equal(number(posterior.args[0]), 1.0)


def growing_model(b):
    """It says more where it is not given y."""

    def model(x, y=None):
        z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
        b.host.deterministic("twice", 2.0 * z)
        if y is None:
            b.host.deterministic("thrice", 3.0 * z)
            b.host.sample("next", b.dist.Normal(z, b.array(1.0)))
        with b.host.plate("n", 3):
            b.host.sample("y", b.dist.Normal(z * x, b.array(1.0)), obs=y)

    return model


def test_predictions_are_of_what_is_drawn(backend):
    """A deterministic site is returned where it is asked for, also one that only the new inputs have."""
    x = backend.array(np.ones(3))
    posterior = unfitted(backend, mean_field(backend, growing_model(backend)), x, x)
    assert set(posterior.predict(x, num_draws=2)) == {"y", "next"}
    assert set(posterior.predict(x, num_draws=2, return_sites=["twice", "thrice"])) == {"twice", "thrice"}


def test_predictions_of_no_sites_are_none(backend):
    assert draws_of(backend).predict(num_draws=2, return_sites=[]) == {}


def mask(b, seen):
    """The mask handler of the framework."""
    if b.name == "numpyro":
        import numpyro

        return numpyro.handlers.mask(mask=b.xp.asarray(seen))
    import pyro

    return pyro.poutine.mask(mask=b.xp.asarray(seen))


def test_rows_under_a_mask_have_no_likelihood(backend):
    """Prior and likelihood make up the joint density."""
    b, y = backend, np.array([1.0, 2.0, 300.0])

    def model(y):
        z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("rows", 3), mask(b, y < 100.0):
            b.host.sample("y", b.dist.Normal(z, b.array(1.0)), obs=b.array(y))

    data = unfitted(b, mean_field(b, model), y).to_arviz(5, resample=False)
    z = data.posterior["z"].values[0]
    prior = -0.5 * z**2 - 0.5 * np.log(2.0 * np.pi)
    likelihood = data.log_likelihood["y"].values[0].sum(-1)
    np.testing.assert_allclose(prior + likelihood, data.sample_stats["lp"].values[0], rtol=1e-9)


def test_the_expectation_of_a_constant(backend):
    assert draws_of(backend).expectation(lambda values: 3.0, 5) == (3.0, 0.0)


def test_minibatches_of_the_observations_alone_settle_the_ladder(backend, few_weights):
    """In many dimensions a model that sees minibatches is fitted by its mean field, whoever is in the small plate."""
    b = backend

    def model(y):
        z = b.host.sample("z", b.dist.Normal(b.array(np.zeros(600)), 1.0).to_event(1))
        with b.host.plate("rows", 6, subsample_size=2) as rows:
            b.host.sample("y", b.dist.Normal(z[0], b.array(1.0)), obs=y[rows])

    # no budget for a second family: it would be named as the one that is left out
    posterior = fit(b, b.array(np.arange(6.0)), model=model, family=b.vr.Escalate(budget=1e-9))
    assert posterior.why == "no richer family is left to try"


def test_a_scale_stands_beside_minibatches(backend):
    """The check that a plate's indices are used runs where a scale is positive."""
    b = backend

    def model(y):
        scale = b.host.sample("scale", b.dist.HalfNormal(b.array(1.0)))
        with b.host.plate("rows", 6, subsample_size=2) as rows:
            b.host.sample("y", b.dist.Normal(b.array(0.0), scale), obs=y[rows])

    posterior = fit(b, b.array(np.arange(6.0)), model=model, family=b.vr.MeanField())
    assert np.all(np.asarray(posterior.draws(3)["scale"]) > 0.0)


def test_public_signatures_agree(both):
    def signatures(b):
        public = {name: getattr(b.vr, name) for name in ("guide", "annotate", "load", "Guided", "Posterior")}
        public |= {name: getattr(b.vr, name) for name in ("compare_estimators", "compare_guides", "compare_sde")}
        public |= {f"Guided.{name}": getattr(b.vr.Guided, name) for name in ("start", "fit", "with_estimators")}
        return {name: list(inspect.signature(made).parameters) for name, made in public.items()}

    first, second = map(signatures, both)
    assert first == second


PROGRAM = """
import sys

import vi_reparam_{name} as vr


@vr.guide(vr.MeanField())
def model(y):
    rate = vr.host.sample("rate", vr.host.dist.Gamma(vr.host.array(2.0), vr.host.array(1.0)))
    vr.host.sample("y", vr.host.dist.Poisson(rate), obs=y)


posterior = model.fit(vr.host.array(3.0), num_steps=2, num_particles=2, progress=False)
posterior.elbo(5)
print(*{{module.partition(".")[0] for module in sys.modules}})
"""


@pytest.mark.parametrize(
    ("name", "foreign"), [("numpyro", {"torch", "pyro", "zuko"}), ("pyro", {"jax", "jaxlib", "numpyro", "optax"})]
)
def test_a_fit_loads_one_framework(name, foreign):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(name=name)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & foreign
