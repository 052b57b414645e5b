"""The words of refusals that no other test reads: what is asked for, and what is said. `words.py` lists the rest."""

import numpy as np
import pytest
from test_both_backends import NAMES, mean_field, unfitted
from test_more_kinds import check_words, known, posterior  # noqa: F401
from test_what_people_give import OPTIONS, X, Y, refused

from vi_reparam.backend.registry import ops_of
from vi_reparam.families import base, normal
from vi_reparam.guides.base import GuideFamily
from vi_reparam.guides.gaussian import Gaussian
from vi_reparam.posterior.streams import write
from vi_reparam.programs.builder import build_guide

MADE = {
    "the plate of blocks": (lambda vr: vr.Blocks(plate=3), r"Blocks\(plate=3\): expected the name of a plate"),
    "the spread of a mixture": (lambda vr: vr.Mixture(spread=-1.0), "expected a number of at least 0"),
    "a budget": (lambda vr: vr.Escalate(budget="long"), "expected seconds, a positive number, or None"),
    "a spread in words": (lambda vr: vr.Mixture(spread="wide"), "expected a number of at least 0"),
    "a scale in words": (
        lambda vr: vr.MeanField(init_scale="small"),
        "init_scale='small'.: expected a positive number",
    ),
    "a base": (lambda vr: Gaussian(base="full"), r"Gaussian\(base='full'\): expected one such as Diagonal\(\)"),
    "a solver": (lambda vr: vr.SDE(solver="euler"), r"SDE\(solver='euler'\): expected one such as Adams\(order=1\)"),
    "a schedule": (lambda vr: vr.SDE(schedule=3), r"SDE\(schedule=3\): expected one such as UniformLogSNR\(\)"),
    "a network": (lambda vr: vr.SDE(network="mlp"), r"expected MLP\(\.\.\.\) or a module that can be called"),
    "a cosine": (lambda vr: vr.Cosine(offset=-1.0), "expected offset >= 0 and 0 < last < 1 - first < 1"),
    "a tau": (lambda vr: vr.SDE(tau="no"), "expected a number of at least 0 or a schedule such as Window"),
    "a tau that is infinite": (lambda vr: vr.SDE(tau=float("inf")), "expected a finite tau of at least 0"),
    "sites": (lambda vr: vr.Sites({3: vr.MeanField()}), "expected a site's name, a tuple of names, or '\\*'"),
    "rows of batches": (lambda vr: vr.batches((X, Y), num_rows=5), r"the arrays have .* rows; leave it out"),
    "size of batches": (lambda vr: vr.batches((X, Y), batch_size=0), r"batches\(.*=0\): expected a positive int"),
    "steps": (
        lambda vr: vr.guide(vr.MeanField())(lambda: None).fit(num_steps=10**10),
        r"fit\(num_steps=10000000000\): expected at most 1,000,000,000",
    ),
    "arrays of no framework": (lambda vr: ops_of("text"), "no backend for arrays of type .*: give jax or torch arrays"),
}


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("what", MADE)
def test_the_words_of_what_is_made(backend, what):
    check_words(backend, *MADE[what])


def one(b, distribution, **options):
    """A model of one latent, and a guide for it."""
    guided = b.vr.guide(**options)(lambda: b.host.sample("x", distribution))
    return guided.fit(num_steps=1, progress=False)


def by_hand(b, model_shape, guide_shape):
    def model():
        b.host.sample("x", b.dist.Normal(b.array(np.zeros(model_shape)), b.array(1.0)).to_event(1))

    def guide():
        b.host.sample("x", b.dist.Normal(b.array(np.zeros(guide_shape)), b.array(1.0)).to_event(1))
        b.host.param("unused", b.array(0.0))

    return b.vr.Guided(model, guide)


def blocks_of_another_plate(b):
    def model():
        with b.host.plate("n", 2):
            b.host.sample("x", b.dist.Normal(b.array(0.0), b.array(1.0)))

    return b.vr.guide(b.vr.SDE(base=b.vr.Blocks("m"), num_steps=2))(model).fit(num_steps=1, progress=False)


def without_data(b):
    def model():
        b.host.sample("x", b.dist.Normal(b.array(0.0), b.array(1.0)))

    return mean_field(b, model)


def reading(b, y=None):
    def model():
        x = b.host.sample("x", b.dist.Normal(b.array(0.0), b.array(1.0)))
        b.host.sample("y", b.dist.Normal(x, b.array(1.0)), obs=b.array(1.0))

    return mean_field(b, model)


