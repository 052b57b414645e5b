"""More members of the kinds in README.md: files, interruptions, threads, memory, masks and the command."""

import gc
import io
import os
import signal
import weakref
import zipfile

import numpy as np
import pytest
from test_both_backends import mean_field, number
from test_cli import folder, run  # noqa: F401
from test_cut_off import FEW, STEPS, Y, check, files, head_of, mean, press, saved  # noqa: F401
from test_threads_and_memory import OPTIONS, X, in_threads, level, releases, slope
from test_what_people_give import refused

from vi_reparam import checks
from vi_reparam.backend.cache import Cache
from vi_reparam.posterior import npz

# Files.

PATHS = {
    "a link to nowhere": (lambda f: f / "nowhere", r"cannot be written to \(No such file"),
    "no more space by nature": (lambda f: "/dev/full", "expected the path of a file"),
    "a device": (lambda f: "/dev/null", "expected the path of a file"),
    "a folder, by its slash": (lambda f: f"{f}/", "expected the path of a file"),
    "nothing": (lambda f: "", "expected the path of a file"),
    "bytes": (lambda f: b"fit", "expected the path of a file"),
    "a home that is not there": (lambda f: "~nobody_here/fit", r"cannot be written to \(No such file"),
    "somebody's text": (lambda f: f / "thesis", "is not a vi-reparam checkpoint"),
}


@pytest.mark.parametrize("what", PATHS)
def test_a_checkpoint_that_cannot_be_one_is_refused(b, tmp_path, what):
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "fit")
    (tmp_path / "thesis").write_text("chapter 1")
    make, words = PATHS[what]
    refused(b, words, lambda: mean_field(b, mean(b)).fit(b.array(Y), checkpoint=make(tmp_path), **FEW))
    assert (tmp_path / "thesis").read_text() == "chapter 1" and (tmp_path / "nowhere").is_symlink()


