"""More members of the kinds of `test_nothing_silent.py`, and the words of errors that are seen nowhere else."""

import array
import importlib
import os
import re

import numpy as np
import pytest
from test_both_backends import NAMES, mean_field, number, unfitted
from test_cli import run
from test_nothing_silent import OPTIONS, X, line, one_mean, predictions
from test_what_people_give import refused

FIRST, SECOND = np.array([2.0, 5.0, 9.0]), np.array([20.0, 31.0, 40.0])


# Supports that a transform moves, and of which the framework says that they are the reals.


def moved(b, base, *transforms):
    return b.dist.TransformedDistribution(base, list(transforms))


def affine(b, loc, scale):
    return b.dist.transforms.AffineTransform(loc, scale)


def normal(b):
    return b.dist.HalfNormal(b.array(1.0))


def beta(b):
    return b.dist.Beta(b.array(2.0), b.array(3.0))


CARRIED = {
    "shifted": lambda b, t: (moved(b, normal(b), affine(b, t.max(), b.array(2.0))), t.max(), np.inf),
    "mirrored": lambda b, t: (moved(b, normal(b), affine(b, t.min(), b.array(-2.0))), -np.inf, t.min()),
    "stretched": lambda b, t: (moved(b, beta(b), affine(b, t.min(), t.max() - t.min())), t.min(), t.max()),
    "log-uniform": lambda b, t: (
        moved(b, b.dist.Uniform(b.xp.log(t.min()), b.xp.log(t.max())), b.dist.transforms.ExpTransform()),
        t.min(),
        t.max(),
    ),
    "two transforms": lambda b, t: (
        moved(b, normal(b), b.dist.transforms.ExpTransform(), affine(b, t.max(), b.array(1.0))),
        t.max() + 1.0,
        np.inf,
    ),
    "by row": lambda b, t: (
        moved(b, b.dist.Uniform(0.0 * t, 1.0 + 0.0 * t), affine(b, t, b.array(2.0))).to_event(1),
        t,
        t + 2.0,
    ),
}


@pytest.mark.parametrize("what", CARRIED)
def test_a_transformed_support_is_where_the_transform_takes_it(b, what):
    guided = mean_field(b, lambda t: b.host.sample("x", CARRIED[what](b, t)[0]), init_scale=0.5)
    for t in (FIRST, SECOND):
        posterior, (_, low, high) = unfitted(b, guided, b.array(t)), CARRIED[what](b, b.array(t))
        x = number(posterior.draws(50)["x"])
        slack = 1e-9 * np.abs(x)
        assert ((x >= number(low) - slack) & (x <= number(high) + slack)).all() and x.std() > 0.0
        assert np.isfinite(posterior.elbo(20)[0])


@pytest.mark.parametrize("family", ["MeanField", "Escalate"])
def test_a_shift_by_a_latent_is_refused(b, family):
    """An exponential below zero has a density in some releases: the verdict was good, the posterior wrong."""

    def model(y):
        a = b.host.sample("a", b.dist.Normal(b.array(0.0), b.array(1.0)))
        x = b.host.sample("x", moved(b, b.dist.Exponential(b.array(1.0)), affine(b, a, b.array(1.0))))
        b.host.sample("y", b.dist.Normal(x, b.array(1.0)), obs=y)

    guided = b.vr.guide(getattr(b.vr, family)())(model)
    refused(b, "site 'x': its support follows site 'a'; draw a", lambda: guided.fit(b.array(1.0), progress=False))


def test_a_scale_that_is_a_latent_moves_no_support(b):
    def model(y):
        s = b.host.sample("s", b.dist.LogNormal(b.array(0.0), b.array(0.5)))
        x = b.host.sample("x", moved(b, normal(b), affine(b, b.array(0.0), s)))
        b.host.sample("y", b.dist.Normal(x, b.array(1.0)), obs=y)

    posterior = unfitted(b, mean_field(b, model), b.array(1.0))
    assert number(posterior.draws(50)["x"]).min() > 0.0 and np.isfinite(posterior.elbo(20)[0])


# State.


