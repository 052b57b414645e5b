"""vr.guide, fit and what a fit refuses."""

import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample

import vi_reparam_pyro as vr
from vi_reparam.fit import loop, selection
from vi_reparam_pyro.engine.optimizers import clip_by_norm
from vi_reparam_pyro.engine.program import Program

COUNTS = np.array([3.0, 5.0, 1.0, 4.0, 2.0, 6.0, 3.0, 2.0])
SHAPE, RATE = 2.0, 0.5


@vr.guide(vr.MeanField())
def counts_model(y):
    rate = pyro.sample("rate", dist.Gamma(SHAPE, RATE))
    with pyro.plate("days", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def adam(lr):
    return lambda params: torch.optim.Adam(params, lr=lr)


def test_a_conjugate_model_reaches_its_exact_posterior():
    posterior = counts_model.fit(COUNTS, num_steps=300, num_particles=16, progress=False)
    a, b = SHAPE + COUNTS.sum(), RATE + len(COUNTS)
    assert float(posterior.params["rate_concentration"]) == pytest.approx(a, rel=0.15)
    assert float(posterior.params["rate_mean"]) == pytest.approx(a / b, rel=0.02)
    log_evidence = SHAPE * math.log(RATE) - math.lgamma(SHAPE) + math.lgamma(a) - a * math.log(b)
    log_evidence -= sum(math.lgamma(y + 1.0) for y in COUNTS)
    value, error = posterior.elbo()
    assert value == pytest.approx(log_evidence, abs=0.02)
    assert error < 0.01
    assert posterior.verdict.grade == "good"
    assert posterior.record["estimators"] == {"rate": "Implicit()"}
    assert len(pyro.get_param_store()) == 0  # a fit leaves nothing behind


def test_the_seed_governs_a_fit():
    losses = []
    for seed in (3, 3, 4):
        torch.rand(3)  # the global state does not matter
        before = torch.get_rng_state()
        losses.append(counts_model.fit(COUNTS, num_steps=40, num_particles=2, seed=seed, progress=False).losses)
        assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(losses[0], losses[1])
    assert not np.array_equal(losses[0], losses[2])


def test_every_support_gets_its_family():
    def model():
        pyro.sample("real", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("n", 3):
            pyro.sample("positive", dist.HalfCauchy(torch.ones(())))
        pyro.sample("unit", dist.Beta(2.0, torch.tensor(3.0)))
        pyro.sample("simplex", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
        pyro.sample("circle", dist.VonMises(torch.tensor(0.5), 2.0))
        pyro.sample("sphere", vr.VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(3.0)))
        pyro.sample("ordered", dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), order))
        pyro.sample("interval", dist.Uniform(-1.0, torch.tensor(3.0)))

    order = [dist.transforms.OrderedTransform()]
    posterior = vr.guide(vr.MeanField())(model).fit(num_steps=10, num_particles=2, progress=False)
    assert posterior.record["estimators"] == {
        "real": "Pathwise()",
        "positive": "Implicit()",
        "unit": "Implicit()",
        "simplex": "Implicit()",
        "circle": "Implicit()",
        "sphere": "Implicit()",
        "ordered": "Pathwise()",
        "interval": "Pathwise()",
    }
    draws = posterior.draws(50)
    assert draws["positive"].shape == (50, 3)
    assert bool((draws["ordered"].diff(dim=-1) > 0).all())
    assert bool(((draws["interval"] > -1) & (draws["interval"] < 3)).all())
    torch.testing.assert_close(draws["sphere"].norm(dim=-1), torch.ones(50))


def test_a_truncated_normal_in_the_model_and_a_sampler_of_ones_own():
    def model():
        pyro.sample("x", vr.TruncatedNormal(0.0, 1.0, low=torch.tensor(0.5), high=torch.tensor(2.0)))

    def guide():
        loc = pyro.param("loc", torch.tensor(1.0))
        pyro.sample("x", vr.TruncatedNormal(loc, torch.tensor(1.0), low=0.5, high=2.0))

    guided = vr.Guided(model, guide, estimators=vr.Rejection())
    posterior = guided.fit(num_steps=100, num_particles=8, progress=False)
    assert abs(float(posterior.params["loc"])) < 0.3
    draws = posterior.draws(200)["x"]
    assert bool(((draws > 0.5) & (draws < 2.0)).all())


