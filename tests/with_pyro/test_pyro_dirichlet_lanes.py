"""Betas and Dirichlets of the prior in lanes: each lane draws its own, and gradients are exact."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_reparam_pyro as vr
from vi_reparam_pyro.lanes import vmap

NUM = 20_000


@pytest.mark.filterwarnings("ignore")  # of torch: a slow path for the slopes
def test_each_lane_draws_its_own_with_exact_slopes():
    concentration = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)

    def lane(_):
        with vmap.drawing():
            return pyro.sample("x", dist.Beta(concentration[0], concentration[1])), pyro.sample(
                "y", dist.Dirichlet(concentration)
            )

    torch.manual_seed(0)
    x, y = vmap.mapped(lane, torch.arange(NUM), torch.arange(NUM), in_dims=(0,))
    sd = math.sqrt(2.0 * 3.0 / 25.0 / 6.0)
    for found in (x, y[:, 0]):
        assert len(torch.unique(found.detach())) == NUM
        assert abs(float(found.detach().mean()) - 0.4) < 4.0 * sd / math.sqrt(NUM)
        assert abs(float(found.detach().std()) / sd - 1.0) < 0.03
    x.mean().backward()
    assert torch.allclose(concentration.grad, torch.tensor([3.0, -2.0], dtype=torch.float64) / 25.0, atol=0.003)


def test_a_rate_with_a_beta_prior_gets_the_whole_ladder():
    """0 of 1,000, whose posterior is Beta(1, 1001): the first Gaussian is poor, and a mean field is right."""

    @vr.guide
    def rare(y=None):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("y", dist.Binomial(1_000, p), obs=y)

    posterior = rare.fit(torch.tensor(0.0), progress=False)
    assert posterior.verdict.grade == "good" and len(posterior.tried) > 1
    p = posterior.draws(20_000)["p"]
    exact = 1.0 / 1_002.0
    assert abs(float(p.mean()) / exact - 1.0) < 0.05 and abs(float(p.std()) / exact - 1.0) < 0.1
