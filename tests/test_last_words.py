"""The words of refusals that no other test reads, where each can be met: `words.py` lists what is left."""

import types

import pytest
from test_both_backends import mean_field, unfitted
from test_cli import folder, run  # noqa: F401
from test_errors_words import one
from test_more_kinds import check_words, known, posterior  # noqa: F401
from test_what_people_give import OPTIONS, X, refused

from vi_reparam.commands import runs
from vi_reparam.errors import ArgumentError, BackendError
from vi_reparam.posterior import update


def misses(b):
    """A guide that draws another latent than the model's."""

    def draws(name):
        return lambda: b.host.sample(name, b.dist.Normal(b.array(0.0), b.array(1.0)))

    return b.vr.Guided(draws("x"), draws("z")).fit(num_steps=1, progress=False)


def without_support(b):
    class Odd(b.dist.Normal):
        support = None

    return one(b, Odd(b.array(0.0), b.array(1.0)), family=b.vr.MeanField())


def rows_of_a_minibatch(b):
    def model(t):
        with b.host.plate("n", len(t), subsample_size=2):
            b.host.sample("x", b.dist.Uniform(t[:2] - 1.0, t[:2] + 1.0))

    return mean_field(b, model).fit(b.array(X), num_steps=2, progress=False)


def score_of_no_family(b):
    def model():
        b.host.sample("x", b.dist.Weibull(b.array(1.0), b.array(2.0)))

    def guide():
        at = b.host.param("at", b.array(1.0))
        b.host.sample("x", b.vr.annotate(b.dist.Weibull(at, b.array(2.0)), b.vr.ScoreFunction(baseline="optimal")))

    return b.vr.Guided(model, guide).fit(num_steps=1, progress=False)


MET = {
    "a guide of other latents": (misses, "; every run of the model must have the same sites, whatever it draws"),
    "no support": (without_support, r"site 'x': Odd has no support, so no guide family covers it"),
    "bounds of rows that a run does not see": (
        rows_of_a_minibatch,
        "its bounds have a row for each element of plate 'n', of which a run sees a part; give all rows one support",
    ),
    "a solver of the steps": (
        lambda b: unfitted(
            b, b.vr.guide(b.vr.SDE(num_steps=2))(lambda: b.host.sample("x", b.dist.Normal(0.0, 1.0)))
        ).draws(3, solver="euler"),
        r"solver='euler': expected one such as Adams\(order=2, corrector=3\)",
    ),
    "a score of a family that is the host's": (
        score_of_no_family,
        r"ScoreFunction\(baseline='optimal'\) needs a family of the core, not ",
    ),
}


@pytest.mark.parametrize("what", MET)
def test_the_words_of_what_is_met(b, what):
    call, words = MET[what]
    refused(b, words, lambda: call(b))


def failing(b):
    def model(x, y=None):
        raise RuntimeError("no such table")

    return b.vr.guide(b.vr.MeanField())(model)


SERVED = {
    "an update over very many": (
        lambda p, vr, _: vr.guide(vr.FullRank())(p.guided.model).fit(*p.args, **p.kwargs, **OPTIONS).update(*p.args),
        r"update: a Gaussian over 7 coordinates; at most 1 can be a prior",
    ),
}


@pytest.mark.parametrize("what", SERVED)
def test_the_words_of_what_is_served(b, posterior, what, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(update, "LARGEST", 1)
    call, words = SERVED[what]
    refused(b, words, lambda: call(posterior, b.vr, tmp_path))


def test_the_words_of_a_model_that_fails_on_what_a_file_holds(b, posterior, tmp_path):  # noqa: F811
    posterior.save(tmp_path / "file")
    words = "of another 'model' than the given 'model', which fails on the fit's data: .*no such table"
    refused(b, words, lambda: type(posterior).load(tmp_path / "file", failing(b)))


def test_the_words_of_a_table_that_needs_another_package(capfd, folder, monkeypatch):  # noqa: F811
    def read(path):
        raise ImportError("no pyarrow")

    monkeypatch.setattr("pandas.read_parquet", read)
    code, _, err = run(capfd, "fit", "own_slope:slope", "--data", "wrong.parquet")
    assert code == 2 and "pandas reads such files with pyarrow: pip install pyarrow" in err
    assert len(err.strip().splitlines()) == 1


def test_the_words_of_a_study_that_a_backend_has_not():
    job = types.SimpleNamespace(name="own", vr=types.ModuleType("vi_reparam_other"))
    report = types.SimpleNamespace(title=lambda text: None)
    with pytest.raises(BackendError, match="vi_reparam_other has no compare_sde; use another backend"):
        runs.run_study("sde", job, report, replicates=1, seed=0)


def test_the_words_of_a_data_set_that_needs_another_package():
    from vi_reparam_models.data import _require

    with pytest.raises(ArgumentError, match="this data set comes with scikit-learn, which is not installed") as caught:
        _require("no_such_module")
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Cannot generate JAX PRNG key")
def test_the_words_of_randomness_that_numpyro_has_not():
    pytest.importorskip("jax")
    from vi_reparam_numpyro.ops.ops import ops

    with pytest.raises(ArgumentError, match=r"NumPyro has no randomness here: run the program inside numpyro\.hand"):
        ops.root_key()


def test_the_words_of_a_fork(monkeypatch):
    pytest.importorskip("jax")
    from vi_reparam_numpyro.engine import forked

    monkeypatch.setattr(forked, "_FORKED", [True])
    check_words(
        "numpyro", lambda vr: vr.guide(lambda: None).fit(), "this process was forked after JAX had started, and"
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_the_words_of_a_trace_by_torch():
    torch = pytest.importorskip("torch")

    def traced(vr):
        made = vr.annotate(vr.host.dist.Gamma(torch.ones(()), torch.ones(())), vr.Rejection())
        return torch.jit.trace(lambda x: x + made.rsample(), torch.ones(()))

    check_words(
        "pyro", traced, r"cannot be traced by torch\.jit, which would freeze its rejection loop; use vr\.ELBO\(\)"
    )


def test_the_words_of_two_devices():
    torch = pytest.importorskip("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode

    from vi_reparam_pyro.ops.home import device_of

    with FakeTensorMode():
        x, y = (torch.empty(3, device="meta"), torch.empty(3, device="xla"))
    with pytest.raises(
        ArgumentError, match=r"the arguments are on several devices, meta and .*: move all of them to one"
    ):
        device_of((x, y))