def test_a_model_that_changed_since_its_fit_is_told(b, recwarn):
    held = {"y": 0.0}

    def model():
        mu = b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(1.0)))
        b.host.sample("y", b.dist.Normal(mu, b.array(1.0)), obs=b.array(held["y"]))

    posterior = mean_field(b, model).fit(**OPTIONS)
    posterior.elbo(20)
    assert not recwarn.list
    held["y"] = 3.0
    with pytest.warns(UserWarning, match="is another model than at the fit: what it reads beside its arg") as told:
        posterior.elbo(20)
    assert len(str(told[0].message)) <= 300


def test_a_second_fit_of_a_scan_within_bounds_is_of_the_same_model(recwarn):
    backend = pytest.importorskip("vi_reparam_numpyro")
    jax, numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")

    def walk(y):
        slope = numpyro.sample("slope", numpyro.distributions.Uniform(0.0, 1.0))
        numpyro.factor("y", jax.lax.scan(lambda at, now: (at - (now - slope * at) ** 2, None), 0.1, y)[0])

    guided = backend.guide(backend.FullRank())(walk)
    for seed in range(2):
        guided.fit(np.ones(5), num_steps=5, seed=seed, progress=False).elbo(20)
    assert not recwarn.list


# The fitted guide.


def test_the_structured_guide_draws_no_outcome_that_was_left_out(b):
    guided = b.vr.guide(b.vr.Structured())(line(b))
    posterior = guided.fit(b.array(X), y=b.array(2.0 * X), num_steps=60, num_particles=2, progress=False)
    y = predictions(b, guided, posterior, np.array([0.0, 1.0, 3.0]))
    np.testing.assert_allclose(y.mean(0), [0.0, 2.0, 6.0], atol=0.4)


# Missing data and checkpoints.


def test_a_model_that_refuses_nan_says_so_of_the_data(b):
    if b.name == "numpyro":
        pytest.skip("it takes them, and masks them")

    def model(y):
        mu = b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("n", len(y)):
            b.host.sample("y", b.dist.Normal(mu, b.array(1.0)).mask(y == y), obs=y)

    with pytest.warns(UserWarning, match="holds 1 NaN"):
        refused(
            b,
            r"argument 0 holds 1 NaN.*, and model refuses them \(.*\): drop them, or mask numbers",
            lambda: mean_field(b, model).fit(np.array([1.0, np.nan]), **OPTIONS),
        )


