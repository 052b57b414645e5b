"""Fits that are interrupted, checkpoints that others write to, files that are damaged: in both backends."""

import errno
import importlib
import io
import json
import os
import pickle
import signal
import threading

import numpy as np
import pytest
from test_both_backends import mean_field, number

from vi_reparam.fit import checkpoints, loop
from vi_reparam.posterior import npz

Y = np.array([0.5, 1.5, -0.2])


def mean(b, prior=10.0):
    def model(y=None):
        mu = b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(prior)))
        with b.host.plate("n", 3):
            b.host.sample("y", b.dist.Normal(mu, b.array(1.0)), obs=y)

    return model


def one_line(error):
    return len(str(error.value)) <= 300 and "\n" not in str(error.value)


# Ctrl-C.


@pytest.fixture
def press(monkeypatch):
    """Presses Ctrl-C whenever so many steps of a fit are done."""

    def at(*presses):
        class Bar(loop.tqdm):
            done, left = 0, list(presses)

            def update(self, n=1):
                Bar.done += n
                while Bar.left and Bar.done >= Bar.left[0]:
                    Bar.left.pop(0)
                    signal.raise_signal(signal.SIGINT)
                return super().update(n)

        monkeypatch.setattr(loop, "tqdm", Bar)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs in the background ignores it
    yield at
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


STEPS = {"num_steps": 150, "num_particles": 1, "progress": False}


@pytest.mark.parametrize("family", ["MeanField", "FullRank"])
def test_ctrl_c_gives_what_was_fitted_and_the_checkpoint_goes_on(b, press, tmp_path, family):
    guided = b.vr.guide(getattr(b.vr, family)())(mean(b))
    whole = guided.fit(b.array(Y), **STEPS)
    press(1)
    cut = guided.fit(b.array(Y), checkpoint=tmp_path / "fit", **STEPS)
    assert 0 < len(cut.losses) < 150
    np.testing.assert_array_equal(cut.losses, whole.losses[: len(cut.losses)])
    assert cut.verdict.grade != "good"
    words = f"the fit was interrupted after {len(cut.losses)} of 150 steps: fit again"
    assert any(reason.startswith(words) for reason in cut.verdict.reasons)
    rest = guided.fit(b.array(Y), checkpoint=tmp_path / "fit", **STEPS)
    np.testing.assert_array_equal(rest.losses, whole.losses)
    for name, value in whole.params.items():
        np.testing.assert_array_equal(number(rest.params[name]), number(value))
    assert not any("interrupted" in reason for reason in rest.verdict.reasons)


def test_ctrl_c_twice_ends_at_once(b, press):
    press(1, 1)
    with pytest.raises(KeyboardInterrupt):
        mean_field(b, mean(b)).fit(b.array(Y), **STEPS)


def test_an_interruption_within_a_step_gives_the_state_before_it(b, monkeypatch):
    """As where a debugger or another handler raises it."""
    guided = mean_field(b, mean(b))
    whole = guided.fit(b.array(Y), **STEPS)
    program = importlib.import_module(f"vi_reparam_{b.name}.engine.program").Program
    advance, calls = program.advance, []

    def interrupted(self, state, steps):
        calls.append(steps)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return advance(self, state, steps)

    monkeypatch.setattr(program, "advance", interrupted)
    cut = guided.fit(b.array(Y), **STEPS)
    np.testing.assert_array_equal(cut.losses, whole.losses[: len(cut.losses)])
    assert len(cut.losses) == calls[0] and "interrupted" in cut.verdict.reasons[-1] + cut.verdict.reasons[0]


def test_an_interruption_before_the_first_step_is_one(b):
    def model(y=None):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mean_field(b, model).fit(b.array(Y), **STEPS)


