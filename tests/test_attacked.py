"""What further attacks found, and members of its kinds (README.md): in both backends."""

import os
import signal
import sys

import numpy as np
import pytest
from test_both_backends import mean_field, number, running, unfitted
from test_cli import folder, run  # noqa: F401
from test_cut_off import FEW, STEPS, Y, mean, press  # noqa: F401
from test_nothing_silent import X, line
from test_what_people_give import refused

from vi_reparam.fit import adaptive_mixture, escalation
from vi_reparam.fit.fitter import Fitter
from vi_reparam.posterior.posterior import Posterior

# Checkpoints of something else: guides by hand, and where parameters start.


def by_hand(b, at=0.0, shift=0.0, power=1.0):
    def guide(y=None):
        loc, log_scale = b.host.param("loc", b.array(at)), b.host.param("log_scale", b.array(0.0))
        b.host.sample("mu", b.dist.Normal(loc + shift, power * b.xp.exp(log_scale)))

    return b.vr.Guided(mean(b), guide)


OTHER_GUIDES = {"start": {"at": 3.0}, "place": {"shift": 5.0}, "scale": {"power": 2.0}}


@pytest.mark.parametrize("what", OTHER_GUIDES)
def test_a_checkpoint_of_another_guide_by_hand_is_refused(b, tmp_path, what):
    first = by_hand(b).fit(b.array(Y), checkpoint=tmp_path / "fit", **FEW)
    again = by_hand(b).fit(b.array(Y), checkpoint=tmp_path / "fit", **FEW)
    np.testing.assert_array_equal(again.losses, first.losses)
    other = by_hand(b, **OTHER_GUIDES[what])
    words = r"is of another fit: its numbers at site '\w+ of the guide' are others \(another .*start"
    refused(b, words, lambda: other.fit(b.array(Y), checkpoint=tmp_path / "fit", **FEW))


def test_a_checkpoint_of_another_start_of_a_parameter_is_refused(b, tmp_path):
    def guided(at):
        def model(y=None):
            slope = b.host.param("slope", b.array(at))
            mu = b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(1.0)))
            b.host.sample("y", b.dist.Normal(mu + 0.0 * slope, b.array(1.0)), obs=y)

        return mean_field(b, model)

    guided(0.0).fit(b.array(1.0), checkpoint=tmp_path / "fit", **FEW)
    words = "its numbers at site 'slope' are others"
    refused(b, words, lambda: guided(2.0).fit(b.array(1.0), checkpoint=tmp_path / "fit", **FEW))


