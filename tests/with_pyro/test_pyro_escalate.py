"""vr.Escalate in Pyro, and what it rests on: the search, several starts, fits that end by themselves."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import multivariate_normal

import vi_reparam_pyro as vr
from vi_reparam.fit import loop
from vi_reparam_pyro.engine.program import Program
from vi_reparam_pyro.ops.ops import TorchOps

RNG = np.random.default_rng(3)
X = RNG.normal(size=(30, 3)) @ np.array([[1.0, 0.9, 0.0], [0.0, 0.5, 0.7], [0.0, 0.0, 0.6]])
Y = X @ np.array([1.0, -2.0, 0.5]) + 0.5 * RNG.normal(size=30)
LOG_EVIDENCE = multivariate_normal(np.zeros(30), X @ X.T + 0.25 * np.eye(30)).logpdf(Y)


@vr.guide
def regression(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)


def funnel():
    s = pyro.sample("s", dist.Normal(0.0, torch.tensor(1.5)))
    pyro.sample("z", dist.Normal(torch.zeros(2), torch.exp(0.5 * s)).to_event(1))


def two_places(y):
    z = pyro.sample("z", dist.Normal(0.0, torch.tensor(3.0)))
    pyro.sample("y", dist.Normal(z.abs(), 0.2), obs=y)


def test_a_model_that_reads_a_drawn_value_takes_few_runs(monkeypatch):
    runs = []

    @vr.guide
    def reads(y):
        runs.append(1)
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        scale = 1.0 if float(z[0].detach()) > -50.0 else 2.0
        pyro.sample("y", dist.Normal(z, scale).to_event(1), obs=y)

    monkeypatch.setattr("vi_reparam.posterior.posterior.NUM_ONE_BY_ONE", 1_000)
    posterior = reads.fit(torch.tensor([1.0, -2.0]), progress=False)
    assert posterior.record["family"] == repr(vr.FullRank()) and posterior.verdict.grade == "good"
    assert len(runs) < 8_000  # all paths of the search would take several times as many
    exact = multivariate_normal(np.zeros(2), 2.0 * np.eye(2)).logpdf([1.0, -2.0])
    value, error = posterior.elbo()
    assert abs(value - exact) < 1e-6 + 4.0 * error
    assert len(posterior.log_weights) == 1_000


def test_it_stops_at_a_gaussian_that_is_the_posterior(tmp_path):
    posterior = regression.fit(X, Y, progress=False)
    (kept,) = posterior.tried
    assert kept["family"] == posterior.record["family"] == repr(vr.FullRank())
    assert "is good" in posterior.why and posterior.record["steps"] == "matched in closed form"
    elbo, error = posterior.elbo()
    assert abs(elbo - LOG_EVIDENCE) < 4.0 * error + 2e-3
    assert "* FullRank" in str(posterior.summary()) and posterior.verdict.grade == "good"

    posterior.save(tmp_path / "posterior.vr")
    again = vr.load(tmp_path / "posterior.vr", vr.guide(regression.model))
    assert again.tried == posterior.tried and again.why == posterior.why
    np.testing.assert_allclose(again.elbo(), posterior.elbo())
    np.testing.assert_allclose(again.draws(20)["w"], posterior.draws(20)["w"])


@pytest.mark.slow
def test_it_goes_on_to_a_flow_where_a_gaussian_is_not_enough():
    posterior = vr.guide(vr.Escalate((vr.FullRank(), vr.Flow())))(funnel).fit(progress=False)
    gaussian, flow = posterior.tried
    assert posterior.record["family"] == flow["family"] and flow["family"].startswith("Flow(")
    assert flow["elbo"] > gaussian["elbo"] + 0.1  # the evidence is 1
    elbo, error = posterior.elbo()
    assert -0.05 - 4.0 * error < elbo < 4.0 * error


def test_what_leaves_only_the_mean_field():
    @vr.guide(estimators=vr.Rejection())
    def counts(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, torch.tensor(0.5)))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    posterior = counts.fit(np.array([3.0, 5.0, 1.0]), num_steps=60, progress=False)
    assert [a["family"] for a in posterior.tried] == [repr(vr.MeanField())]
    assert posterior.record["estimators"] == {"rate": "Rejection(boost=3)"}


def test_its_guide_for_pyros_own_loop_is_the_mean_fields():
    guided, optimizer = vr.guide(regression.model), pyro.optim.Adam({"lr": 0.01})
    svi = pyro.infer.SVI(guided.model, guided.guide, optimizer, guided.objective)
    assert np.isfinite(svi.step(torch.as_tensor(X), torch.as_tensor(Y)))
    assert {name.partition("/")[2] for name in pyro.get_param_store()} == {"w_loc", "w_scale"}


def test_a_model_that_cannot_run_says_so():
    with pytest.raises(vr.ArgumentError, match="could not run on arguments"):
        regression.fit("x", Y, progress=False)


def test_networks_hold_the_weights_of_the_family_that_was_kept():
    net = torch.nn.Linear(3, 1)

    @vr.guide(vr.Escalate((vr.MeanField(), vr.FullRank())))
    def model(x, y):
        pyro.module("net", net)
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ w + net(x)[:, 0], 0.5).to_event(1), obs=y)

    posterior = model.fit(X, Y, num_steps=30, progress=False)
    assert len(posterior.tried) == 2
    torch.testing.assert_close(net.weight.detach(), posterior.params["net$$$weight"])


def test_two_places_are_fitted_apart_and_the_other_is_a_rival():
    guided = vr.guide(vr.FullRank())(two_places)
    posterior = guided.fit(torch.tensor(2.0), num_steps=150, progress=False)
    assert len(posterior.record["rivals"]) == 1 and posterior.record["rivals"][0] < 0.1
    assert "another mode was found" in str(posterior.verdict)
    assert abs(abs(float(posterior.draws(500)["z"].mean())) - 2.0) < 0.1


@pytest.mark.parametrize("together", [True, False])
def test_the_search_finds_a_scale_where_there_is_no_mode(monkeypatch, together):
    if not together:
        monkeypatch.setattr(TorchOps, "many", _refuse)
    guided = vr.guide(vr.FullRank())(funnel)
    data = guided.backend.engine.data((), {})
    frame = guided.base_guide.searcher.run(data, 5)[0].frame
    assert frame.center.shape == (3,) and frame.root.shape == (3, 3)
    assert abs(float(frame.center[0])) < 3.0 and bool((frame.root.diagonal() > 0.3).all())


def _refuse(*_):
    raise RuntimeError("it reads a value in Python")


def test_the_search_says_where_it_looked():
    def broken():
        z = pyro.sample("z", dist.Normal(0.0, torch.tensor(1.0)))
        pyro.factor("broken", torch.log(-1.0 - z * z))

    with pytest.raises(vr.NonFiniteError, match="not finite at any of 32 starts"):
        vr.guide(vr.FullRank())(broken).fit(progress=False)


class Clock:
    """Every look at it is far from the last, so that each block is saved."""

    now = 0.0

    def perf_counter(self):
        self.now += 100.0
        return self.now


@pytest.mark.parametrize("after", [pytest.param(300, marks=pytest.mark.slow), 850])
def test_a_checkpoint_of_a_fit_that_ends_by_itself_goes_on(tmp_path, monkeypatch, after):
    guided, data = vr.guide(vr.FullRank())(regression.model), (X, Y)
    whole = guided.fit(*data, progress=False)
    advance = Program.advance

    class CutError(Exception):
        pass

    def cut(self, state, steps):
        if state.step >= after:
            raise CutError
        return advance(self, state, steps)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", Clock())
        patched.setattr(Program, "advance", cut)
        with pytest.raises(CutError):
            guided.fit(*data, progress=False, checkpoint=tmp_path / "fit.npz")
    resumed = guided.fit(*data, progress=False, checkpoint=tmp_path / "fit.npz")
    np.testing.assert_allclose(resumed.losses, whole.losses, rtol=1e-9)
    torch.testing.assert_close(resumed.params["gaussian_loc"], whole.params["gaussian_loc"])
    finished = guided.fit(*data, progress=False, checkpoint=tmp_path / "fit.npz")
    torch.testing.assert_close(finished.params["gaussian_loc"], whole.params["gaussian_loc"])


def test_a_mean_field_ends_by_itself():
    posterior = vr.guide(vr.MeanField())(regression.model).fit(X, Y, progress=False)
    assert posterior.record["num_steps"] < vr.MeanField().max_steps and posterior.record["converged"]
    assert LOG_EVIDENCE - 1.5 < posterior.elbo()[0] < LOG_EVIDENCE
