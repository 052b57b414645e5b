"""The command line, as far as it goes without a fit."""

import io
import json
import sys

import numpy as np
import pytest

from vi_reparam.backend.registry import load_package
from vi_reparam.commands.app import main
from vi_reparam_models import names


def run(capfd, *arguments):
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    captured = capfd.readouterr()
    return caught.value.code, captured.out, captured.err


def test_models_lists_all_of_them(capfd):
    code, out, _ = run(capfd, "models")
    assert code == 0
    assert all(name in out for name in names())


def test_models_as_json(capfd):
    code, out, err = run(capfd, "models", "--json")
    found = json.loads(out)["models"]
    assert (code, err) == (0, "")
    assert [model["name"] for model in found] == names()
    assert found[names().index("digits")]["options"] == {"num_factors": 16, "batch_size": None}


def test_backends_as_json(capfd):
    code, out, _ = run(capfd, "backends", "--json")
    assert code == 0
    assert {"name": "numpyro", "usable": True, "note": ""} in json.loads(out)["backends"]


def test_the_version(capfd):
    import vi_reparam

    assert run(capfd, "--version") == (0, f"vi-reparam {vi_reparam.__version__}\n", "")


def test_help(capfd):
    code, out, _ = run(capfd, "--help")
    assert code == 0
    assert all(command in out for command in ("demo", "compare", "fit", "models", "backends"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nine_schools"], "unknown model 'nine_schools'"),
        (["fit", "digits", "--backend", "stan"], "unknown backend 'stan'"),
        (["fit", "digits", "--set", "factors=3"], "no option 'factors'"),
        (["fit", "digits", "--set", "num_factors"], "expected NAME=VALUE"),
        (["fit", "digits", "--num-steps", "0"], "--num-steps"),
        (["fit", "digits", "--data", "x.npz"], "has its own data"),
        (["fit"], "Missing argument"),
        (["fit", "digits", "--colour", "red"], "No such option"),
        (["paint"], "No such command"),
        (["compare", "digits", "--stages", "middle"], "expected start, fitted or start,fitted"),
        (["compare", "digits", "--estimator", "Rejection(boost=-1)"], "boost=-1"),
        (["compare", "digits", "--estimator", "__import__('os')"], "expected such as Implicit"),
        (["compare", "digits", "--estimator", "Rejection(boots=1)"], "unexpected keyword"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(capfd, arguments, message):
    code, out, err = run(capfd, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("vi-reparam: ")
    assert err.count("\n") == 1
    assert message in err


def _can_fit():
    return hasattr(load_package("numpyro"), "guide")


@pytest.mark.skipif(not _can_fit(), reason="the NumPyro backend has no guide")
@pytest.mark.parametrize(
    ("target", "extra", "message"),
    [
        ("no_such_module_xyz:m", [], "cannot import 'no_such_module_xyz'"),
        ("own_model:missing", [], "no attribute 'missing'"),
        ("own_model:plain", [], "decorate it with vr.guide"),
        ("own_model:guided", [], "does not take this data"),
        ("own_model:guided", ["--data", "absent.npz"], "cannot be read"),
        ("own_model:guided", ["--data", "list.json"], "JSON object"),
        ("own_model:guided", ["--data", "data.txt"], "ends in .npz, .json, .csv or .parquet"),
        ("own_model:guided", ["--set", "a=1"], "--data"),
    ],
)
def test_bad_models_of_ones_own(capfd, tmp_path, monkeypatch, target, extra, message):
    (tmp_path / "own_model.py").write_text(
        "def plain(y): ...\nclass Guided:\n    def model(self, y): ...\n    def fit(self): ...\nguided = Guided()\n"
    )
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "data.txt").write_text("1 2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    code, out, err = run(capfd, "fit", target, *extra)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


OWN = """
import vi_reparam_{backend} as vr
host = vr.host

@vr.guide(vr.MeanField())
def slope(x, y=None):
    a = host.sample("a", host.dist.Normal(host.array(0.0), host.array(5.0)))
    with host.plate("n", len(x)):
        host.sample("y", host.dist.Normal(a * x, host.array(1.0)), obs=y)
"""


@pytest.fixture(params=["numpyro", "pyro"])
def folder(request, tmp_path, monkeypatch):
    """A folder with a model of one's own and data of every kind, right and wrong."""
    pytest.importorskip({"numpyro": "jax", "pyro": "torch"}[request.param])
    (tmp_path / "own_slope.py").write_text(OWN.format(backend=request.param))
    x = np.array([1.0, 2.0, 3.0])
    np.savez(tmp_path / "right.npz", x=x, y=2 * x)
    whole = (tmp_path / "right.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "objects.npz", x=np.array([1, None], dtype=object), y=x)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(150_000_000, np.int8), y=x)
    (tmp_path / "right.json").write_text('{"x": [1, 2, 3], "y": [2.0, 4.0, 6.0]}')
    (tmp_path / "text.json").write_text('{"x": ["a", "b"], "y": [1, 2]}')
    (tmp_path / "null.json").write_text('{"x": [1, 2], "y": [null, 1.0]}')
    (tmp_path / "half.json").write_text('{"x": [1, 2')
    (tmp_path / "right.csv").write_text("name,x,y\na,1,2\nb,2,4\nc,3,6\n")
    (tmp_path / "missing.csv").write_text("x,y\n1,2\n2,\n3,6\n")
    (tmp_path / "text.csv").write_text("x,y\na,2\nb,4\n")
    (tmp_path / "other.csv").write_text("u,y\n1,2\n")
    (tmp_path / "ragged.csv").write_text("x,y\n1,2\n1,2,3,4\n")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "bytes.csv").write_bytes(bytes(range(128, 256)))
    (tmp_path / "wrong.parquet").write_bytes(b"PAR1 and no more")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "own_slope", raising=False)
    return request.param


@pytest.mark.parametrize("ending", ["npz", "json", "csv", "parquet"])
def test_data_of_every_kind(capfd, folder, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
        import pandas as pd

        pd.read_csv("right.csv").to_parquet("right.parquet")
    code, out, err = run(
        capfd, "fit", "own_slope:slope", "--data", f"right.{ending}", "--backend", folder, "--num-steps", "100"
    )
    assert code == 0 and "verdict" in out and "slope: posterior" in out
    told = "vi-reparam: own_slope:slope does not name the columns name\n"
    assert err.endswith(told) if ending in ("csv", "parquet") else not err


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("half.npz", "--data half.npz: cannot be read (File is not a zip file)"),
        ("empty.npz", "--data empty.npz: cannot be read"),
        ("objects.npz", "cannot be read (its member 'x.npy' holds objects)"),
        ("bomb.npz", "would expand to 150,"),
        ("text.json", "argument 'x' is an array of text"),
        ("null.json", "argument 'y' holds 1 NaN"),
        ("half.json", "cannot be read (Expecting"),
        ("missing.csv", "argument 'y' holds 1 NaN"),
        ("text.csv", "argument 'x' is an array of text"),
        ("other.csv", "does not take this data: missing a required argument: 'x'"),
        ("ragged.csv", "cannot be read (Error tokenizing data"),
        ("empty.csv", "cannot be read (No columns to parse"),
        ("bytes.csv", "cannot be read ("),
        ("wrong.parquet", "--data wrong.parquet: "),
        (".", "expected a file that ends in"),
    ],
)
def test_data_that_cannot_be_used_are_one_line_and_exit_code_two(capfd, folder, file, message):
    code, _, err = run(capfd, "fit", "own_slope:slope", "--data", file, "--backend", folder)
    lines = [line for line in err.splitlines() if "does not name the columns" not in line]
    assert code == 2 and len(lines) == 1 and message in lines[0] and len(lines[0]) <= 300


@pytest.mark.parametrize("name", names())
def test_a_ready_model_has_its_name(name):
    from vi_reparam_models import get

    vr = load_package("pyro")
    program = get(name).model(vr.host)
    assert program.__name__ == name == vr.guide(vr.MeanField())(program).name


def test_a_comparison_is_read_at_80_columns():
    """Names of estimators in whole words, and every number in one piece."""
    from rich.console import Console

    from vi_reparam.study.comparison import build
    from vi_reparam.study.table import shown
    from vi_reparam_models import get

    for name in ("dirichlet_multinomial", "gamma_poisson"):
        estimators = [repr(e) for e in get(name).estimators]
        rng, number = np.random.default_rng(0), ["shape[0]", "b"]
        moments = {
            (e, s): (_moments(rng), float(rng.lognormal(0.0, 5.0)), rng.normal(size=2))
            for e in estimators
            for s in ("start", "fitted")
        }
        table = build(
            estimators, ["start", "fitted"], number, moments, num_particles=8, reference="the mean", model=name
        )
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(table.table("shape[0]" if name == "dirichlet_multinomial" else None))
        text = console.export_text()
        assert max(len(line) for line in text.splitlines()) <= 80 and "…" not in text
        assert all(word in text for estimator in estimators for word in estimator.split())
        for (e, s), (_, seconds, _) in moments.items():
            assert f" {shown(1e3 * seconds)} " in text, (e, s)


def _moments(rng):
    from vi_reparam.fit.measure import Moments

    found = Moments(np.zeros(2))
    found.add(rng.lognormal(0.0, 3.0, size=(5, 2)))
    return found


def test_the_bar_says_that_it_compiles_and_then_how_far_it_is(capfd, folder):
    sys.path.insert(0, ".")
    own = __import__("own_slope")
    own.slope.fit([1.0, 2.0], y=[2.0, 4.0], num_steps=40)
    err = capfd.readouterr().err
    assert err.index("fit slope: compiling:   0%") < err.index("fit slope: 100%")
