"""A fit on a GPU: where things live, that a step reads no value, and that it is replayed; on a pretended one."""

import collections
import importlib

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pretended_gpu import DEVICE, OnGpu, pretended_gpu
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

import vi_reparam_pyro as vr
from vi_reparam.errors import ArgumentError, NonFiniteError
from vi_reparam.samplers import LogGamma, PolarLogit, TruncatedNormalOffset, VonMisesDeviation, accepted_noise
from vi_reparam.samplers.base import Attempt
from vi_reparam_pyro.capture import replay
from vi_reparam_pyro.engine import gradient
from vi_reparam_pyro.lanes.seeding import salted
from vi_reparam_pyro.ops import noise

together = importlib.import_module("vi_reparam_pyro.ops.at_once")

Y = np.linspace(-1.0, 3.0, 12).astype(np.float32)


def model(y):
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


ESTIMATORS = {"*": vr.Implicit(), "loc": vr.Pathwise()}


@pytest.fixture(autouse=True)
def single():
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


def recorded(run, device):
    """As a CUDA graph: the same operations again, on the places that were recorded."""
    results = run()

    def launch():
        for place, x in zip(results, run(), strict=True):
            place.copy_(x)

    return launch, results


@pytest.fixture
def steps(monkeypatch):
    """What each step of a fit read, and how it was taken."""
    seen = []
    step = gradient.Gradient.__call__

    def noted(self, *args):
        before = len(noted.gpu.reads)
        loss = step(self, *args)
        seen.append((collections.Counter(noted.gpu.reads[before:]), self.how))
        return loss

    monkeypatch.setattr(gradient.Gradient, "__call__", noted)
    monkeypatch.setattr(replay, "recorded", recorded)
    monkeypatch.setattr(gradient, "WORTH_CAPTURING", 3)
    return noted, seen


def fitted(y, *, estimators=ESTIMATORS, num_steps=4, **options):
    guided = vr.guide(vr.MeanField(), estimators=estimators)(model)
    return guided.fit(y, num_steps=num_steps, num_particles=2, progress=False, **options)


def test_a_step_reads_no_value_and_is_replayed(steps, monkeypatch):
    noted, seen = steps
    with pretended_gpu() as gpu:
        noted.gpu = gpu
        posterior = fitted(torch.as_tensor(Y).to(DEVICE), num_steps=8)
        monkeypatch.setattr(gradient, "WORTH_CAPTURING", 9)
        slow = fitted(torch.as_tensor(Y).to(DEVICE), num_steps=8)
    reads, ways = zip(*seen, strict=True)
    assert len(reads) == 8 + 8
    assert not any(reads[:2]) and not any(reads[3:])  # the third of the first fit is captured, and compared
    assert ways[2:8] == ("captured, replayed as one CUDA graph",) * 6
    assert set(ways[8:]) == {"by the handlers: too few steps"}
    np.testing.assert_allclose(posterior.losses, slow.losses, rtol=1e-5)  # the noise of a replay is the step's own
    assert all(isinstance(value, OnGpu) for value in posterior.params.values())


def test_a_step_that_cannot_be_recorded_is_captured(monkeypatch):
    def fails(run, device):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(replay, "recorded", fails)
    monkeypatch.setattr(gradient, "WORTH_CAPTURING", 3)
    with pretended_gpu():
        posterior = fitted(torch.as_tensor(Y).to(DEVICE), num_steps=8)
    assert posterior.record["steps"] == "captured, not recorded: operation not permitted when stream is capturing"


@pytest.mark.parametrize("where", ["data there", "data in memory", "NumPy's"])
def test_what_is_made_lives_where_the_data_do(where):
    with pretended_gpu():
        if where == "data there":  # though torch's default device is memory
            posterior = fitted(torch.as_tensor(Y).to(DEVICE))
        else:
            with DEVICE:
                posterior = fitted(Y if where == "NumPy's" else torch.tensor(Y, device="cpu"))
        assert {x.device for x in posterior.params.values()} == {DEVICE}
        assert {x.device for x in posterior.draws(3).values()} == {DEVICE}
        assert posterior.predict(num_draws=3)["y"].device == DEVICE
        value, error = posterior.elbo(20)
        assert np.isfinite(value) and error > 0.0
    held = fitted(torch.as_tensor(Y))  # in memory, with noise of another kind
    assert {x.device.type for x in held.params.values()} == {"cpu"}


