"""vr.SDE in Pyro: the same names, guides and refusals as in NumPyro."""

import dataclasses
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam

import vi_reparam_pyro as vr
from vi_reparam.programs.vector import SITE
from vi_reparam_pyro.host.params import first_parameters, using

SMALL = vr.SDE(num_steps=3, network=vr.MLP(width=8), warm_start=100)
Y = np.array([1.2, -0.3, 0.8, 2.1])


@pytest.fixture(autouse=True)
def double():
    held = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    yield
    torch.set_default_dtype(held)


def conjugate_model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def conjugate_evidence(y):
    covariance = np.eye(len(y)) + 4.0
    return -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2.0 * np.pi * covariance)[1])


def fit(family, num_steps=40, **options):
    guided = vr.guide(family, objective=vr.ELBO(32))(conjugate_model)
    return guided.fit(torch.as_tensor(Y), num_steps=num_steps, progress=False, **options)


def test_a_conjugate_model_and_its_posterior(tmp_path):
    posterior, truth = fit(SMALL), conjugate_evidence(Y)
    elbo, error = posterior.elbo(2_000)
    assert truth - 0.15 < elbo < truth + 3.0 * error
    evidence, error = posterior.log_evidence()
    assert abs(evidence - truth) < 3.0 * error + 1e-6
    draws = posterior.draws(2_000)["mu"]
    assert abs(float(draws.mean()) - Y.sum() / 4.25) < 0.08
    other, log_weights = posterior.draws(2_000, num_steps=24, with_weights=True)
    w = np.exp(log_weights - truth)
    assert abs(w.mean() - 1.0) < 3.0 * w.std() / len(w) ** 0.5
    assert other["mu"].shape == (2_000,)
    assert posterior.draws(5, solver=vr.Adams(order=2, corrector=3), tau=0.0)["mu"].shape == (5,)
    with pytest.raises(vr.ArgumentError, match="has no density"):
        posterior.draws(5, tau=0.0, with_weights=True)
    assert posterior.predict(num_draws=3)["y"].shape == (3, 4)
    posterior.save(tmp_path / "posterior.vr")
    guided = posterior.guided
    again = vr.load(tmp_path / "posterior.vr", guided)
    assert np.allclose(again.draws(20)["mu"], posterior.draws(20)["mu"])


def test_log_variance_fits():
    posterior = fit(dataclasses.replace(SMALL, gradient="log_variance"))
    elbo, error = posterior.elbo(2_000)
    assert conjugate_evidence(Y) - 0.15 < elbo < conjugate_evidence(Y) + 3.0 * error


def every_support(y):
    bias = pyro.param("bias", torch.tensor(0.3))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    part = pyro.sample("part", dist.Beta(2.0, 2.0))
    with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 4, dim=-1):
        z = pyro.sample("z", dist.Normal(bias, rate))
        pyro.sample("y", dist.Normal(z * part + share[0], 1.0), obs=y)


@pytest.mark.parametrize("base", ["diagonal", "low_rank", "full", "mixture"])
def test_the_start_is_the_base_on_every_support(base):
    family = dataclasses.replace(SMALL, base=base, num_steps=6, init_scale=0.3)
    guided, y = vr.guide(family)(every_support), torch.ones(2, 4)
    params = first_parameters(guided.model, guided.guide, (y,), {}, key=3).values()
    own = {name: params[f"sde_{name}"] for name in ("loc", "log_scale", "factor", "lower") if f"sde_{name}" in params}
    for _ in range(5):
        with using(params), torch.no_grad():
            sites = poutine.trace(guided.guide).get_trace(y).nodes
        site = sites[SITE]
        exact = family.base.log_prob(vr.ops, own, site["value"])
        assert site["value"].shape == (12,) and sites["z"]["value"].shape == (2, 4)
        assert np.isclose(float(site["fn"].log_prob(site["value"])), float(exact), rtol=1e-8)


def subsampled(y, size):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("n", len(y), subsample_size=size) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y[i])


def test_minibatches():
    y = torch.as_tensor(Y)
    with pytest.warns(UserWarning, match="'n' is subsampled, so the drift goes without"):
        vr.guide(SMALL)(subsampled).guide(y, 2)
    pyro.clear_param_store()
    full = vr.guide(dataclasses.replace(SMALL, network=vr.MLP(width=8, target="full")))(subsampled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = full.guide(y, 2)
    assert values["z"].shape == (2,)
    layout = full.base_guide.layout((y, 2), {})
    vector = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    slope = torch.func.grad(full.base_guide._target(layout, (y, 2), {}))(vector)
    assert np.allclose(slope[1:], (0.1 - vector[1:]) + (y - vector[1:]) / 0.25)


def test_objectives():
    def step(family, objective):
        pyro.clear_param_store()
        guided = vr.guide(family)(conjugate_model)
        return SVI(guided.model, guided.guide, Adam({"lr": 1e-3}), objective).step(torch.as_tensor(Y))

    assert np.isfinite(step(SMALL, Trace_ELBO())) and np.isfinite(step(SMALL, vr.ELBO(4)))
    plain = dataclasses.replace(SMALL, gradient="reparameterization")
    assert np.isfinite(step(plain, RenyiELBO(num_particles=2)))
    with pytest.raises(vr.GradientError, match="biased under RenyiELBO"):
        step(SMALL, RenyiELBO(num_particles=2))
    with pytest.raises(vr.GradientError, match="drops the density that a Delta carries"):
        step(plain, TraceMeanField_ELBO())
    with pytest.raises(vr.GradientError, match="score term that Trace_ELBO would drop"):
        step(dataclasses.replace(SMALL, gradient="log_variance"), Trace_ELBO())


def test_what_it_cannot_draw_is_refused():
    def discrete():
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(vr.SiteError, match="'k' is discrete"):
        vr.guide(SMALL)(discrete).fit(num_steps=2, progress=False)
    with pytest.raises(vr.ArgumentError, match="draws all sites together"):
        vr.guide(SMALL, estimators=vr.Implicit())(discrete)


def test_a_network_of_ones_own():
    class Drift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(2, 1)

        def forward(self, x, lam):
            return 0.1 * self.inner(torch.cat([x, lam.reshape(1)]))

    own = Drift()
    before = own.inner.weight.detach().clone()
    posterior = fit(dataclasses.replace(SMALL, network=own, warm_start=50), num_steps=30)
    assert np.isfinite(posterior.elbo(100)[0])
    assert not torch.allclose(before, own.inner.weight)