def test_a_checkpoint_stays_where_it_was_asked_for(b, tmp_path, monkeypatch):
    """The model goes to another folder."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)

    def model(y=None):
        os.chdir(tmp_path / "other")
        mean(b)(y)

    mean_field(b, model).fit(b.array(Y), checkpoint="fit", **FEW)
    assert (tmp_path / "fit").is_file() and not (tmp_path / "other" / "fit").exists()


# Starts at the edge of a support or beyond it: torch's inverses clip them.

STARTS = {
    "beyond": (lambda b, t: b.dist.Uniform(t.min(), t.max()), 9.5),
    "at a bound of the data": (lambda b, t: b.dist.Uniform(t.min(), t.max()), 2.0),
    "at zero": (lambda b, t: b.dist.Beta(b.array(1.0), b.array(1.0)), 0.0),
    "at one": (lambda b, t: b.dist.Beta(b.array(1.0), b.array(1.0)), 1.0),
    "no probabilities": (lambda b, t: b.dist.Dirichlet(b.array(np.ones(3))), [0.2, 0.2, 0.2]),
}


@pytest.mark.parametrize("what", STARTS)
def test_a_start_outside_of_the_support_is_refused(b, what):
    prior, value = STARTS[what]

    def model(t):
        z = b.host.sample("z", prior(b, t))
        b.host.sample("y", b.dist.Normal(b.xp.sum(z), b.array(1.0)), obs=b.array(3.0))

    t = b.array(np.array([2.0, 5.0, 9.0]))
    words = r"fit\(init=\): 'z' is outside of its support .*, or at its edge"
    refused(b, words, lambda: mean_field(b, model).fit(t, init={"z": value}, **FEW))


def test_a_triangular_start_is_inside(b):
    """Its zeros are no edge."""
    root = np.linalg.cholesky([[1.0, 0.5, 0.2], [0.5, 1.0, 0.1], [0.2, 0.1, 1.0]])
    kinds = __import__(f"{b.name}.distributions", fromlist=["LKJCholesky"])

    def model():
        b.host.sample("z", kinds.LKJCholesky(3, b.array(1.0)))

    assert np.isfinite(mean_field(b, model).fit(init={"z": root}, **FEW).losses).all()


# Numbers that a narrower kind does not hold.

NANOSECONDS = np.array([1_700_000_000_000_000_000, 1_700_000_000_000_000_001])
WIDE = {
    "a number beyond": (np.array([1e300, 1.0]), "argument 0 holds 1e\\+300, which float32 does not: give other units"),
    "below": (np.array([0.0, -1e39]), "holds -1e\\+39, .* does not: give other units, or differences from the first"),
    "whole numbers": (np.array([2**63 + 1], np.uint64), "argument 0 holds 9223372036854775809, which u?int"),
}


def shifted(b):
    def model(t):
        z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
        b.host.sample("y", b.dist.Normal(z + 0.0 * t[0], b.array(1.0)), obs=b.array(1.0))

    return mean_field(b, model)


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
@pytest.mark.parametrize("what", WIDE)
def test_numbers_that_would_change_are_refused(backend, what):
    with running(backend, 32) as b:
        refused(b, WIDE[what][1], lambda: shifted(b).fit(WIDE[what][0], **FEW))


@pytest.mark.parametrize("form", [np.asarray, list, lambda x: x.view(np.uint64)], ids=["array", "list", "unsigned"])
def test_times_in_nanoseconds_are_refused_where_they_would_wrap(form):
    """JAX made 908722176 of them, without a word."""
    data = form(NANOSECONDS) if form is not list else NANOSECONDS.tolist()
    with running("numpyro", 32) as b:
        refused(b, r"argument 0 holds 1700000000000000001, which u?int32 does not", lambda: shifted(b).fit(data, **FEW))
    for backend in ("numpyro", "pyro"):
        with running(backend, 64) as b:
            assert number(shifted(b).fit(data, **FEW).args[0]).tolist() == NANOSECONDS.tolist()


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_numbers_that_single_precision_does_not_tell_apart_are_told(backend, recwarn):
    with running(backend, 32) as b:
        seconds = 1.7e9 + np.arange(3.0)
        with pytest.warns(UserWarning, match="argument 0 varies by little beside its mean, and float32 does not tell"):
            shifted(b).fit(seconds, **FEW)
        recwarn.clear()
        shifted(b).fit(np.arange(1990.0, 2020.0), **FEW)
        shifted(b).fit(np.full(3, 1.7e9), **FEW)
        assert not [one for one in recwarn if "does not tell" in str(one.message)]


# Missing data.


def test_a_covariate_that_is_missing_is_named(b):
    """Pyro's model raised, and the fit stopped at its first step instead."""
    x = np.array([0.5, np.nan, 2.0])
    words = r"argument 0 holds 1 NaN or infinite values of 3, and .*: drop them, or mask numbers in their place"
    refused(b, words, lambda: mean_field(b, line(b)).fit(b.array(x), y=b.array(Y), **FEW))
    rows = np.ones(40), np.ones(40)
    rows[0][33] = np.nan
    words = words.replace("of 3", "of 40")
    refused(b, words, lambda: mean_field(b, line(b)).fit(b.vr.batches(rows, batch_size=10), **FEW))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_missing_data_in_half_precision(b, kind):
    y = np.array([0.5, np.nan, 2.0], np.float16)
    if kind == "bfloat16":
        y = b.array(y).astype("bfloat16") if b.name == "numpyro" else b.array(y).bfloat16()
    words = "argument 0 holds 1 NaN or infinite values of 3, and the density of site 'y' is not finite"
    refused(b, words, lambda: mean_field(b, mean(b)).fit(y, **FEW))


# Parameters out of their range, which a compiled program does not look at.

BEYOND = {
    "a scale below zero": lambda b, s: b.dist.Normal(b.array(0.0), -s),
    "a scale of zero": lambda b, s: b.dist.Normal(b.array(0.0), 0.0 * s),
    "a shape below zero": lambda b, s: b.dist.Gamma(-s, s),
    "bounds in the wrong order": lambda b, s: b.dist.Uniform(s, 0.0 * s),
    "no probabilities": lambda b, s: b.dist.Dirichlet(-s * b.array(np.ones(3))),
}


@pytest.mark.parametrize("what", BEYOND)
def test_a_parameter_out_of_its_range_names_its_site(b, what):
    """NumPyro's own error came in place of ours, while it was looked for the site."""

    def model(s):
        z = b.host.sample("z", BEYOND[what](b, s))
        b.host.sample("y", b.dist.Normal(b.xp.sum(z), b.array(1.0)), obs=b.array(1.0))

    refused(b, r"(stopped at step 0|could not run): site 'z': ", lambda: mean_field(b, model).fit(b.array(2.0), **FEW))


