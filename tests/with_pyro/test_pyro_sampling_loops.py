"""The torch side of the sampling loops: exact, lane by lane, with the noise of retries from a counter."""

import numpy as np
import pytest
import torch
from scipy import stats

import vi_reparam_pyro as vr
from vi_reparam import RejectionSampler
from vi_reparam.samplers import LogGamma, PolarLogit, accepted_noise
from vi_reparam_pyro.ops.retry import LaneKey
from vi_reparam_pyro.sampling import random


class Never(RejectionSampler):
    max_rounds = 3

    def transform(self, noise, *params):
        return noise

    def log_proposal(self, value, *params):
        return 0.0 * value

    def log_target(self, value, *params):
        return 0.0 * value

    def log_bound(self, *params):
        return 0.0 * params[0]

    def log_accept(self, noise, *params):
        return torch.where(params[0] > 0.0, -torch.inf, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counted_noise(dtype):
    lanes = torch.arange(100_000)
    u = LaneKey(5, lanes).uniform((100_000, 2), dtype).double().numpy()
    assert u.min() > 0.0 and u.max() <= 1.0
    z = LaneKey(5, lanes).normal((2, 100_000), dtype).double().numpy()
    for column, row in zip(u.T, z, strict=True):
        assert stats.kstest(column, "uniform").pvalue > 1e-4
        assert stats.kstest(row, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(u.T)[0, 1]) < 0.015 and abs(np.corrcoef(z)[0, 1]) < 0.015
    neighbours = np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1]
    assert abs(neighbours) < 0.015
    some = torch.tensor([3, 77, 99_998])
    np.testing.assert_array_equal(LaneKey(5, some).uniform((3, 2), dtype).double().numpy(), u[some.numpy()])


def test_a_lane_does_not_see_the_others():
    a = torch.exp(torch.linspace(-3.0, 3.0, 50_000, dtype=torch.float64))
    others = torch.where(torch.arange(a.numel()) % 7 == 0, a, 1e-3)
    one, two = (accepted_noise(vr.ops, 9, LogGamma(1), tuple(p.shape), p)[0] for p in (a, others))
    np.testing.assert_array_equal(one[::7], two[::7])
    assert torch.isfinite(one).all()


def test_a_sampler_with_noise_of_its_own():
    kappa = torch.full((30_000,), 4.0, dtype=torch.float64)
    sampler = PolarLogit(3)
    value = sampler.transform(accepted_noise(vr.ops, 2, sampler, (30_000,), kappa), kappa)
    cosine = (1.0 - 2.0 * torch.sigmoid(value)).numpy()  # in three dimensions a truncated exponential
    cdf = (np.exp(4.0 * cosine) - np.exp(-4.0)) / (np.exp(4.0) - np.exp(-4.0))
    assert stats.kstest(cdf, "uniform").pvalue > 1e-4


def test_exhaustion_is_reported():
    never = torch.arange(1_000) % 3 == 0
    found = accepted_noise(vr.ops, 1, Never(), (1_000,), never.double())
    np.testing.assert_array_equal(torch.isnan(found), never)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [1e-3, 0.5, 1.0, 300.0])
def test_log_draws_follow_their_law(a, dtype):
    generator = torch.Generator().manual_seed(4)
    log_z = vr.random.log_gamma(torch.full((100_000,), a, dtype=dtype), generator=generator).double().numpy()
    assert stats.kstest(log_z, stats.loggamma(a).cdf).pvalue > 1e-4


def test_blocks_are_of_one_law_and_differentiate(monkeypatch):
    monkeypatch.setattr(random, "_AT_ONCE", 1_000)
    a = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    x = vr.random.dirichlet(a, (20_000,), generator=torch.Generator().manual_seed(0))
    assert x.shape == (20_000, 3)
    assert stats.kstest(x[:, 0].detach().numpy(), stats.beta(0.5, 4.0).cdf).pvalue > 1e-4
    (slope,) = torch.autograd.grad(x[:, 0].mean(), a)
    np.testing.assert_allclose(slope, [4.0 / 4.5**2, -0.5 / 4.5**2, -0.5 / 4.5**2], rtol=0.05)
    z = vr.random.gamma(torch.tensor(2.0, dtype=torch.float64), (3, 1_500))
    assert z.shape == (3, 1_500) and torch.unique(z).numel() == z.numel()
