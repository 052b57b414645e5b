"""`vr.random` in torch: the operators behind it against the core's way, their law, and what they refuse."""

import numpy as np
import pytest
import torch
from scipy import stats

import vi_reparam_pyro as vr
from vi_reparam_pyro.ops import gamma_slope, retry
from vi_reparam_pyro.sampling import gammas, random

A = torch.tensor([1e-3, 0.05, 0.4, 1.0, 1.3, 3.0, 20.0, 5e3], dtype=torch.float64)
B = A.flip(0) + 0.1


def seeded(draw, *parameters, **options):
    return draw(*parameters, generator=torch.Generator().manual_seed(3), **options)


def with_gradient(draw, *parameters):
    leaves = [p.clone().requires_grad_() for p in parameters]
    value = seeded(draw, *leaves)
    weights = torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
    return value.detach().numpy(), [g.numpy() for g in torch.autograd.grad((weights * value).sum(), leaves)]


@pytest.mark.parametrize(
    ("draw", "parameters"),
    [(vr.random.gamma, (A,)), (vr.random.log_gamma, (A,)), (vr.random.dirichlet, (torch.stack([A, B]),))],
    ids=["gamma", "log_gamma", "dirichlet"],
)
def test_the_core_gives_the_same_draws_and_gradients(draw, parameters, monkeypatch):
    value, gradients = with_gradient(draw, *parameters)
    monkeypatch.setattr(random, "plain", lambda *tensors: False)
    core, core_gradients = with_gradient(draw, *parameters)
    np.testing.assert_allclose(value, core, rtol=1e-12)
    for one, other in zip(gradients, core_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-17)  # the core subtracts what is of order 0.1


def test_a_beta_is_that_dirichlet(monkeypatch):
    w = torch.tensor(np.random.default_rng(0).normal(size=(2, 8)) / np.sqrt(1.0 + np.stack([A, B])))
    x, (by_a, by_b) = with_gradient(lambda a, b, generator: gammas.Beta.apply(w[0], w[1], a, b), A, B)
    pair, (by_pair,) = with_gradient(
        lambda ab, generator: gammas.Dirichlet.apply(w.T, ab)[:, 0], torch.stack([A, B], 1)
    )
    np.testing.assert_allclose(x, pair, rtol=1e-12)
    np.testing.assert_allclose(np.stack([by_a, by_b], 1), by_pair, rtol=1e-7)  # where 1 - x has its digits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [1e-3, 0.5, 30.0, 1e6])
def test_draws_follow_their_law(a, dtype):
    num = 200_000  # several blocks
    plain = torch.full((num,), a, dtype=dtype)
    z = seeded(vr.random.gamma, plain).double().numpy()
    tiny = torch.finfo(dtype).smallest_normal
    assert z.min() >= tiny
    seen = z[z > tiny]  # the rest is held at the smallest number, and there are as many as there should be
    law = stats.gamma(a)
    left = law.cdf(tiny)
    assert stats.binomtest(num - seen.size, num, left).pvalue > 1e-4
    assert stats.kstest((law.cdf(seen) - left) / (1.0 - left), "uniform").pvalue > 1e-4
    x = seeded(vr.random.beta, plain, plain * 2.0 + 1.0).double().numpy()
    assert x.min() > 0.0 and x.max() < 1.0
    inside = x[x > tiny]
    law = stats.beta(a, 2.0 * a + 1.0)
    left = law.cdf(tiny)
    assert stats.kstest((law.cdf(inside) - left) / (1.0 - left), "uniform").pvalue > 1e-4


def test_small_concentrations_in_single_precision():
    """The largest share of a Dirichlet at 1e-3 is near 1, though every gamma behind it has underflowed."""
    a = torch.full((20_000, 5), 1e-3, dtype=torch.float32, requires_grad=True)
    x = seeded(vr.random.dirichlet, a)
    assert x.dtype == torch.float32 and torch.isfinite(x).all() and x.min() > 0.0
    np.testing.assert_allclose(x.detach().sum(-1), 1.0, rtol=1e-6)
    x[:, 0].log().sum().backward()
    assert torch.isfinite(a.grad).all() and (a.grad[:, 0] != 0.0).float().mean() > 0.5


def test_the_same_seed_gives_the_same_draws_whatever_else_there_is():
    a = torch.exp(torch.linspace(-3.0, 3.0, 150_000))
    others = torch.where(torch.arange(a.numel()) % 7 == 0, a, 1e-3)
    one, two = seeded(vr.random.log_gamma, a), seeded(vr.random.log_gamma, others)
    assert torch.equal(one[::7], two[::7]) and torch.unique(one).numel() > 149_000
    assert torch.equal(one, seeded(vr.random.log_gamma, a.clone().requires_grad_()).detach())
    torch.manual_seed(4)
    first = vr.random.gamma(a)
    torch.manual_seed(4)
    assert torch.equal(first, vr.random.gamma(a))


def test_blocks_change_no_slope(monkeypatch):
    a = torch.exp(torch.linspace(-3.0, 3.0, 5_000, dtype=torch.float32))
    whole = with_gradient(vr.random.gamma, a)
    monkeypatch.setattr(gamma_slope, "_BLOCK", 700)
    monkeypatch.setattr(gammas, "_BLOCK", 900)
    blocks = with_gradient(vr.random.gamma, a)
    np.testing.assert_allclose(whole[0], blocks[0], rtol=1e-6)
    np.testing.assert_allclose(whole[1][0], blocks[1][0], rtol=1e-5)


def test_first_proposals_in_blocks_are_independent(monkeypatch):
    monkeypatch.setattr(retry, "_BLOCK", 1_000)
    log_z = seeded(vr.random.log_gamma, torch.full((100_000,), 0.7, dtype=torch.float64)).reshape(100, 1_000)
    assert abs(np.corrcoef(log_z[0::2].flatten(), log_z[1::2].flatten())[0, 1]) < 4.0 / np.sqrt(50_000)
    assert stats.kstest(log_z.flatten().numpy(), stats.loggamma(0.7).cdf).pvalue > 1e-4


def test_dtypes():
    single, double = torch.tensor(2.0, dtype=torch.float32), torch.tensor(2.0, dtype=torch.float64)
    assert vr.random.gamma(single).dtype == torch.float32
    assert vr.random.beta(single, 3.0).dtype == torch.float32
    assert vr.random.beta(single, double).dtype == torch.float64
    assert vr.random.gamma(2).dtype == torch.get_default_dtype()


def test_shapes():
    assert vr.random.gamma(torch.zeros(0, 3)).shape == (0, 3)
    assert vr.random.gamma(torch.tensor(2.0)).shape == ()
    assert vr.random.beta(torch.ones(3), torch.ones(2, 1)).shape == (2, 3)
    a = torch.ones(4, requires_grad=True)
    vr.random.dirichlet(a, (5, 2)).sum().backward()
    assert a.grad is not None and a.grad.shape == (4,)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_under_torchs_transforms():
    """Where an operator of ours would be opaque, draws go through the core."""
    a = torch.full((2_000,), 2.0, dtype=torch.float64)
    z, tangent = torch.func.jvp(vr.random.log_gamma, (a,), (torch.ones_like(a),))
    assert (tangent > 0.0).all() and z.shape == a.shape
    assert abs(tangent.mean() - (np.pi**2 / 6.0 - 1.0)) < 4.0 * tangent.std() / np.sqrt(2_000)  # trigamma(2)


def test_a_second_derivative_is_refused():
    a = torch.tensor([1.5, 2.0], requires_grad=True)
    (slope,) = torch.autograd.grad(vr.random.gamma(a).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        slope.sum().backward()