def test_a_matrix_that_is_not_symmetric_is_refused_before_the_fit():
    """Its density is finite: Pyro's error came after the last step."""
    with running("pyro", 64) as b:
        normal = __import__("pyro.distributions", fromlist=["MultivariateNormal"]).MultivariateNormal

        def model(covariance):
            z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
            b.host.sample("y", normal(z * b.array(np.ones(2)), covariance), obs=b.array(Y[:2]))

        words = "could not run on arguments of shapes .*: Expected parameter covariance_matrix"
        refused(b, words, lambda: mean_field(b, model).fit(np.array([[1.0, 0.5], [0.2, 1.0]]), **FEW))


# What people give.

PLAIN = {"tuple": tuple, "range": lambda x: range(len(x)), "set": set, "values": lambda x: dict(enumerate(x)).values()}


@pytest.mark.parametrize("what", PLAIN)
@pytest.mark.filterwarnings("ignore:.* reads its data in Python")
def test_data_in_other_forms_than_arrays_say_what_to_write(b, what):
    words = (
        r"(could not run on arguments of shapes .*; give data as|is a dict_values: give data as an) array.*np\.asarray"
    )
    refused(b, words, lambda: mean_field(b, mean(b)).fit(PLAIN[what](Y), **FEW))


def test_records_and_empty_columns_are_refused(b):
    guided = mean_field(b, mean(b))
    records = np.rec.array([(1.0, 2.0)] * 3, dtype=[("a", float), ("b", float)])
    refused(b, "argument 0 is a structured array: give its columns", lambda: guided.fit(records, **FEW))
    words = "argument 0 is empty, and of no kind: give at least one number"
    refused(b, words, lambda: guided.fit(np.zeros(0, object), **FEW))


def test_data_of_jax_numpy_that_are_read_in_python_are_told():
    """The reason was said to be a draw."""
    import jax.numpy as jnp

    with running("numpyro", 64) as b:

        def model(y):
            mu = b.host.sample("mu", b.dist.Normal(0.0, 1.0))
            seen = y[~jnp.isnan(y)]
            b.host.sample("y", b.dist.Normal(mu, 1.0).expand([len(seen)]).to_event(1), obs=seen)

        words = r"reads in Python a draw, a parameter, or what jax\.numpy, and not numpy, made of its data"
        refused(b, words, lambda: mean_field(b, model).fit(b.array(Y), **FEW))


# Interruptions after the steps.


def stopped(*_, **__):
    raise KeyboardInterrupt


def test_an_interruption_after_the_steps_gives_what_they_fitted(b, monkeypatch):
    guided = b.vr.guide(b.vr.FullRank())(mean(b))
    whole = guided.fit(b.array(Y), **STEPS)
    monkeypatch.setattr(Posterior, "finish", stopped)
    cut = guided.fit(b.array(Y), **STEPS)
    np.testing.assert_array_equal(cut.losses, whole.losses)
    assert "interrupted after its steps" in cut.record["interrupted"] and cut.verdict.grade != "good"


def test_a_ladder_that_is_interrupted_in_its_first_verdict_gives_its_fit(b, monkeypatch):
    guided = b.vr.guide(b.vr.Escalate(families=(b.vr.MeanField(), b.vr.FullRank())))(mean(b))
    monkeypatch.setattr(Posterior, "attempt", stopped)
    cut = guided.fit(b.array(Y), **STEPS)
    assert len(cut.losses) == 150 and "interrupted at MeanField()" in cut.record["interrupted"]


def test_ctrl_c_between_the_steps_and_the_posterior_gives_it(b, press, monkeypatch):  # noqa: F811
    """It was lost, with all of its steps."""
    guided = mean_field(b, mean(b))
    whole = guided.fit(b.array(Y), **STEPS)
    compare = Fitter._compare

    def pressed(self, runs):
        signal.raise_signal(signal.SIGINT)
        return compare(self, runs)

    press()
    monkeypatch.setattr(Fitter, "_compare", pressed)
    cut = guided.fit(b.array(Y), **STEPS)
    np.testing.assert_array_equal(cut.losses, whole.losses)
    assert cut.record["interrupted"] == "the fit was interrupted after its steps" and cut.verdict.grade != "good"


LATE = {
    "in its modes": (escalation, "missed_modes", "the fit was interrupted before its end of FullRank()"),
    "in its last look": (escalation, "by_student_t", "the search was interrupted after its last family"),
    "in a sampler": (
        adaptive_mixture,
        "fitted",
        "before any draws of AdaptiveMixture() were kept of AdaptiveMixture()",
    ),
}


@pytest.mark.parametrize("where", LATE)
def test_a_ladder_that_is_interrupted_late_gives_what_it_has(b, monkeypatch, few_weights, where):
    module, name, words = LATE[where]

    def stopped(*given, **_):
        if where == "in a sampler":
            given[-1]()  # it starts from another fit
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, stopped)
    monkeypatch.setattr(escalation, "KHAT_USABLE", -9.0)
    families = (b.vr.AdaptiveMixture() if where == "in a sampler" else b.vr.FullRank(),)
    posterior = b.vr.guide(b.vr.Escalate(families=families))(mean(b)).fit(b.array(Y), progress=False)
    assert words in posterior.record["interrupted"] and posterior.verdict.grade != "good"
    assert posterior.record["family"] == "FullRank()"