def test_subsampled_plates_draw_fresh_indices_each_particle():
    x = np.random.default_rng(1).normal(2.0, 1.0, 40)
    seen = []

    @vr.guide(vr.MeanField())
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, torch.tensor(3.0)))
        with pyro.plate("rows", len(x), subsample_size=8) as rows:
            seen.append(rows)
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=torch.as_tensor(x)[rows])

    posterior = model.fit(x, num_steps=400, num_particles=4, optimizer=adam(0.05), progress=False)
    assert posterior.params["z_loc"].shape == (40,)
    exact = x.sum() / 1.25 / (1.0 / 9.0 + 40 / 1.25)
    assert float(posterior.params["mu_loc"]) == pytest.approx(exact, abs=0.15)
    assert posterior.draws(5)["z"].shape == (5, 40)  # evaluated on all of the data
    assert posterior.log_weights.shape == (posterior.default_num_weights,)

    def rows_of(index):
        seen.clear()
        model.objective.with_particles(1).loss(model.model, model.guide, torch.as_tensor(x))
        return seen[-1].sort().values

    assert not torch.equal(rows_of(0), rows_of(1))


def test_a_minibatch_as_an_argument_is_refused():
    @vr.guide(vr.MeanField())
    def model(x, size):
        with pyro.plate("rows", size, subsample_size=4):
            z = pyro.sample("z", dist.Normal(0.0, torch.tensor(1.0)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(vr.ArgumentError, match="plate 'rows' is subsampled"):
        model.fit(np.zeros(4), 40, num_steps=5, progress=False)


def test_params_and_networks_in_the_model_are_learned():
    torch.manual_seed(0)
    x = torch.linspace(-1.0, 1.0, 60)
    y = 3.0 * x + 0.1 * torch.randn(60)

    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[torch.nn.Linear](1, 1)
            self.noise = PyroParam(torch.tensor(1.0), dist.constraints.positive)
            self.offset = PyroSample(dist.Normal(0.0, torch.tensor(1.0)))

        def forward(self, x, y=None):
            mean = self.linear(x[:, None])[:, 0] + self.offset
            with pyro.plate("rows", len(x)):
                return pyro.sample("y", dist.Normal(mean, self.noise), obs=y)

    net = Net()
    posterior = vr.guide(vr.MeanField())(net).fit(
        x, y=y, num_steps=300, num_particles=2, optimizer=adam(0.05), progress=False
    )
    assert float(posterior.params["linear.weight"]) == pytest.approx(3.0, abs=0.2)
    assert float(posterior.params["noise"]) == pytest.approx(0.1, abs=0.05)
    assert float(net.linear.weight.detach()) == pytest.approx(3.0, abs=0.2)  # trained in place

    plain = torch.nn.Linear(1, 1)

    @vr.guide(vr.MeanField())
    def model(x, y):
        pyro.module("plain", plain)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        offset = pyro.sample("offset", dist.Normal(0.0, torch.tensor(1.0)))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(plain(x[:, None])[:, 0] + offset, scale), obs=y)

    posterior = model.fit(x, y, num_steps=300, num_particles=2, optimizer=adam(0.05), progress=False)
    assert float(posterior.params["plain$$$weight"]) == pytest.approx(3.0, abs=0.2)
    with torch.no_grad():
        plain.weight.fill_(0.0)  # the posterior has weights of its own
    fresh = posterior.predict(num_draws=200)["y"].mean(0)
    assert float((fresh - y).abs().mean()) < 0.5
    assert float(plain.weight.detach()) == 0.0


def test_a_model_that_reads_its_data_and_its_draws_in_python():
    @vr.guide(vr.MeanField(), objective=vr.ELBO(2))
    def model(y):
        rate = pyro.sample("rate", dist.Gamma(SHAPE, RATE))
        if rate.item() > 0.0 and float(y[0]) > 0.0:
            pyro.sample("y", dist.Poisson(rate).expand([len(y)]).to_event(1), obs=y)

    posterior = model.fit(COUNTS, num_steps=60, progress=False)
    assert float(posterior.params["rate_mean"]) == pytest.approx(3.29, rel=0.2)
    assert posterior.draws(20)["rate"].shape == (20,)
    assert not posterior.scorer.at_once


@pytest.mark.parametrize("particles", [1, 4])
def test_a_nan_names_its_step_and_site(particles):
    def model(y):
        rate = pyro.sample("rate", dist.Gamma(SHAPE, RATE))
        # d loss / dp = 1: p falls by 0.1 a step from 3.75, and below zero the density is NaN
        p = pyro.param("p", torch.tensor(3.75))
        pyro.factor("broken", torch.where(p > 0.0, p.detach() - p, torch.nan) + 0.0 * rate)
        with pyro.plate("days", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    guided = vr.guide(vr.MeanField(), objective=vr.ELBO(particles))(model)
    with pytest.raises(vr.NonFiniteError, match="site 'broken': log density in the model is not finite") as caught:
        guided.fit(COUNTS, num_steps=200, optimizer=_only_last(0.1), progress=False)
    error = caught.value
    assert error.step == 38
    assert len(error.losses) == 39
    assert np.isfinite(error.losses[:-1]).all() and np.isnan(error.losses[-1])
    assert error.params["p"] < 0.0 < error.params["rate_mean"]


def _only_last(lr):
    """SGD that moves the last parameter (the model's) alone."""
    return lambda params: torch.optim.SGD([{"params": params[:-1], "lr": 0.0}, {"params": params[-1:], "lr": lr}])


def test_a_nan_at_once_and_data_outside_the_support():
    @vr.guide(vr.MeanField(), objective=vr.ELBO(1))
    def broken(y):
        rate = pyro.sample("rate", dist.Gamma(SHAPE, RATE))
        pyro.factor("broken", torch.tensor(math.nan) * rate)

    with pytest.raises(vr.NonFiniteError, match="stopped at step 0: site 'broken'"):
        broken.fit(COUNTS, num_steps=10, progress=False)
    with pytest.raises(vr.ArgumentError, match="within the support"):
        counts_model.fit(-COUNTS, num_steps=10, progress=False)


def test_a_checkpoint_goes_on_to_the_same_end(tmp_path, monkeypatch):
    path = tmp_path / "fit.npz"
    options = {"num_particles": 2, "optimizer": adam(0.05), "progress": False}
    whole = counts_model.fit(COUNTS, num_steps=64, **options)

    class CutError(Exception):
        pass

    stopped = vr.Guided(counts_model.model, vr.MeanField(), objective=counts_model.objective)
    advance = Program.advance

    def cut(self, state, steps):
        if state.step >= 32:
            raise CutError
        return advance(self, state, min(steps, 16))

    with monkeypatch.context() as patched:
        patched.setattr(loop, "SAVE_EVERY", 0.0)
        patched.setattr(Program, "advance", cut)
        with pytest.raises(CutError):
            stopped.fit(COUNTS, num_steps=64, checkpoint=path, **options)
    resumed = counts_model.fit(COUNTS, num_steps=64, checkpoint=path, **options)
    np.testing.assert_allclose(resumed.losses, whole.losses, rtol=1e-9)
    torch.testing.assert_close(resumed.params["rate_mean"], whole.params["rate_mean"])
    with pytest.raises(vr.ArgumentError, match="of another fit: its num_steps"):
        counts_model.fit(COUNTS, num_steps=65, checkpoint=path, **options)
    with pytest.raises(vr.ArgumentError, match="of another fit: its seed"):
        counts_model.fit(COUNTS, num_steps=64, seed=1, checkpoint=path, **options)


def test_optimizers():
    for factory in (adam(0.05), lambda p: torch.optim.SGD(p, lr=1e-3), _with_schedule):
        assert np.isfinite(counts_model.fit(COUNTS, num_steps=5, optimizer=factory, progress=False).losses).all()
    for bad in (lambda p: torch.optim.LBFGS(p), lambda p: 3, lambda: None, lambda p: torch.optim.Adam(p, lr=-1.0)):
        with pytest.raises(vr.ArgumentError, match=r"torch\.optim factory"):
            counts_model.fit(COUNTS, num_steps=5, optimizer=bad, progress=False)


def _with_schedule(params):
    optimizer = torch.optim.Adam(params, lr=0.1)
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((np.array([1.0, np.nan]),), {}, "argument 0 holds 1 NaN or infinite values of 2"),
        ((torch.tensor([1.0, math.inf]),), {}, "argument 0 holds 1 NaN"),
        ((COUNTS,), {"num_steps": 0}, "num_steps=0"),
        ((COUNTS,), {"num_particles": 2.5}, "num_particles=2.5"),
        ((COUNTS,), {"optimizer": 0.1}, "torch.optim factory"),
        ((COUNTS,), {"seed": "x"}, "expected an int"),
        ((COUNTS,), {"progress": "yes"}, "expected True or False"),
        (("three",), {}, "could not run on arguments of shapes"),
        ((), {}, "could not run on arguments"),
    ],
)
def test_bad_input_is_one_line(args, options, message):
    with pytest.raises(vr.ArgumentError, match=message) as caught:
        counts_model.fit(*args, **{"progress": False, **options})
    assert "\n" not in str(caught.value)


