"""compare_estimators and the command line on Pyro."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_reparam_pyro as vr
from vi_reparam.commands.app import main


def kl_programs(start=1.5, n=1):
    def model():
        with pyro.plate("n", n):
            pyro.sample("z", dist.Gamma(torch.tensor(3.0), 1.0))

    def guide():
        a = pyro.param("a", torch.full((n,), start), constraint=dist.constraints.positive)
        with pyro.plate("n", n):
            pyro.sample("z", dist.Gamma(a, torch.tensor(1.0)))

    return vr.Guided(model, guide)


@pytest.mark.parametrize("lanes", [None, pytest.param(False, marks=pytest.mark.slow)])
def test_all_estimators_have_the_exact_mean_and_the_expected_order_of_variance(lanes):
    guided = kl_programs()
    guided.objective = vr.ELBO(8, vectorize_particles=lanes)
    estimators = [
        vr.Implicit(),
        vr.Rejection(boost=1),
        vr.Rejection(boost=1, baseline=None),
        vr.ScoreFunction(baseline=None),
    ]
    exact = -1.5 * float(torch.special.polygamma(1, torch.tensor(1.5)))
    comparison = vr.compare_estimators(
        guided,
        estimators=estimators,
        num_replicates=2_000 if lanes is None else 30,
        num_particles=4,
        stages=("start",),
        reference={"a": torch.tensor([exact])},
    )
    data = comparison.dataset
    assert list(data.parameter.values) == ["a[0]"]
    assert float(abs(data.z).max()) < 4.0
    if lanes is None:
        variance = data.variance.values[:, 0, 0]
        assert max(variance[:3]) < variance[3]
    assert float(data.seconds.min()) > 0.0


def test_both_stages_and_a_measured_reference():
    guided = kl_programs(2.0)
    comparison = vr.compare_estimators(
        guided, estimators=[vr.Implicit(), vr.ScoreFunction()], num_replicates=300, num_particles=4, fit_steps=100
    )
    assert list(comparison.dataset.stage.values) == ["start", "fitted"]
    assert float(abs(comparison.dataset.z).max()) < 4.5
    assert "Auto" in comparison.dataset.attrs["reference"]
    assert len(comparison.to_dataframe()) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": []}, "expected a list"),
        ({"estimators": [vr.Implicit(), vr.Implicit()]}, "are equal"),
        ({"num_replicates": 1}, "num_replicates=1"),
        ({"stages": ("middle",)}, "expected 'start'"),
        ({"estimators": [vr.Pathwise()]}, "applies to no site"),
    ],
)
def test_bad_requests(options, message):
    options = {"estimators": [vr.Implicit()], "num_replicates": 4, "stages": ("start",), **options}
    with pytest.raises(vr.ArgumentError, match=message):
        vr.compare_estimators(kl_programs(), **options)
    with pytest.raises(vr.ArgumentError, match="has no guide"):
        vr.compare_estimators(lambda: None, estimators=[vr.Implicit()])


def test_estimators_serve_only_the_sites_that_they_apply_to():
    def mixed():
        pyro.sample("g", dist.Gamma(torch.tensor(3.0), 1.0))
        pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))

    found = vr.compare_estimators(
        vr.guide(mixed), estimators=[vr.Rejection(), vr.Implicit()], num_replicates=20, stages=("start",)
    )
    at_x = found.dataset.sel(parameter="x_loc")
    # where neither applies both are Auto, under common random numbers: equal
    assert float(at_x["mean"][0, 0]) == pytest.approx(float(at_x["mean"][1, 0]))


def test_random():
    a = torch.tensor([0.001, 1.5, 30.0], requires_grad=True)
    generator = torch.Generator().manual_seed(1)
    logs = vr.random.log_gamma(a, (4_000, 3), generator=generator)
    assert bool(torch.isfinite(logs).all())
    (grad,) = torch.autograd.grad(logs.sum() / 4_000, a)
    exact = torch.special.polygamma(1, a.detach())  # d E[log z] / da
    torch.testing.assert_close(grad, exact, rtol=0.1, atol=0.0)
    again = vr.random.log_gamma(a, (4_000, 3), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logs, again, rtol=0.0, atol=0.0)
    assert vr.random.beta(torch.tensor([2.0, 3.0]), torch.tensor(1.0)).shape == (2,)
    x = vr.random.dirichlet(torch.ones(3), (5,))
    torch.testing.assert_close(x.sum(-1), torch.ones(5))
    north = torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(vr.random.von_mises_fisher(north, torch.tensor(9.0), (5,)).norm(dim=-1), torch.ones(5))
    with pytest.raises(vr.ArgumentError, match="does not broadcast"):
        vr.random.gamma(torch.ones(3), (2,))


def run(capfd, *arguments):
    torch.set_default_dtype(torch.float32)
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    captured = capfd.readouterr()
    return caught.value.code, captured.out, captured.err


def test_fit_on_the_command_line(capfd, tmp_path):
    arguments = ("--num-steps", "600", "--num-particles", "4", "--json", "--out", str(tmp_path))
    code, out, _ = run(capfd, "fit", "gamma_poisson", "--backend", "pyro", *arguments)
    found = json.loads(out)
    assert code == 0
    assert found["backend"] == "pyro"
    assert found["posterior"]["lam"]["mean"] == pytest.approx(123.0 / 201.0, rel=0.03)
    assert math.isfinite(found["elbo"]["value"])
    assert {path.suffix for path in tmp_path.iterdir()} == {".nc", ".png", ".html"}


def test_compare_on_the_command_line(capfd):
    arguments = ("--replicates", "20", "--stages", "start", "--num-particles", "2", "--json")
    code, out, _ = run(capfd, "compare", "eight_schools", "--backend", "pyro", *arguments)
    assert code == 0
    assert {row["estimator"] for row in json.loads(out)["estimators"]} == {
        "Implicit()",
        "Rejection(boost=3)",
        "MeasureValued()",
        "ScoreFunction()",
    }
