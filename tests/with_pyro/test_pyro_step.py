"""A captured step is the step: the same losses, and a reason where there is none."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_reparam_pyro as vr
from vi_reparam_pyro.capture.capture import CannotCapture, Captured
from vi_reparam_pyro.engine import gradient as steps

Y = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])


def model(y):
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    share = pyro.sample("share", dist.Dirichlet(torch.tensor([0.5, 1.0, 2.0])))
    with pyro.plate("n", len(y)):
        z = pyro.sample("z", dist.Gamma(shape, 1.0))
        pyro.sample("y", dist.Poisson(z * (1.0 + share[0])), obs=y)


def losses(monkeypatch, estimators, *, worth, compiling=1e9, program=model, particles=3, num_steps=60, scripting=0):
    monkeypatch.setattr(steps, "WORTH_CAPTURING", worth)
    monkeypatch.setattr(steps, "WORTH_COMPILING", compiling)
    monkeypatch.setattr(steps, "WORTH_SCRIPTING", scripting)
    guided = vr.guide(vr.MeanField(), estimators=estimators, objective=vr.ELBO(particles))(program)
    posterior = guided.fit(Y, num_steps=num_steps, progress=False)
    return posterior.losses, posterior.record["steps"]


@pytest.mark.parametrize(
    ("estimators", "particles"),
    [
        pytest.param(vr.Implicit(), 3, marks=pytest.mark.slow),
        pytest.param(vr.Rejection(), 3, marks=pytest.mark.slow),
        (vr.Rejection(baseline="decaying_average"), 1),
        pytest.param(vr.ScoreFunction(), 3, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_a_captured_fit_is_the_fit(monkeypatch, estimators, particles):
    losses_of = functools.partial(losses, monkeypatch, estimators, particles=particles, num_steps=20)
    plain, how = losses_of(worth=10**9)
    assert how == "by the handlers: too few steps"
    captured, how = losses_of(worth=15)
    assert how == "captured"
    np.testing.assert_array_equal(captured, plain)
    by_python, _ = losses_of(worth=15, scripting=10**9)
    np.testing.assert_array_equal(by_python, plain)


@pytest.mark.slow
def test_a_compiled_fit_is_the_fit(monkeypatch):
    plain, _ = losses(monkeypatch, vr.Rejection(), worth=10**9)
    compiled, how = losses(monkeypatch, vr.Rejection(), worth=50, compiling=0.0)
    assert how.startswith(("compiled", "captured, not compiled"))
    np.testing.assert_allclose(compiled, plain, rtol=1e-8)


def test_what_is_not_captured_says_why(monkeypatch):
    def reads(y):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        rate = z if z > 0.5 else 2.0 * z
        pyro.sample("y", dist.Poisson(rate).expand([len(y)]).to_event(1), obs=y)

    def draws_noise_of_its_own(y):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("y", dist.Poisson(z + 1e-6 * torch.rand(())).expand([len(y)]).to_event(1), obs=y)

    def counts_its_calls(y, calls=[0.0]):  # noqa: B006
        calls[0] += 1.0
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("y", dist.Poisson(z + 1e-3 * calls[0]).expand([len(y)]).to_event(1), obs=y)

    for program, reason in (
        (reads, "reads a drawn value"),
        (draws_noise_of_its_own, "torch's global state"),
        (counts_its_calls, "another gradient"),
    ):
        _, how = losses(monkeypatch, None, worth=10, program=program, num_steps=15)
        assert how.startswith("by the handlers: ") and reason in how


def test_constants_are_folded_and_what_is_written_to_is_not():
    table = torch.arange(3.0)

    def function(x):
        scratch = torch.zeros(3).add_(x)  # a constant at birth only
        return (scratch + table.exp().sum(),)

    captured = Captured(function, (torch.ones(3),))
    for x in (torch.ones(3), torch.tensor([1.0, 2.0, 3.0])):
        torch.testing.assert_close(captured(x)[0], x + table.exp().sum())
    names = [str(node.target) for node in captured._graph.graph.nodes]
    assert not any("exp" in name for name in names)


def test_a_list_of_constants_is_folded_item_by_item():
    rows = torch.arange(6.0).reshape(2, 3)

    def function(x):
        slope, height = rows.unbind()
        return (x * slope + height,)

    captured = Captured(function, (torch.ones(3),))
    torch.testing.assert_close(captured(torch.full((3,), 2.0))[0], 2.0 * rows[0] + rows[1])


def test_a_value_read_in_python_cannot_be_captured():
    with pytest.raises(CannotCapture):
        Captured(lambda x: (x * float(x.sum()),), (torch.ones(2),))
    with pytest.raises(CannotCapture, match="global state"):
        Captured(lambda x: (x + torch.randn(2),), (torch.ones(2),))