def test_a_checkpoint_of_a_prior_that_is_nearly_the_same_is_refused(b, tmp_path):
    y = b.array(np.zeros(3))
    mean_field(b, one_mean(b)).fit(y, checkpoint=tmp_path / "fit", **OPTIONS)
    refused(
        b,
        "its numbers at site 'mu' are others",
        lambda: mean_field(b, one_mean(b, 10.0001)).fit(y, checkpoint=tmp_path / "fit", **OPTIONS),
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_files_that_are_none(b, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    guided = mean_field(b)
    for path in (tmp_path / "pipe", tmp_path):
        refused(b, "expected the path of a file", lambda p=path: guided.fit(1.0, checkpoint=p, **OPTIONS))
    for path in ("a\0b", "x" * 400, tmp_path / ("y" * 300)):
        refused(b, r"cannot be written to \(", lambda p=path: guided.fit(1.0, checkpoint=p, **OPTIONS))
    posterior = guided.fit(1.0, **OPTIONS)
    refused(b, "is no path: give that of a file", lambda: posterior.save(None))
    refused(b, "is no path: give that of a file", lambda: b.vr.load(3, guided))
    refused(b, "is not a saved posterior", lambda: b.vr.load(tmp_path / "pipe", guided))


def test_a_disk_that_stays_full_is_told_once(b, tmp_path, monkeypatch, recwarn):
    loop = importlib.import_module("vi_reparam.fit.loop")
    npz = importlib.import_module("vi_reparam.posterior.npz")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for name, value in (("SAVE_EVERY", 0.0), ("LOOK_EVERY", 1e-9)):
        monkeypatch.setattr(loop, name, value)
    monkeypatch.setattr(npz.np, "savez", full)
    mean_field(b).fit(1.0, checkpoint=tmp_path / "fit", num_steps=12, num_particles=1, progress=False)
    assert len([one for one in recwarn if "could not be saved" in str(one.message)]) == 1


# What people give.


@pytest.mark.parametrize("form", [memoryview, lambda x: array.array("d", x)], ids=["memoryview", "array.array"])
def test_buffers_are_arrays(b, form):
    losses = [mean_field(b, line(b)).fit(x, y=X, **OPTIONS).losses for x in (form(X), X)]
    np.testing.assert_array_equal(*losses)


def test_an_object_with_a_shape_is_no_array(b):
    class Design:
        shape, x = 3, X

    def model(design):
        b.host.sample("z", b.dist.Normal(b.array(np.mean(design.x)), b.array(1.0)))

    for family in ("MeanField", "FullRank"):
        assert np.isfinite(b.vr.guide(getattr(b.vr, family)())(model).fit(Design(), **OPTIONS).losses).all()


def test_tensors_of_unusual_kinds():
    torch = pytest.importorskip("torch")
    from test_both_backends import running

    with running("pyro", 64) as b:
        guided = mean_field(b, line(b))
        assert np.isfinite(guided.fit(b.array(X).bfloat16(), y=b.array(X), **OPTIONS).losses).all()
        refused(b, r"a sparse tensor.*x\.to_dense\(\)", lambda: guided.fit(torch.eye(3).to_sparse(), **OPTIONS))


def test_options_that_cannot_be(b):
    posterior = mean_field(b).fit(1.0, **OPTIONS)
    refused(b, "expected at most 1,000,000,000", lambda: mean_field(b).fit(1.0, num_steps=10**12))
    refused(b, "'z' is 'x'; give a number or an array", lambda: mean_field(b).fit(1.0, init={"z": "x"}, **OPTIONS))
    refused(b, r"expectation\('z'\): expected a function", lambda: posterior.expectation("z"))
    refused(
        b,
        "an array of bytes|structured array",
        lambda: mean_field(b, line(b)).fit(np.zeros(3, "V8"), y=X[:3], **OPTIONS),
    )


# Words of errors that no other test reads: what is asked for, and what is said.

WORDS = {
    "lambda schedule": (lambda vr: vr.UniformLogSNR(low=2.0, high=1.0), "expected low < high"),
    "linear schedule": (lambda vr: vr.Linear(beta_min=2.0, beta_max=1.0), "expected 0 < beta_min <= beta_max"),
    "exploding": (lambda vr: vr.VarianceExploding(sigma_min=2.0, sigma_max=1.0), "expected 0 < sigma_min < sigma_max"),
    "window": (lambda vr: vr.Window(1.0, low=2.0, high=1.0), "expected low < high"),
    "corrected training": (lambda vr: vr.SDE(solver=vr.Adams(corrector=2)), "has no tractable kernel, so no bound"),
    "log variance": (lambda vr: vr.SDE(condition="x", gradient="log_variance"), "use gradient='path'"),
    "structured": (lambda vr: vr.Structured(globals=3), r"expected None, or a vr\.Flow\(\) without condition"),
    "batches": (lambda vr: vr.batches(lambda: iter(())), r"give num_rows=, how many rows there are"),
}


def check_words(backend, call, words):
    """A call is refused with these words, in one line of at most 300 characters."""
    pytest.importorskip({"numpyro": "jax", "pyro": "torch"}[backend])
    vr = importlib.import_module(f"vi_reparam_{backend}")
    with pytest.raises(vr.ViReparamError, match=words) as caught:
        call(vr)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("what", WORDS)
def test_the_words_of_an_error(backend, what):
    check_words(backend, *WORDS[what])


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def posterior(b, known):
    """Of a model with a plate, and a latent outside of it."""

    def model(x, y=None):
        a = b.host.sample("a", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("n", len(x)):
            u = b.host.sample("u", b.dist.Normal(a * x, b.array(1.0)))
            b.host.sample("y", b.dist.Normal(u, b.array(1.0)), obs=y)

    if b.name not in known:
        known[b.name] = mean_field(b, model).fit(b.array(X), y=b.array(X), **OPTIONS)
    return known[b.name]


def annotated(p, vr):
    guided = p.guided

    def guide(x, y=None):
        vr.host.sample("a", vr.annotate(3, vr.Implicit()))

    return vr.Guided(guided.model, guide).start(*p.args, **p.kwargs)


def started(p, vr):
    def guide(x, y=None):
        vr.host.sample("a", vr.host.dist.Normal(vr.host.param("at", vr.host.array(0.0)), vr.host.array(1.0)))
        with vr.host.plate("n", len(x)):
            vr.host.sample("u", vr.host.dist.Normal(0.0 * x, vr.host.array(1.0)))

    return vr.Guided(p.guided.model, guide).fit(*p.args, **p.kwargs, init={"a": 1.0}, **OPTIONS)


def keyed(p, vr, folder):
    def model(table):
        vr.host.sample("z", vr.host.dist.Normal(vr.host.array(0.0), vr.host.array(1.0)))

    return vr.guide(vr.MeanField())(model).fit({(1, 2): 1.0}, **OPTIONS).save(folder / "file")


SERVED = {
    "coords": (
        lambda p, vr, _: p.to_arviz(resample=False, coords={"n": [1, 2]}),
        r"coords\['n'\] has shape \(2,\); dimension 'n' has 6",
    ),
    "dims": (lambda p, vr, _: p.to_arviz(resample=False, dims={"zz": ["k"]}), "dims names zz; there are: .*a"),
    "relabel by": (lambda p, vr, _: p.relabel("n", by="a"), r"relabel\('n'\) by='a': name the latent to sort by"),
    "relabel": (lambda p, vr, _: p.relabel("m"), r"relabel\('m'\): no latent is in such a plate; there are: n"),
    "report": (lambda p, vr, f: p.report(f / "no" / "a.html"), r"cannot write .*; give a \.html file"),
    "params": (
        lambda p, vr, _: vr.compare_estimators(
            p.guided, *p.args, **p.kwargs, estimators=[vr.Implicit()], params={"zz": 1.0}, progress=False
        ),
        r"compare_estimators\(params=\.\.\.\) misses .*the parameters are \['a_loc'",
    ),
    "annotate": (lambda p, vr, _: annotated(p, vr), r"Implicit\(\) annotates \w+ distributions"),
    "init of a guide by hand": (lambda p, vr, _: started(p, vr), "a guide written by hand starts where its own param"),
    "keys": (keyed, r"has the key \(1, 2\), which cannot be stored"),
    "devices": (
        lambda p, vr, _: p.guided.fit(*p.args, **p.kwargs, devices="gpu", **OPTIONS),
        r"fit\(devices='gpu'\): (expected a list of jax\.devices|Pyro fits on the one device)",
    ),
    "particles": (
        lambda p, vr, _: p.guided.fit(*p.args, **p.kwargs, num_particles=10**9, num_steps=1),
        r"fit\(num_particles=1,000,000,000\) would hold about .* GB are free: take fewer particles",
    ),
    "draws": (
        lambda p, vr, _: p.draws(10**11),
        r"num_draws=100,.* would hold about .* GB are free: take fewer",
    ),
    "predictions": (
        lambda p, vr, _: p.predict(*p.args, num_draws=10**11),
        r"predict\(num_draws=.*\) would hold about .* GB are free: take fewer draws, or posterior.predict_in_chunks",
    ),
    "weights": (lambda p, vr, _: p.elbo(10**12), r"num_particles=.* would hold about .* GB are free: take fewer"),
    "fresh sites": (lambda p, vr, _: p.predict(fresh_sites=["zz"]), "fresh_sites names zz, not a latent site"),
}


@pytest.mark.parametrize("what", SERVED)
def test_the_words_of_a_refusal(b, posterior, what, tmp_path):
    call, words = SERVED[what]
    refused(b, words, lambda: call(posterior, b.vr, tmp_path))


COMMANDS = {
    "set": (["fit", "digits", "--set", "factors"], "--set 'factors': expected NAME=VALUE"),
    "set of a module": (["fit", "json:loads", "--set", "a=1"], "--set is for ready models; give a module:attribute"),
    "module": (["fit", "no_such_module:f"], "cannot import 'no_such_module': ModuleNotFoundError"),
    "attribute": (["fit", "json:nothing"], "module 'json' has no attribute 'nothing'"),
    "no model": (["fit", "json:loads"], "json:loads is no guided model: decorate it with vr.guide"),
    "family": (["compare", "digits", "--family", "x"], "--family 'x': expected sde or joint"),
    "out": (["models", "--out", "/dev/null/x"], "cannot be made a folder|No such option: --out"),
    "list": (["fit", "json:loads", "--data", "list.json"], "--data list.json: expected a JSON object of keyword arg"),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_the_words_of_a_command(what, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    arguments, words = COMMANDS[what]
    code, _, err = run(capfd, *arguments)
    assert code == 2 and re.search(words, err), err
    assert len(err.strip().splitlines()) == 1 and len(err) <= 320