def test_a_link_to_a_file_stays_a_link(b, tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("fit", "posterior"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    guided = mean_field(b, mean(b))
    posterior = guided.fit(b.array(Y), checkpoint=tmp_path / "fit", **FEW)
    posterior.save(tmp_path / "posterior")
    assert sorted(entry.name for entry in (tmp_path / "disk").iterdir()) == ["fit", "posterior"]
    assert all((tmp_path / name).is_symlink() for name in ("fit", "posterior"))
    np.testing.assert_array_equal(b.vr.load(tmp_path / "posterior", guided).losses, posterior.losses)


def again(content, how=zipfile.ZIP_DEFLATED, edit=lambda name, member: member, name=lambda name: name, more=()):
    """The members of an archive in another one."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", how) as new:
        for one in old.namelist():
            new.writestr(name(one), edit(one, old.read(one)))
        for one, member in more:
            new.writestr(one, member)
    return file.getvalue()


def losses_of(header):
    """The losses, under a header of one's own."""
    text = header.encode().ljust(117) + b"\n"
    begin = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    return lambda name, member: begin + member[-24:] if name == "losses.npy" else member


def shaped(descr, shape):
    return losses_of(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}")


def nested(content):
    head = f"{head_of(content)}.npy"
    text = saved(np.save, np.array("[" * 100_000))
    return again(content, edit=lambda name, member: text if name == head else member)


SAME = {
    "bzip2": lambda c: again(c, zipfile.ZIP_BZIP2),
    "lzma": lambda c: again(c, zipfile.ZIP_LZMA),
    "after a line": lambda c: b"#!/bin/sh\n" + c,
    "twice": lambda c: c + c,
}
OTHERS = {
    "absolute names": lambda c: again(c, name=lambda name: f"/{name}"),
    "a way out": lambda c: again(c, more=[("../../evil.npy", c[:9])]),
    "code in a header": lambda c: again(c, edit=shaped("<f8", "(__import__('os').mkdir('ran'),)")),
    "a shape of terabytes": lambda c: again(c, edit=shaped("<f8", "(1000000000000,)")),
    "a shape below zero": lambda c: again(c, edit=shaped("<f8", "(-3,)")),
    "many of nothing": lambda c: again(c, edit=shaped("|V0", "(1000000000000,)")),
    "nested too deep": nested,
    "zeros": lambda c: bytes(len(c)),
    "compressed whole": lambda c: __import__("gzip").compress(c),
}


@pytest.mark.parametrize("kind", ["checkpoint", "posterior"])
def test_archives_of_other_makers(b, files, kind, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    content, before = files[kind][1], files[kind][2]()
    for name, make in SAME.items():
        assert check(b, files[kind], make(content), before) == "read", name
    for name, make in OTHERS.items():
        assert check(b, files[kind], make(content), before) == "refused", name
    assert not (tmp_path / "ran").exists() and not (tmp_path.parent.parent / "evil.npy").exists()


# Interruptions.


def test_an_interruption_while_a_state_is_written_leaves_a_whole_file(b, tmp_path, monkeypatch):
    """In the last write: the fit is over, so that its posterior is whole too."""
    file, guided, replace = tmp_path / "fit", mean_field(b, mean(b)), os.replace
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(*paths):
        signal.raise_signal(signal.SIGINT)
        return replace(*paths)

    monkeypatch.setattr(npz.os, "replace", interrupted)
    try:
        posterior = guided.fit(b.array(Y), checkpoint=file, **FEW)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.setattr(npz.os, "replace", replace)
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit"]
    again_ = guided.fit(b.array(Y), checkpoint=file, **FEW)
    np.testing.assert_array_equal(again_.losses, guided.fit(b.array(Y), **FEW).losses)
    assert len(posterior.losses) <= len(again_.losses)


def test_an_update_that_is_interrupted_says_so(b, press):  # noqa: F811
    posterior = mean_field(b, mean(b)).fit(b.array(Y), **STEPS)
    press(1)
    cut = posterior.update(b.array(Y + 1.0), **STEPS)
    assert 0 < len(cut.losses) < 150 and cut.verdict.grade != "good"
    assert any("the fit was interrupted after" in reason for reason in cut.verdict.reasons)


def test_batches_that_are_interrupted_say_so(b, press):  # noqa: F811
    def model(x):
        mu = b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(10.0)))
        with b.host.plate("n", len(x)):
            b.host.sample("x", b.dist.Normal(mu, b.array(1.0)), obs=x)

    press(1)
    data = b.vr.batches(np.arange(40.0), batch_size=10)
    cut = mean_field(b, model).fit(data, **STEPS)
    assert 0 < len(cut.losses) < 150
    assert any("the fit was interrupted after" in reason for reason in cut.verdict.reasons)


# Threads and memory.


def test_a_file_that_is_read_beside_a_fit(b, tmp_path):
    guided, other = mean_field(b, slope(b)), mean_field(b, level(b))
    path = guided.fit(b.array(X), y=b.array(X), **OPTIONS).save(tmp_path / "file")
    calls = (
        lambda: number(b.vr.load(path, guided).draws(4)["a"]),
        lambda: other.fit(b.array(X), y=b.array(X), **OPTIONS).losses,
    )
    for one, alone in zip(in_threads(*calls), [call() for call in calls], strict=True):
        np.testing.assert_array_equal(one, alone)


def test_a_thread_that_clears_what_the_framework_keeps(b):
    def clear():
        import jax
        import pyro

        for _ in range(20):
            jax.clear_caches() if b.name == "numpyro" else pyro.clear_param_store()

    def fit():
        return mean_field(b, slope(b)).fit(b.array(X), y=b.array(X), **OPTIONS).losses

    np.testing.assert_array_equal(in_threads(fit, clear)[0], fit())


def test_a_fit_in_a_pool_of_threads(b):
    from concurrent.futures import ThreadPoolExecutor

    guided = mean_field(b, slope(b))

    def fit(size):
        return guided.fit(b.array(X[:size]), y=b.array(X[:size]), **OPTIONS).losses

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(fit, (4, 5, 4)))
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], fit(5))


def test_models_that_are_made_anew_are_forgotten(b, monkeypatch):
    engine = b.vr.Guided.backend.engine
    for name in ("programs", "calls", "_draws"):
        if isinstance(getattr(engine, name, None), Cache):
            monkeypatch.setattr(engine, name, Cache(1))
    models = []
    for _ in range(4):
        model = slope(b)
        models.append(weakref.ref(model))
        mean_field(b, model).fit(b.array(X), y=b.array(X), num_steps=2, num_particles=1, progress=False)
        del model
    gc.collect()
    assert sum(model() is not None for model in models) <= 2


def test_predictions_of_many_sizes_let_go(b, monkeypatch):
    """NumPyro kept 4 MB of each new size for good."""
    if b.name != "numpyro":
        pytest.skip("nothing is compiled")
    cleared = releases(monkeypatch, 3)
    posterior = mean_field(b, slope(b)).fit(b.array(X), y=b.array(X), num_steps=2, num_particles=1, progress=False)
    drawn = [number(posterior.predict(b.array(X[:n]), num_draws=2)["y"]) for n in (1, 2, 3, 4, 5, 1)]
    assert cleared
    np.testing.assert_array_equal(drawn[0], drawn[-1])


LARGE = ["Mixture()", "Sites({'*': vr.FullRank()})", "Sites({'z': vr.Flow()})", "Escalate(families=(vr.FullRank(),))"]


