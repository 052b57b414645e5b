"""vr.FullRank and vr.LowRank in Pyro, on a model whose posterior is a Gaussian."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import multivariate_normal, norm

import vi_reparam_pyro as vr
from vi_reparam_pyro.host.params import using

RNG = np.random.default_rng(3)
X = RNG.normal(size=(30, 3)) @ np.array([[1.0, 0.9, 0.0], [0.0, 0.5, 0.7], [0.0, 0.0, 0.6]])
Y = X @ np.array([1.0, -2.0, 0.5]) + 0.5 * RNG.normal(size=30)
COVARIANCE = np.linalg.inv(np.eye(3) + X.T @ X / 0.25)
MEAN = COVARIANCE @ X.T @ Y / 0.25
LOG_EVIDENCE = multivariate_normal(np.zeros(30), X @ X.T + 0.25 * np.eye(30)).logpdf(Y)


def regression(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)


@pytest.mark.parametrize(
    "family",
    [vr.FullRank(), pytest.param(vr.LowRank(rank=2), marks=pytest.mark.slow)],  # the NumPyro backend's is not
    ids=repr,
)
def test_it_reaches_a_gaussian_posterior(family):
    posterior = vr.guide(family)(regression).fit(X, Y, num_steps=2_000, progress=False)
    assert posterior.record["steps"] == "captured"
    value, error = posterior.elbo()
    scale = np.sqrt(np.diag(COVARIANCE))
    assert LOG_EVIDENCE - value < (0.002 if isinstance(family, vr.FullRank) else 0.05) + 4.0 * error
    np.testing.assert_allclose(np.asarray(posterior.draws(20_000)["w"]).mean(0), MEAN, atol=0.05 * scale.min())


def test_the_gradient_vanishes_where_q_is_the_posterior():
    lower = np.linalg.cholesky(COVARIANCE)
    scale = np.diag(lower)
    values = {"loc": MEAN, "log_scale": np.log(scale), "lower": lower / scale[:, None] - np.eye(3)}
    params = {f"gaussian_{n}": torch.as_tensor(v).clone().requires_grad_() for n, v in values.items()}
    frame = {"gaussian_center": torch.zeros(3), "gaussian_root": torch.eye(3), "gaussian_tail": torch.zeros(())}

    def loss(family):
        guided, data = vr.guide(family, objective=vr.ELBO(5))(regression), (torch.as_tensor(X), torch.as_tensor(Y))
        with using({**params, **frame}):
            return guided.objective.surrogate(3, guided.model, guided.guide, data, {})[0]

    path, plain = loss(vr.FullRank()), loss(vr.FullRank(gradient="reparameterization"))
    assert float(path.detach()) == pytest.approx(float(plain.detach()), rel=1e-12)
    for grad in torch.autograd.grad(path, list(params.values())):
        assert float(grad.abs().max()) < 1e-9
    assert max(float(g.abs().max()) for g in torch.autograd.grad(plain, list(params.values()))) > 1e-2


def test_many_coordinates_are_refused_before_memory_is_taken():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(20_000), 1.0).to_event(1))

    with pytest.raises(vr.SiteError, match=r"FullRank\(.*20,000 coordinates would hold 400,000,000"):
        vr.guide(vr.FullRank())(model).fit(num_steps=1, progress=False)


def mixed(y):
    components = dist.Normal(torch.tensor([-3.0, 3.0]), torch.tensor([0.5, 0.5]))
    with pyro.plate("n", len(y)):
        z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), components))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.mark.parametrize("family", [vr.FullRank(), vr.MeanField()])
def test_a_mixture_as_a_prior(family):
    """Pyro gives a mixture a support of its own, that of its components."""
    y = torch.tensor([2.5, -3.5])
    density = 0.3 * norm(-3.0, 1.25**0.5).pdf(y) + 0.7 * norm(3.0, 1.25**0.5).pdf(y)
    posterior = vr.guide(family)(mixed).fit(y, num_steps=600, seed=1, progress=False)
    value, error = posterior.elbo(4_000)
    assert -0.02 < value - np.log(density).sum() < 4.0 * error + 1e-6


def test_a_mixture_of_bounded_parts_is_refused():
    def model():
        parts = dist.Uniform(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))
        pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))

    with pytest.raises(vr.SiteError, match="no bijection from the reals"):
        vr.guide(vr.MeanField())(model).fit(num_steps=2, progress=False)