def test_a_sampler_that_is_interrupted_gives_its_start(b, monkeypatch, few_weights):
    def stopped(guided, data, seed, start):
        start()
        raise KeyboardInterrupt

    monkeypatch.setattr(adaptive_mixture, "fitted", stopped)
    posterior = b.vr.guide(b.vr.AdaptiveMixture())(mean(b)).fit(b.array(Y), progress=False)
    assert posterior.verdict.grade != "good"
    assert any("before any draws of AdaptiveMixture() were kept" in reason for reason in posterior.verdict.reasons)


def test_the_first_steps_do_not_keep_one_waiting(b, monkeypatch):
    """The clock is looked at after the first one: 32 of a slow model took half a minute."""
    program = __import__(f"vi_reparam_{b.name}.engine.program", fromlist=["Program"]).Program
    asked, advance = [], program.advance

    def noted(self, state, steps):
        asked.append(steps)
        return advance(self, state, steps)

    monkeypatch.setattr(program, "advance", noted)
    mean_field(b, mean(b)).fit(b.array(Y), **STEPS)
    assert asked[0] == 1 and sum(asked) >= 150


# Names.


def test_the_name_of_a_site_is_text(b):
    """NumPyro wrote a file that it could not read."""

    def model(y):
        mu = b.host.sample(3, b.dist.Normal(b.array(0.0), b.array(1.0)))
        b.host.sample("y", b.dist.Normal(mu + 0.0 * y, b.array(1.0)).to_event(1), obs=y)

    refused(b, "site 3: the name of a site is text, as '3'", lambda: mean_field(b, model).fit(b.array(Y), **FEW))


def test_a_plate_of_two_sizes_is_refused(b):
    """In NumPyro the first was taken to be as long as the second."""

    def model(y):
        with b.host.plate("n", 3):
            u = b.host.sample("u", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("n", 2):
            b.host.sample("y", b.dist.Normal(b.xp.sum(u), b.array(1.0)), obs=y[:2])

    words = "plate 'n' stands for 3 and 2 elements: give each its own name|Multiple sample sites named 'n'"
    refused(b, words, lambda: mean_field(b, model).fit(b.array(Y), **FEW))


# The command.

FILES = {
    "a mark": ("mark.json", '\ufeff{"x": [1, 2], "y": [2, 4]}', 0, ""),
    "capitals": ("table.CSV", "x,y\n1,2\n2,4\n", 0, ""),
    "twice": ("twice.json", '{"x": [1, 2], "x": [3, 4], "y": [1, 2]}', 2, "two of its entries have one name"),
    "semicolons": ("semicolons.csv", "x;y\n1;2\n2;4\n", 2, "argument: 'x', and the file has x;y; see --data"),
    "a header alone": ("header.csv", "x,y\n", 2, "argument 'x' is empty, and of no kind"),
}


@pytest.mark.parametrize("what", FILES)
def test_files_of_other_spellings(capfd, folder, tmp_path, what):  # noqa: F811
    name, text, expected, words = FILES[what]
    (tmp_path / name).write_text(text, encoding="utf-8")
    code, _, err = run(capfd, "fit", "own_slope:slope", "--data", name, "--backend", folder, "--num-steps", "5")
    assert code == expected and words in err and len(err.splitlines()) == (expected != 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
def test_a_full_disk_and_a_terminal_of_ascii(tmp_path):
    import subprocess

    def command(*arguments, **streams):
        code = "from vi_reparam.commands.app import main; main()"
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=False, **streams)

    with open("/dev/full", "w") as full:
        done = command("models", stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == "vi-reparam: cannot write: No space left on device\n"
    done = command("models", capture_output=True)
    assert done.returncode == 0 and b"gamma_poisson" in done.stdout and not done.stderr


def test_supports_by_a_constraint_of_the_second_data(b):
    """The number of groups, an observed site and a length set bounds too."""

    def model(t):
        top = b.host.sample("top", b.dist.Normal(b.array(0.0), b.array(9.0)), obs=t.max())
        b.host.sample("x", b.dist.Uniform(top - 1.0, top))
        b.host.sample("k", b.dist.Uniform(b.array(0.0), b.array(0.1 * len(t))))

    guided = mean_field(b, model)
    for t in (X, X + 40.0, X[:2]):
        drawn = {name: number(x) for name, x in unfitted(b, guided, b.array(t)).draws(40).items()}
        assert ((t.max() - 1.0 <= drawn["x"]) & (drawn["x"] <= t.max())).all()
        assert ((drawn["k"] >= 0.0) & (drawn["k"] <= 0.1 * len(t))).all()