def test_a_ladder_that_is_interrupted_keeps_the_best(b, press, few_weights):
    ladder = b.vr.Escalate(families=(b.vr.MeanField(), b.vr.FullRank()))

    def model(y):
        first, second = (b.host.sample(name, b.dist.Normal(b.array(0.0), b.array(1.0))) for name in ("first", "second"))
        b.host.sample("y", b.dist.Normal(first + second, b.array(0.1)), obs=y)

    press(151)  # in the second family
    posterior = b.vr.guide(ladder)(model).fit(b.array(1.0), num_steps=150, progress=False)
    assert posterior.verdict.grade != "good"
    assert any("interrupted after" in reason and "FullRank()" in reason for reason in posterior.verdict.reasons)
    assert "interrupted" in posterior.why


def test_a_fit_in_another_thread_needs_no_signals(b):
    found = []
    thread = threading.Thread(target=lambda: found.append(mean_field(b, mean(b)).fit(b.array(Y), **STEPS)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0].losses, mean_field(b, mean(b)).fit(b.array(Y), **STEPS).losses)


# Checkpoints that others write to, and disks that are full.

FEW = {"num_steps": 3, "num_particles": 1, "progress": False}


def test_another_fit_that_writes_to_the_file_is_told(b, tmp_path, monkeypatch):
    """Both began before there was a file, in two processes; the one that comes later leaves the other's state."""
    file, load = tmp_path / "fit", checkpoints.load
    first = mean_field(b, mean(b)).fit(b.array(Y), checkpoint=file, **FEW)
    monkeypatch.setattr(checkpoints, "load", lambda *_: None)
    with pytest.warns(UserWarning, match=r"could not be saved, and the fit goes on: another fit \(its data") as told:
        second = mean_field(b, mean(b)).fit(b.array(Y + 1.0), checkpoint=file, **FEW)
    assert len(second.losses) == 3 and len(str(told[0].message)) <= 300
    monkeypatch.setattr(checkpoints, "load", load)
    np.testing.assert_array_equal(mean_field(b, mean(b)).fit(b.array(Y), checkpoint=file, **FEW).losses, first.losses)


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, seen = tmp_path / "file", set()
    npz.write(path, {"a": np.zeros(100_000), "b": np.zeros(3)})

    def work(value):
        for _ in range(10):
            npz.write(path, {"a": np.full(100_000, value), "b": np.full(3, value)})

    threads = [threading.Thread(target=work, args=(float(k),)) for k in (1, 2, 3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = npz.read(path)
        seen.add(float(found["b"][0]))
        assert (found["a"] == found["b"][0]).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and seen


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_is_full_costs_a_warning_and_not_the_fit(b, tmp_path, monkeypatch, code):
    def full(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(npz.np, "savez", full)
    with pytest.warns(UserWarning, match=f"could not be saved, and the fit goes on: .*{os.strerror(code)}"):
        posterior = mean_field(b, mean(b)).fit(b.array(Y), checkpoint=tmp_path / "fit", **FEW)
    assert len(posterior.losses) == 3 and not list(tmp_path.iterdir())
    with pytest.raises(b.vr.ArgumentError, match=f"cannot write .*{os.strerror(code)}") as caught:
        posterior.save(tmp_path / "posterior")
    assert one_line(caught) and not list(tmp_path.iterdir())


# Damaged files.


@pytest.fixture
def files(b, tmp_path):
    """A checkpoint and a posterior: for each its path, what is in it, and what reads it, to numbers."""
    guided = mean_field(b, mean(b))
    paths = {"checkpoint": tmp_path / "fit", "posterior": tmp_path / "posterior"}
    guided.fit(b.array(Y), checkpoint=paths["checkpoint"], **FEW).save(paths["posterior"])

    def loaded():
        found = b.vr.load(paths["posterior"], guided)
        return np.append(found.losses, number(found.draws(2)["mu"]))

    reads = {
        "checkpoint": lambda: guided.fit(b.array(Y), checkpoint=paths["checkpoint"], **FEW).losses,
        "posterior": loaded,
    }
    return {kind: (path, path.read_bytes(), reads[kind]) for kind, path in paths.items()}


def damaged(content, rng):
    """Cut short, with bits flipped, overwritten, or without a part."""
    kind, data = rng.integers(4), bytearray(content)
    first, last = sorted(rng.integers(0, len(data), 2))
    if kind == 0:
        return bytes(data[:first])
    if kind == 1:
        for place in rng.integers(0, len(data), rng.integers(1, 20)):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        data[first : first + 100] = rng.bytes(100)
    else:
        del data[first:last]
    return bytes(data)


def check(b, what, content, before):
    """A file of this content is read as what it was (None: it may be anything), or refused in one line."""
    path, _, read = what
    path.write_bytes(content)
    try:
        found = read()
    except b.vr.ViReparamError as error:
        said = str(error)
    else:
        if before is not None:
            np.testing.assert_array_equal(found, before)
        return "read"
    assert len(said) <= 300 and "\n" not in said
    return "refused"


@pytest.mark.parametrize("count", [10, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["checkpoint", "posterior"])
def test_a_damaged_file_is_refused_or_right(b, files, kind, count):
    rng, before = np.random.default_rng(0), files[kind][2]()
    found = [check(b, files[kind], damaged(files[kind][1], rng), before) for _ in range(count)]
    assert found.count("refused") > count // 2
    assert check(b, files[kind], files[kind][1], before) == "read"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def strange(content):
    """Files that are whole, and not what they should be: by name."""
    evil = np.empty(1, dtype=object)
    evil[0] = Evil()
    head, about = head_of(content), about_of(content)
    yield "text", b"hello"
    yield "empty", b""
    yield "a pickle", pickle.dumps(Evil())
    yield "an array", saved(np.save, np.ones(3))
    yield "a member that is a pickle", packed(content, losses=evil)
    yield "a member missing", packed(content, losses=None)
    yield "another member", packed(content, more=np.ones(3))
    yield "other numbers", packed(content, losses=content_of(content)["losses"] + 1.0)
    yield "NaN", packed(content, losses=content_of(content)["losses"] * np.nan)
    yield "text for numbers", packed(content, losses=np.array(["a", "b", "c"]))
    for value in (
        "x",
        "[1]",
        "{}",
        "null",
        json.dumps({**about, "format": 3}),
        json.dumps({"format": about["format"]}),
    ):
        yield f"about itself {value[:9]}", packed(content, **{head: np.array(value)})
    for name in about:
        for value in (None, "x", -1):
            if value != about[name]:
                yield f"{name} {value}", packed(content, **{head: np.array(json.dumps({**about, name: value}))})


def head_of(content):
    return "header" if b"header.npy" in content else "metadata"


def about_of(content):
    return json.loads(str(content_of(content)[head_of(content)]))


def content_of(content):

    with np.load(io.BytesIO(content)) as file:
        return dict(file)


def packed(content, **changes):
    members = {**content_of(content), **changes}
    return saved(np.savez, **{name: value for name, value in members.items() if value is not None})


def saved(save, *arrays, **named):

    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["checkpoint", "posterior"])
def test_a_strange_file_is_refused_in_one_line_and_runs_nothing(b, files, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files[kind][2]()
    for name, content in strange(files[kind][1]):
        assert check(b, files[kind], content, before) == "refused", name
    monkeypatch.setattr(npz, "digest", lambda *_: about_of(files[kind][1])["digest"])  # who changes it may change that
    for _, content in strange(files[kind][1]):
        check(b, files[kind], content, None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["checkpoint", "posterior"])
def test_a_file_does_not_expand_without_bound(b, files, kind):
    """A megabyte of zeros, that are a gigabyte; and a member that says it is larger than it is."""
    zeros = saved(np.savez_compressed, **{**content_of(files[kind][1]), "losses": np.zeros(120_000_000, np.int8)})
    assert len(zeros) < 1_000_000
    assert check(b, files[kind], zeros, None) == "refused"
    with pytest.raises(b.vr.ArgumentError, match=r"damaged|not a vi-reparam checkpoint"):
        files[kind][2]()
    with pytest.raises(ValueError, match="would expand to 120,"):
        npz.read(files[kind][0])
    small = saved(np.savez, a=np.ones(4)).replace(b"(4,)", b"(9,)")
    files[kind][0].write_bytes(small)
    with pytest.raises(ValueError, match=r"CRC|not of the size"):
        npz.read(files[kind][0])


# Posteriors in files.


def test_a_posterior_without_its_data(b, tmp_path):
    guided, y = mean_field(b, mean(b)), np.array([0.123456789, 1.5, -0.2])
    posterior = guided.fit(b.array(y), **FEW)
    path = posterior.save(tmp_path / "file", data=False)
    assert y.tobytes() not in path.read_bytes() and y[:1].tobytes() not in path.read_bytes()
    loaded = b.vr.load(path, guided, b.array(y))
    np.testing.assert_array_equal(number(loaded.draws(5)["mu"]), number(posterior.draws(5)["mu"]))
    assert loaded.elbo(50) == posterior.elbo(50)
    with pytest.raises(b.vr.ArgumentError, match=r"was saved without its data: give those of the fit") as caught:
        b.vr.load(path, guided)
    assert one_line(caught)
    with pytest.raises(b.vr.ArgumentError, match=r"numbers at site 'y' are others") as caught:
        b.vr.load(path, guided, b.array(y + 1.0))
    assert one_line(caught)
    with pytest.raises(b.vr.ArgumentError, match="was saved with all that it needs: give no data"):
        b.vr.load(posterior.save(path), guided, b.array(y))


@pytest.mark.parametrize("other", ["prior", "family of the prior", "plate"])
def test_a_posterior_of_another_program_is_refused(b, tmp_path, other):
    path = mean_field(b, mean(b)).fit(b.array(Y), **FEW).save(tmp_path / "file")

    def model(y=None):
        kind = b.dist.Laplace if other == "family of the prior" else b.dist.Normal
        mu = b.host.sample("mu", kind(b.array(0.0), b.array(3.0 if other == "prior" else 10.0)))
        with b.host.plate("m" if other == "plate" else "n", 3):
            b.host.sample("y", b.dist.Normal(mu, b.array(1.0)), obs=y)

    with pytest.raises(b.vr.ArgumentError, match=r"another 'model' than the given") as caught:
        b.vr.load(path, mean_field(b, model))
    assert one_line(caught)


def test_a_posterior_that_was_used_is_pickled(b):
    cloudpickle = pytest.importorskip("cloudpickle")

    posterior = mean_field(b, mean(b)).fit(b.array(Y), **FEW)
    used = posterior.verdict.line, number(posterior.predict(num_draws=3)["y"]), posterior.summary(), posterior.elbo(20)
    again = pickle.loads(cloudpickle.dumps(posterior))
    np.testing.assert_array_equal(number(again.predict(num_draws=3)["y"]), used[1])
    assert again.elbo(20) == used[3]


# Point guides beside others.


def test_a_point_beside_other_parts_is_named_and_never_good(b, few_weights):
    def model():
        b.host.sample("mu", b.dist.Normal(b.array(0.0), 1.0))
        b.host.sample("tau", b.dist.Normal(b.array(0.0), 1.0))

    def guide():
        b.host.sample("mu", b.dist.Normal(b.host.param("loc", b.array(0.3)), 1.0))
        noise = b.host.sample("noise", b.dist.Normal(b.array(0.0), 1.0), infer={"is_auxiliary": True})
        tau = b.host.param("tau_at", b.array(0.5))
        b.host.sample("tau", b.dist.Delta(tau if points else tau + noise))

    for points in (True, False):
        guided = b.vr.Guided(model, guide)
        posterior = b.vr.Posterior(guided, guided.start(), args=(), kwargs={}, losses=[], seed=0, record={})
        named = "the guide is a point estimate at 'tau': " in str(posterior.verdict)
        assert named is points and (posterior.verdict.grade == "poor" or not points)