@pytest.mark.parametrize("family", LARGE)
def test_other_families_that_would_not_fit_into_memory(b, monkeypatch, family):
    def model():
        with b.host.plate("n", 2_000):
            b.host.sample("z", b.dist.Normal(b.array(np.zeros(2_000)), b.array(1.0)))

    monkeypatch.setattr(checks, "free_memory", lambda: 100_000)
    spec = eval(f"vr.{family}", {"vr": b.vr})
    words = (
        "2,000 coordinates would hold about .* GB are free: |covers at most 128 coordinates, and the latents have 2,000"
    )
    refused(b, words, lambda: b.vr.guide(spec)(model).fit(progress=False))


# Missing data, by the framework's own mark.


def test_rows_that_are_marked_as_missing(b):
    """mu | y ~ N(2/3, 1/3): the rows that are not there say nothing."""
    sample = __import__(b.name).sample
    y = np.array([0.5, 0.0, 1.5, 0.0])

    def model(y, seen):
        mu = b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("n", len(y)):
            sample("y", b.dist.Normal(mu, b.array(1.0)), obs=y, obs_mask=seen)

    guided = b.vr.guide(b.vr.FullRank())(model)
    mu = number(guided.fit(b.array(y), b.array(y) > 0.0, num_steps=400, progress=False).draws(4_000)["mu"])
    assert abs(mu.mean() - 2.0 / 3.0) < 0.05 and abs(mu.std() - 3.0**-0.5) < 0.05


def test_a_model_that_fails_on_data_with_nan_says_why(b):
    """It said that its density was not finite."""

    def model(y):
        b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(1.0)), nothing=y)

    words = r"holds 1 NaN.*, and model refuses them \(.*nothing"
    refused(b, words, lambda: mean_field(b, model).fit(np.array([1.0, np.nan]), **FEW))


# The command.

COMMANDS = {
    "a folder for a table": ("folder.csv", "--data folder.csv: cannot be read ("),
    "no such file": ("missing.json", "--data missing.json: "),
    "a number for a table": ("number.json", "expected a JSON object of keyword arguments"),
    "rows of two lengths": ("ragged.json", "--data ragged.json: cannot be read ("),
    "an image": ("image.npz", "--data image.npz: cannot be read ("),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_other_data_that_cannot_be_used(capfd, folder, tmp_path, what):  # noqa: F811
    file, words = COMMANDS[what]
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "number.json").write_text("3")
    (tmp_path / "ragged.json").write_text('{"x": [[1, 2], [3]], "y": [1, 2]}')
    (tmp_path / "image.npz").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    code, _, err = run(capfd, "fit", "own_slope:slope", "--data", file, "--backend", folder)
    lines = [line for line in err.splitlines() if "does not name the columns" not in line]
    assert code == 2 and len(lines) == 1 and words in lines[0] and len(lines[0]) <= 300


PROGRAMS = {
    "an error in its text": ("def slope(:\n", "cannot import 'own_other': SyntaxError"),
    "an error in it": (
        "raise RuntimeError('no table\\nat all')\n",
        "cannot import 'own_other': RuntimeError: no table",
    ),
    "an end": ("import sys\nsys.exit(3)\n", "cannot import 'own_other': SystemExit"),
    "another thing": ("slope = 3\n", "own_other:slope is no guided model: decorate it with vr.guide"),
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_programs_that_are_none(capfd, folder, tmp_path, what):  # noqa: F811
    text, words = PROGRAMS[what]
    (tmp_path / "own_other.py").write_text(text)
    __import__("sys").modules.pop("own_other", None)
    code, _, err = run(capfd, "fit", "own_other:slope", "--data", "right.npz", "--backend", folder)
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1 and len(err) <= 310


def test_a_table_with_a_mark_of_its_coding(capfd, folder, tmp_path):  # noqa: F811
    """As spreadsheets write it."""
    (tmp_path / "mark.csv").write_text("\ufeffx,y\r\n1,2\r\n2,4\r\n", encoding="utf-8")
    arguments = ("fit", "own_slope:slope", "--data", "mark.csv", "--backend", folder, "--num-steps", "20")
    code, out, err = run(capfd, *arguments)
    assert code == 0 and "slope: posterior" in out and not err


def test_two_columns_of_one_name_are_told(capfd, folder, tmp_path):  # noqa: F811
    (tmp_path / "twice.csv").write_text("x,x,y\n1,2,3\n2,3,4\n")
    code, _, err = run(capfd, "fit", "own_slope:slope", "--data", "twice.csv", "--backend", folder, "--num-steps", "20")
    assert code == 0 and err == "vi-reparam: own_slope:slope does not name the columns x.1\n"
