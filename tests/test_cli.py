"""The command line, as far as it goes without a fit."""

import json
import sys

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
        ("own_model:guided", ["--data", "data.txt"], "ends in .npz or .json"),
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
