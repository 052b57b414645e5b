"""vr.Posterior on Pyro: figures against closed forms, predictions, ArviZ, files."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_reparam_pyro as vr

COUNTS = np.array([3.0, 5.0, 1.0, 4.0, 2.0, 6.0, 3.0, 2.0])
A, B = 2.0 + COUNTS.sum(), 0.5 + len(COUNTS)


def counts_model(y=None, num=8):
    rate = pyro.sample("rate", dist.Gamma(2.0, torch.tensor(0.5)))
    pyro.deterministic("log_rate", torch.log(rate))
    pyro.factor("flat", torch.zeros(()))
    with pyro.plate("days", num if y is None else len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def counts_guide(y=None, num=8):
    a = pyro.param("a", torch.tensor(1.0), constraint=dist.constraints.positive)
    b = pyro.param("b", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("rate", dist.Gamma(a, b))


GUIDED = vr.Guided(counts_model, counts_guide, estimators=vr.Implicit())


def make(guided=GUIDED, params=None, *args, **kwargs):
    params = {"a": torch.tensor(A), "b": torch.tensor(B)} if params is None else params
    losses = np.random.default_rng(0).normal(20.0, 1.0, 2_000)
    args = args or ((COUNTS,) if not kwargs else ())
    return vr.Posterior(guided, params, args=args, kwargs=kwargs, losses=losses, seed=0, record={"num_steps": 2_000})


def log_evidence():
    value = 2.0 * math.log(0.5) - math.lgamma(2.0) + math.lgamma(A) - A * math.log(B)
    return value - sum(math.lgamma(y + 1.0) for y in COUNTS)


@pytest.fixture
def conjugate():
    return make()


def test_an_exact_guide_has_the_log_evidence_as_elbo(conjugate):
    for value, error in (conjugate.elbo(), conjugate.elbo(500, seed=3), conjugate.log_evidence()):
        assert value == pytest.approx(log_evidence(), abs=1e-9)
        assert error < 1e-9
    assert conjugate.khat == 0.0
    assert conjugate.verdict.grade == "good"
    assert "verdict: good" in str(conjugate.summary())


def test_importance_weights_correct_a_guide_that_is_off():
    posterior = make(GUIDED, {"a": torch.tensor(0.8 * A), "b": torch.tensor(0.85 * B)})
    plain, plain_error = posterior.expectation(lambda z: z["rate"], num_draws=8_000)
    mean, error = posterior.expectation(lambda z: z["rate"], num_draws=8_000, weighted=True)
    assert abs(plain - A / B) > 5 * plain_error
    assert abs(mean - A / B) < 4 * error
    value, error = posterior.log_evidence()
    assert abs(value - log_evidence()) < 4 * error
    assert posterior.elbo()[0] < value
    with pytest.raises(vr.ArgumentError, match="reads values in Python"):
        posterior.expectation(lambda z: float(z["rate"]))


def test_draws_depend_on_seed_and_index_alone(conjugate):
    draws = conjugate.draws(200, seed=1)
    assert set(draws) == {"rate", "log_rate"}
    torch.testing.assert_close(draws["rate"].log(), draws["log_rate"])
    torch.testing.assert_close(draws["rate"][:50], conjugate.draws(50, seed=1)["rate"], rtol=0.0, atol=0.0)
    assert not torch.equal(draws["rate"], conjugate.draws(200, seed=2)["rate"])
    assert len(set(conjugate.draws(1_200)["rate"].tolist())) == 1_200  # chunks draw their own noise
    before = torch.get_rng_state()
    conjugate.draws(5)
    assert torch.equal(before, torch.get_rng_state())
    for bad in (0, 2.5, True):
        with pytest.raises(vr.ArgumentError, match="num_draws"):
            conjugate.draws(bad)
    with pytest.raises(vr.ArgumentError, match="seed"):
        conjugate.draws(10, seed="x")


def test_predictions(conjugate):
    fresh = conjugate.predict(num_draws=2_000)["y"]
    assert fresh.shape == (2_000, 8)
    assert float(fresh.mean()) == pytest.approx(A / B, rel=0.05)
    assert conjugate.predict(num=3, num_draws=10)["y"].shape == (10, 3)
    rates = conjugate.predict(num_draws=10, return_sites="log_rate")
    assert set(rates) == {"log_rate"}
    assert set(conjugate.predict(num_draws=10, return_sites=["y", "rate"])) == {"y", "rate"}
    with pytest.raises(vr.ArgumentError, match="return_sites names z"):
        conjugate.predict(return_sites=["z"])


def test_new_groups_come_from_the_model():
    def model(n, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, torch.tensor(1.0)))
        with pyro.plate("groups", n):
            z = pyro.sample("z", dist.Normal(mu, 0.1))
            pyro.sample("y", dist.HalfCauchy(torch.exp(z)), obs=y)

    def guide(n, y=None):
        pyro.sample("mu", dist.Normal(pyro.param("m", torch.tensor(2.0)), 0.01))
        with pyro.plate("groups", n):
            pyro.sample("z", dist.Normal(pyro.param("at", torch.zeros(4), event_dim=0), 0.01))

    params = {"m": torch.tensor(2.0), "at": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    posterior = make(vr.Guided(model, guide), params, 4, y=torch.ones(4))
    same = posterior.predict(4, return_sites=["z"], num_draws=50)["z"].mean(0)
    torch.testing.assert_close(same, params["at"], rtol=0.0, atol=0.05)
    more = posterior.predict(6, return_sites=["z"], num_draws=50)["z"]
    assert more.shape == (50, 6)
    assert float(more.mean()) == pytest.approx(2.0, abs=0.1)
    fresh = posterior.predict(4, return_sites=["z"], fresh_sites=["z"], num_draws=50)["z"].mean()
    assert float(fresh) == pytest.approx(2.0, abs=0.1)
    assert posterior.predict(4, num_draws=7)["y"].shape == (7, 4)


def test_to_arviz(conjugate, tmp_path):
    data = conjugate.to_arviz(30, posterior_predictive=True)
    assert set(data.groups()) >= {
        "posterior",
        "log_likelihood",
        "sample_stats",
        "observed_data",
        "posterior_predictive",
    }
    assert data.posterior["rate"].shape == (1, 30)
    assert data.log_likelihood["y"].dims == ("chain", "draw", "days")
    np.testing.assert_array_equal(data.observed_data["y"], COUNTS)
    rate = torch.as_tensor(data.posterior["rate"].values[0])
    expected = dist.Poisson(rate[:, None]).log_prob(torch.as_tensor(COUNTS))
    np.testing.assert_allclose(data.log_likelihood["y"].values[0], expected, rtol=1e-10)
    weights = data.sample_stats["lp"] - data.sample_stats["log_q"]
    np.testing.assert_allclose(weights, log_evidence(), rtol=1e-9)
    data.to_netcdf(str(tmp_path / "posterior.nc"))


def test_constant_data_and_masks():
    x = torch.linspace(-1.0, 1.0, 6)

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, torch.tensor(1.0)))
        with pyro.plate("rows", 6), pyro.poutine.mask(mask=x > 0):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    def guide(x, y=None):
        pyro.sample("w", dist.Normal(pyro.param("m", torch.tensor(0.3)), 0.2))

    posterior = make(vr.Guided(model, guide), {"m": torch.tensor(0.3)}, x, y=torch.ones(6))
    data = posterior.to_arviz(10)
    assert set(data.constant_data) == {"x"}
    w = torch.as_tensor(data.posterior["w"].values[0])
    terms = dist.Normal(w[:, None] * x, 1.0).log_prob(torch.ones(6)) * (x > 0)
    lp = terms.sum(-1) + dist.Normal(0.0, 1.0).log_prob(w)
    np.testing.assert_allclose(data.sample_stats["lp"].values[0], lp, rtol=1e-10)


def test_files(conjugate, tmp_path):
    path = conjugate.save(tmp_path / "p.npz")
    loaded = vr.load(path, GUIDED)
    torch.testing.assert_close(loaded.draws(20)["rate"], conjugate.draws(20)["rate"])
    np.testing.assert_array_equal(loaded.losses, conjugate.losses)
    assert loaded.record == {"num_steps": 2_000}

    def other(y=None, num=8):
        pyro.sample("other", dist.Gamma(2.0, torch.tensor(0.5)))

    with pytest.raises(vr.ArgumentError, match="not of 'other'"):
        vr.load(path, vr.Guided(other, counts_guide))
    (tmp_path / "damaged.npz").write_bytes(b"PK" + bytes(50))
    with pytest.raises(vr.ArgumentError, match="not a saved posterior"):
        vr.load(tmp_path / "damaged.npz", GUIDED)
    with pytest.raises(vr.ArgumentError, match="cannot read"):
        vr.load(tmp_path / "absent.npz", GUIDED)


def test_a_picture(conjugate, tmp_path):
    conjugate.plot(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_what_does_not_fit_is_refused():
    with pytest.raises(vr.ArgumentError, match="no value for the parameters b"):
        make(GUIDED, {"a": torch.tensor(1.0)})

    def empty(y=None, num=8):
        pass

    with pytest.raises(vr.SiteError, match="does not draw the model's rate"):
        make(vr.Guided(counts_model, empty), {})