FAMILIES = {
    "full rank": vr.FullRank(),
    "diffusion": vr.SDE(num_steps=1, warm_start=0, base="diagonal", checkpoint=False),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_joint_families_live_there_too(name):
    guided = vr.guide(FAMILIES[name])(model)
    with pretended_gpu():
        posterior = guided.fit(torch.as_tensor(Y).to(DEVICE), num_steps=1, num_particles=2, progress=False)
        assert {x.device for x in posterior.params.values()} == {DEVICE} and np.isfinite(posterior.elbo(4)[0])


def test_devices_that_differ_are_refused_in_one_line():
    with FakeTensorMode():
        one, two = torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1")
        with pytest.raises(ArgumentError, match="on several devices, cuda:0 and cuda:1: move all of them to one"):
            vr.random.beta(one, two)
    fit = vr.guide(vr.MeanField())(lambda x, y: model(y)).fit
    with pytest.raises(ArgumentError, match="on several devices, cuda:0 and cuda:1"):
        fit(one, two, num_steps=1, progress=False)


def test_draws_are_where_their_parameters_are():
    with pretended_gpu() as gpu:
        a, direction = torch.ones(3, 2, device=DEVICE), torch.tensor([1.0, 0.0], device=DEVICE)
        draws = (
            vr.random.gamma(a),
            vr.random.log_gamma(a),
            vr.random.beta(a, torch.ones(3, 2)),  # one in memory goes with the other
            vr.random.dirichlet(a),
            vr.random.von_mises_fisher(direction, a[0, 0]),
            vr.Implicit()(dist.VonMises(direction, direction + 1.0, validate_args=False))(),
            vr.Rejection(boost=1)(dist.Gamma(a, a, validate_args=False)).sample(),
        )
        assert {x.device for x in draws} == {DEVICE} and not gpu.reads
        assert vr.random.gamma(torch.ones(3)).device.type == "cpu"


def test_a_file_and_a_checkpoint_go_between_machines(tmp_path):
    file, checkpoint = tmp_path / "fit.vr", tmp_path / "checkpoint"
    with pretended_gpu():
        there = fitted(torch.as_tensor(Y).to(DEVICE), num_steps=5, checkpoint=checkpoint)
        there.save(file)
        expected = {name: value.cpu().numpy() for name, value in there.params.items()}
    guided = vr.guide(vr.MeanField(), estimators=ESTIMATORS)(model)
    here = vr.Posterior.load(file, guided)
    for name, value in here.params.items():
        np.testing.assert_array_equal(value, expected[name])
    assert np.isfinite(here.elbo(10)[0])
    again = fitted(torch.as_tensor(Y), num_steps=5, checkpoint=checkpoint)  # it is done
    np.testing.assert_array_equal(again.losses, there.losses)
    with pretended_gpu(), DEVICE:
        back = vr.Posterior.load(file, guided)
        assert {x.device for x in back.params.values()} == {DEVICE} and np.isfinite(back.elbo(10)[0])


def test_noise_follows_a_salt_on_the_device():
    with pretended_gpu(), DEVICE:
        salt = torch.tensor(2**60 + 7)
        for draw in (noise.normal, noise.uniform):
            with salted(2**60 + 7):
                held = draw(3, (4, 5), torch.float32)
            with salted(salt):
                assert torch.equal(held.cpu(), draw(3, (4, 5), torch.float32).cpu())
            assert not torch.equal(held.cpu(), draw(3, (4, 5), torch.float32).cpu())
        big = noise.normal(1, (20_000,), torch.float32).cpu().numpy()
        assert stats.kstest(big, "norm").pvalue > 1e-4
        assert stats.kstest(noise.uniform(2, (20_000,), torch.float64).cpu().numpy(), "uniform").pvalue > 1e-4


SAMPLERS = {
    "gamma": (LogGamma(), (np.geomspace(1e-6, 1e8, 2_000),)),
    "gamma, boost 3": (LogGamma(3), (np.geomspace(1e-6, 1e8, 2_000),)),
    "von Mises": (VonMisesDeviation(), (np.geomspace(1e-6, 1e6, 2_000),)),
    **{f"von Mises-Fisher {d}": (PolarLogit(d), (np.geomspace(1e-6, 1e6, 2_000),)) for d in (2, 3, 100)},
    "truncated normal": (
        TruncatedNormalOffset(),
        tuple(x.ravel() for x in np.meshgrid(np.linspace(-12.0, 12.0, 60), np.geomspace(1e-4, 30.0, 60))),
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_so_many_proposals_serve(name):
    sampler, params = SAMPLERS[name]
    if name == "truncated normal":
        params = params[0], params[0] + params[1]
    acceptance = np.exp(-sampler.log_bound(*map(torch.tensor, params)).numpy()).min()
    assert (1.0 - acceptance) ** sampler.rounds < 1e-14


def test_all_proposals_at_once_have_the_law_and_a_miss_is_nan(monkeypatch):
    sampler, a = LogGamma(), torch.full((20_000,), 0.4, dtype=torch.float64)
    attempt = Attempt(vr.ops, sampler, a.dtype)
    whole = together.at_once(attempt, 5, (a,), 12)
    assert stats.ks_2samp(whole.numpy(), accepted_noise(vr.ops, 1, sampler, a.shape, a)[0].numpy()).pvalue > 1e-4
    missed = together.at_once(attempt, 5, (a,), 1).isnan()
    assert 0.005 < missed.double().mean() < 0.1
    monkeypatch.setattr(together, "_PLACES", 50_000)  # in rounds of two
    parts = together.at_once(attempt, 5, (a,), 12)
    assert torch.equal(parts, whole)


def test_a_miss_ends_the_fit_with_its_site(monkeypatch):
    def local(y):
        with pyro.plate("n", len(y)):
            z = pyro.sample("z", dist.Gamma(0.3, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    monkeypatch.setattr(LogGamma, "rounds", 1)
    guided = vr.guide(vr.MeanField(), estimators={"z": vr.Implicit()})(local)
    with pretended_gpu(), pytest.raises(NonFiniteError, match=r"z.*its draw is not finite"):
        guided.fit(torch.ones(400, device=DEVICE), num_steps=2, num_particles=1, progress=False)