def test_what_a_guide_cannot_cover():
    def discrete():
        pyro.sample("k", dist.Categorical(torch.ones(3)))

    def undecided():
        pyro.sample("b", dist.Bernoulli(torch.tensor(0.3)))

    def moving():
        b = pyro.sample("b", dist.Gamma(2.0, torch.tensor(1.0)))
        pyro.sample("u", dist.Uniform(0.0, b))

    def nothing():
        pass

    for model, error, message in (
        (discrete, vr.SiteError, "no family covers discrete latents"),
        (undecided, vr.SiteError, "needs a discrete estimator"),
        (moving, vr.SiteError, "its support follows site 'b'"),
        (nothing, vr.ArgumentError, "nothing to fit"),
    ):
        with pytest.raises(error, match=message):
            vr.guide(vr.MeanField())(model).fit(num_steps=3, progress=False)
    served = vr.guide(vr.MeanField(), estimators={"b": vr.MeasureValued()})(undecided)
    assert torch.sigmoid(
        served.fit(num_steps=200, num_particles=2, progress=False).params["b_logits"]
    ) == pytest.approx(0.3, abs=0.03)


def test_decorating():
    with pytest.raises(vr.ArgumentError, match="would drop the score terms"):
        vr.guide(objective=pyro.infer.Trace_ELBO())(counts_model.model)
    with pytest.raises(vr.ArgumentError, match="expected a guide family"):
        vr.guide("mean field")
    with pytest.raises(vr.ArgumentError, match="the name of an option of fit"):
        vr.guide(lambda seed: None)
    with pytest.raises(vr.ArgumentError, match="not callable"):
        vr.guide()(3)
    assert repr(counts_model).startswith("Guided(counts_model, MeanField(")
    assert pickle.loads(pickle.dumps(counts_model)) is counts_model

    class Study:
        @vr.guide(vr.MeanField())
        def model(self, y):
            pyro.sample("z", dist.Normal(0.0, torch.tensor(1.0)))

    study = Study()
    assert study.model is study.model
    assert study.model.fit(COUNTS, num_steps=3, progress=False).name == "model"


