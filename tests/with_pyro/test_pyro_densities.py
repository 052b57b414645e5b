"""A Bernoulli's log density in lanes: torch's own number outside of them, and to its last digits."""

import pyro.distributions as dist
import pytest
import torch

from vi_reparam_pyro.host.densities import log_prob

LOGITS = torch.tensor([-40.0, -17.5, -2.0, 0.0, 0.3, 9.0, 25.0, 60.0], dtype=torch.float32)
VALUES = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float32)


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: d.to_event(1), lambda d: d.expand((2, 8)).to_event(1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outside_of_lanes_it_is_torchs(wrap, dtype):
    d = wrap(dist.Bernoulli(logits=LOGITS.to(dtype)))
    torch.testing.assert_close(log_prob(d, VALUES.to(dtype)), d.log_prob(VALUES.to(dtype)), rtol=0.0, atol=0.0)


def test_in_lanes_it_and_its_slope_are_exact_in_float32():
    def total(logits):
        return torch.func.vmap(lambda x: log_prob(dist.Bernoulli(logits=x).to_event(1), VALUES))(logits).sum()

    logits = torch.stack([LOGITS, -LOGITS]).requires_grad_()
    value = total(logits)
    (slope,) = torch.autograd.grad(value, logits)
    wide = logits.detach().double()
    sign = 2.0 * VALUES.double() - 1.0
    torch.testing.assert_close(value.double(), torch.nn.functional.logsigmoid(sign * wide).sum(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(slope.double(), sign * torch.sigmoid(-sign * wide), rtol=1e-6, atol=1e-7)


def test_values_are_validated_where_the_distribution_does():
    with pytest.raises(ValueError, match="within the support"):
        log_prob(dist.Bernoulli(logits=LOGITS, validate_args=True), VALUES + 0.5)


def test_others_are_their_own():
    d = dist.Normal(LOGITS, 2.0).to_event(1)
    assert torch.equal(log_prob(d, VALUES), d.log_prob(VALUES))