ASKED = {
    "a family of another support": (
        lambda b: one(b, b.dist.HalfNormal(b.array(1.0)), family=b.vr.MeanField(families={"x": "beta"})),
        r"site 'x': family 'beta' does not live on its support \(.*\); use one of",
    ),
    "an estimator of another family": (
        lambda b: one(b, b.dist.HalfNormal(b.array(1.0)), family=b.vr.MeanField(), estimators={"x": b.vr.Pathwise()}),
        r"does not apply to .*; use one of",
    ),
    "blocks of another plate": (blocks_of_another_plate, "is not in that plate, but in .*; name one that is around"),
    "a guide that draws another shape": (
        lambda b: by_hand(b, 3, 2).fit(num_steps=1, progress=False),
        r"site 'x': the guide draws shape \(2,\), the model expects \(3,\)",
    ),
    "leave-one-out of nothing": (
        lambda b: b.vr.compare_models({n: unfitted(b, without_data(b)) for n in "ab"}),
        "leave-one-out needs two observed values at least; it has 0",
    ),
    "calibration of nothing": (
        lambda b: b.vr.calibrate(without_data(b), num_fits=20, num_steps=1, num_draws=5, progress=False),
        "calibrate: the model observes nothing; give it the data",
    ),
    "calibration of what is read": (
        lambda b: b.vr.calibrate(reading(b), num_fits=20, num_steps=1, num_draws=5, progress=False),
        "calibrate: what site 'y' observes is no argument of the model: give the data as an argument",
    ),
    "few fits": (lambda b: b.vr.calibrate(reading(b), num_fits=1), "num_fits is 1; .* fits at least tell something"),
    "a weak derivative of none": (
        lambda b: base.Family.weak_derivatives(normal.Normal(), b.vr.Guided.backend.ops, None, ()),
        "has no measure-valued derivative",
    ),
}


class NoArray:
    """Data of a library that fails as it is asked for them."""

    def __array__(self, *_, **__):
        raise OSError("the file is closed")