def test_a_parameter_of_the_model_may_not_take_a_guides_name():
    @vr.guide(vr.MeanField())
    def model():
        pyro.param("z_loc", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(0.0, torch.tensor(1.0)))

    with pytest.raises(vr.ArgumentError, match="has the name of one of the guide's"):
        model.fit(num_steps=3, progress=False)


def test_an_autoguide_of_pyro_fits_too():
    from pyro.infer.autoguide import AutoNormal

    guided = vr.Guided(counts_model.model, AutoNormal(counts_model.model))
    posterior = guided.fit(COUNTS, num_steps=200, num_particles=2, progress=False)
    assert float(posterior.draws(500)["rate"].mean()) == pytest.approx(3.29, rel=0.1)


def test_single_precision_all_the_way():
    torch.set_default_dtype(torch.float32)
    posterior = counts_model.fit(COUNTS, num_steps=20, num_particles=2, progress=False)
    assert posterior.params["rate_mean"].dtype == torch.float32
    assert posterior.draws(3)["rate"].dtype == torch.float32


def test_auto_is_measured_where_a_fit_is_long(monkeypatch):
    @vr.guide(vr.MeanField(), objective=vr.ELBO(1))
    def model(y):
        with pyro.plate("rows", 1_200):
            z = pyro.sample("z", dist.Gamma(0.3, torch.tensor(0.3)))
            pyro.sample("y", dist.Poisson(z), obs=y)

    assert model.fit(np.ones(1_200), num_steps=3, progress=False).record["variances"] == {}
    monkeypatch.setattr(selection, "WORTH_MEASURING", 3_000)
    posterior = model.fit(np.ones(1_201)[:1_200], num_steps=4, num_particles=2, progress=False)
    assert set(posterior.record["variances"]) == {"Implicit()", "Rejection(boost=3)"}


def test_a_gradient_whose_square_overflows_still_moves():
    """Clipped to the norm that was asked for, and not to nothing."""
    params = [torch.zeros(2, dtype=torch.float32), torch.zeros(1, 1, dtype=torch.float32), torch.zeros(3)]
    params[0].grad, params[1].grad = torch.tensor([3e25, 0.0]).float(), torch.tensor([[-4e25]]).float()
    clip_by_norm(params, 10.0)
    assert torch.allclose(params[0].grad, torch.tensor([6.0, 0.0]).float())
    assert torch.allclose(params[1].grad, torch.tensor([[-8.0]]).float())
    clip_by_norm(params, 20.0)
    assert torch.allclose(params[0].grad, torch.tensor([6.0, 0.0]).float())


def test_an_improper_posterior():
    def improper():
        pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("w", dist.Normal(0.0, 1.0))

    verdict = vr.guide(vr.FullRank())(improper).fit(progress=False).verdict
    assert verdict.grade == "poor"
    assert "['z'] lie beyond 1e+15: the posterior may be improper" in verdict.reasons[0]