def of_batches(b, source, rows=len, **options):
    def model(x, y):
        a = b.host.sample("a", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("rows", rows(x)):
            b.host.sample("y", b.dist.Normal(a * x, b.array(1.0)).to_event(1 if rows(x) == 1 else 0), obs=y)

    batches = b.vr.batches(source, **options)
    return mean_field(b, model).fit(batches, num_steps=40, num_particles=1, progress=False)


def rows_of(sizes):
    return lambda: ((np.ones(n), np.ones(n)) for n in sizes)


FED = {
    "batches of another count": (
        lambda b: of_batches(b, rows_of([3] * 4), num_rows=30),
        r"the source of batches gave 12 rows in one pass, and num_rows is 30: give the number",
    ),
    "batches that end": (
        lambda b: of_batches(b, rows_of([3] * 4)(), num_rows=600),
        r"the iterator of batches ended after 12 rows, and num_rows is 600: give the number",
    ),
    "a plate of no batch": (
        lambda b: of_batches(b, rows_of([3] * 4), num_rows=12, plate="zz"),
        r"batches\(plate='zz'\): no plate of that name has the batch's size, 3; plates: ",
    ),
    "no plate for a batch": (
        lambda b: of_batches(b, rows_of([3] * 4), rows=lambda x: 1, num_rows=12),
        "no plate has the batch's size, 3, so it is not known what to scale: put the rows in one",
    ),
    "an array that fails": (
        lambda b: mean_field(b, without_data(b).model).fit(NoArray(), num_steps=1),
        "is a .* NoArray, and no array: the file is closed; give a NumPy array",
    ),
    "a frame": (
        lambda b: mean_field(b, without_data(b).model).fit(pytest.importorskip("pandas").DataFrame({"a": Y})),
        r"argument 0 is a .*: give an array, x\.to_numpy\(\), or its columns",
    ),
}


@pytest.mark.parametrize("what", FED)
def test_the_words_of_what_is_fed(b, what):
    call, words = FED[what]
    refused(b, words, lambda: call(b))


@pytest.mark.parametrize("what", ASKED)
def test_the_words_of_what_a_model_asks_for(b, what):
    call, words = ASKED[what]
    refused(b, words, lambda: call(b))


def loaded(p, folder, *args, data=True, **kwargs):
    p.save(folder / "file", data=data)
    return type(p).load(folder / "file", p.guided, *args, **kwargs)


class Nothing(GuideFamily):
    """A family that no backend knows."""

    def check_estimators(self, estimators):
        return None


def unfitted_to(p, y):
    return p.guided.fit(p.args[0], y=y, **OPTIONS)


SERVED = {
    "an init of no site": (
        lambda p, vr, _: p.guided.fit(*p.args, **p.kwargs, init={"zz": 1.0}, **OPTIONS),
        r"fit\(init=\) names 'zz', not a latent site; there are: a",
    ),
    "an init of another shape": (
        lambda p, vr, _: p.guided.fit(*p.args, **p.kwargs, init={"a": np.ones(2)}, **OPTIONS),
        r"fit\(init=\): 'a' has shape \(2,\); the site has \(\)",
    ),
    "dims": (lambda p, vr, _: p.to_arviz(resample=False, dims={"u": ["k", "l"]}), r"dims\['u'\] names 2 dimensions"),
    "relabel": (lambda p, vr, _: p.relabel("zz"), r"relabel\('zz'\): no latent is in such a plate; there are: n"),
    "names of coords": (
        lambda p, vr, _: p.to_arviz(resample=False, coords={"zz": [1]}),
        "coords names zz; there are: .*n",
    ),
    "sites to return": (
        lambda p, vr, _: p.predict(*p.args, num_draws=2, return_sites=["zz"]),
        "return_sites names zz, not .*; there are: ",
    ),
    "a family of no backend": (
        lambda p, vr, _: build_guide(p.backend, Nothing(), p.guided.model, {}),
        r"is not a guide family that this backend builds: use vr\.MeanField\(\)",
    ),
    "data that differ": (
        lambda p, vr, _: vr.compare_models({"a": p, "b": unfitted_to(p, Y + 1.0)}),
        r"compare_models: 'a' and 'b' are of different data: 'y' of shape .* do not hold the same values",
    ),
    "draws": (lambda p, vr, _: p.draws(0), "num_draws is 0; give a positive int"),
    "another model's file": (
        lambda p, vr, f: (p.save(f / "file"), type(p).load(f / "file", vr.guide(lambda: None)))[1],
        "holds a posterior of 'model', not of '<lambda>'; pass the model it was fitted with",
    ),
    "data that a file has": (
        lambda p, vr, f: loaded(p, f, *p.args, **p.kwargs),
        "was saved with all that it needs: give no data to load",
    ),
    "data that a file lacks": (lambda p, vr, f: loaded(p, f, data=False), "was saved without its data: give those"),
    "a column in place of a row": (
        lambda p, vr, _: p.predict(X[:, None], num_draws=2),
        "(in place of a column|give inputs of the form|could not run on arguments of shapes)",
    ),
    "a folder for a file": (
        lambda p, vr, f: write(f, {}, iter(()), 1, 1),
        "cannot write .*; give a .nc in a folder that exists",
    ),
}


@pytest.mark.parametrize("what", SERVED)
def test_the_words_of_what_a_posterior_serves(b, posterior, what, tmp_path):  # noqa: F811
    call, words = SERVED[what]
    refused(b, words, lambda: call(posterior, b.vr, tmp_path))


def test_the_words_of_what_only_one_framework_refuses():
    vr = pytest.importorskip("vi_reparam_pyro")

    def model():
        vr.host.sample("x", vr.host.dist.Normal(vr.host.array(0.0), vr.host.array(1.0)))

    advice = r"expected a torch\.optim factory, such as lambda params: torch\.optim\.Adam"
    fitted = vr.guide(vr.MeanField())(model)
    for optimizer, words in (
        (3, r"fit\(optimizer=3\): "),
        (lambda params: 3, r"fit\(optimizer=.*\) gave 3: "),
        (lambda params: params.zz, r"fit\(optimizer=.*\): .*; "),
    ):
        with pytest.raises(vr.ViReparamError, match=words + advice) as caught:
            fitted.fit(optimizer=optimizer, num_steps=1, progress=False)
        assert len(str(caught.value)) <= 300


def test_the_words_of_ready_models():
    from vi_reparam_models import get

    with pytest.raises(ValueError, match="model 'digits' has no option 'zz': its options are"):
        get("digits", zz=1)
    with pytest.raises(ValueError, match="model 'digits': num_factors=-1 given, expected a positive integer"):
        get("digits", num_factors=-1)
