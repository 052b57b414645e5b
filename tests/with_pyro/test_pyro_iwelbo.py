"""vr.IWELBO in Pyro: its gradients against quadrature, what it refuses; and path gradients of any guide."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from bounds import PARAMS, Y, slopes

import vi_reparam_pyro as vr
from vi_reparam.objectives.multisample import GRADIENTS
from vi_reparam_pyro.host.params import using
from vi_reparam_pyro.ops.ops import mix


def model():
    z = pyro.sample("z", dist.Normal(pyro.param("t", torch.tensor(PARAMS["t"])), 1.0))
    u = pyro.sample("u", dist.Normal(z, 1.0))
    pyro.sample("y", dist.Normal(u, 0.5), obs=torch.tensor(Y))


def guide():
    loc, scale = pyro.param("m", torch.tensor(PARAMS["m"])), pyro.param("s", torch.tensor(PARAMS["s"]))
    z = pyro.sample("z", dist.Normal(loc, scale))
    pyro.sample("u", dist.Normal(pyro.param("a", torch.tensor(PARAMS["a"])) * z, 0.7))


def _gradients(objective, guide, num):
    found = []
    for number in range(num):
        leaves = {name: torch.tensor(value, requires_grad=True) for name, value in PARAMS.items()}
        with using(leaves):
            loss = objective.surrogate(mix(number + 1), model, guide, (), {})[0]
        found.append(torch.stack(torch.autograd.grad(-loss, list(leaves.values()))))
    return dict(zip(PARAMS, torch.stack(found).numpy().T, strict=True))


@pytest.mark.parametrize(
    ("gradient", "estimated"),
    [  # the NumPyro backend has them all every day
        pytest.param(gradient, estimated, marks=() if gradient == GRADIENTS[0] and estimated else pytest.mark.slow)
        for gradient in GRADIENTS
        for estimated in (False, True)
    ],
)
def test_the_gradient_is_that_of_the_bound(gradient, estimated):
    own = vr.estimate(guide, vr.Auto()) if estimated else guide
    found = _gradients(vr.IWELBO(2, gradient=gradient), own, 800)
    for name, exact in slopes().items():
        values = found[name]
        assert abs(values.mean() - exact) < 4.0 * values.std() / np.sqrt(len(values)), name


@pytest.mark.slow  # the NumPyro backend's is not
def test_the_doubly_reparameterized_one_has_the_smaller_variance():
    doubly, plain = (_gradients(vr.IWELBO(16, gradient=g), guide, 300) for g in GRADIENTS)
    for name in ("m", "s", "a"):
        assert np.var(doubly[name]) < 0.7 * np.var(plain[name])


def test_it_goes_where_an_elbo_goes():
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), vr.IWELBO(8))
    assert np.isfinite([svi.step() for _ in range(20)]).all()


def funnel():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(0.0, torch.exp(x)))


def test_a_fit_by_it_is_captured_and_below_the_evidence():
    """The funnel's evidence is one."""
    guided = vr.guide(vr.FullRank(), objective=vr.IWELBO(32))(funnel)
    posterior = guided.fit(num_steps=600, progress=False)
    assert posterior.record["steps"] in ("captured", "compiled")
    tail = -posterior.losses[-200:]
    assert posterior.elbo()[0] < tail.mean() < 3.0 * tail.std() / np.sqrt(200)


def halves(batch=None):
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", 4, subsample_size=batch) as rows:
        pyro.sample("y", dist.Normal(a, 1.0), obs=torch.arange(4.0)[rows])


@pytest.mark.parametrize(
    ("family", "options", "batch", "match"),
    [
        (vr.MeanField(), {"estimators": vr.ScoreFunction()}, None, r"'a': ScoreFunction.*IWELBO would drop"),
        (vr.MeanField(), {"estimators": {"a": vr.Rejection()}}, None, r"'a': Rejection.*IWELBO would drop"),
        (vr.MeanField(), {}, 2, "plate 'rows' is subsampled, and IWELBO"),
        (vr.FullRank(gradient="reparameterization"), {}, None, "biased under IWELBO.*doubly"),
        (vr.SDE(gradient="log_variance"), {}, None, "IWELBO"),
    ],
)
def test_what_would_be_wrong_is_refused(family, options, batch, match):
    with pytest.raises(vr.GradientError, match=match):
        vr.guide(family, objective=vr.IWELBO(4), **options)(halves).fit(batch, num_steps=2, progress=False)


def shared():
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def test_a_parameter_of_both_sides_is_refused():
    with pytest.raises(vr.GradientError, match="'loc' is in the guide and in the model"):
        vr.IWELBO(2).differentiable_loss(shared, shared)


def test_network_weights_in_log_q_are_refused():
    net = torch.nn.Linear(1, 1)

    def own():
        pyro.module("net", net)
        pyro.sample("z", dist.Normal(net(torch.ones(1))[0], 1.0))

    def plain():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(vr.GradientError, match="network weights 'net"):
        vr.IWELBO(2).differentiable_loss(plain, own)
    assert torch.isfinite(vr.IWELBO(2, gradient="reparameterization").differentiable_loss(plain, own))


def conjugate():
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    pyro.sample("z", dist.Normal(0.3, 0.7))
    pyro.sample("y", dist.Poisson(a), obs=torch.tensor(3.0))


def test_path_gradients_of_a_mean_field_vanish_at_the_posterior():
    """The posterior is Gamma(5, 2) times the prior of z."""
    guided = vr.guide(vr.MeanField(), estimators=vr.Implicit())(conjugate)
    exact = {"a_concentration": 5.0, "a_mean": 2.5, "z_loc": 0.3, "z_scale": 0.7}
    for entropy, largest in (("path", 1e-12), ("monte_carlo", None)):
        leaves = {name: torch.tensor(value, requires_grad=True) for name, value in exact.items()}
        with using(leaves):
            loss = vr.ELBO(4, entropy=entropy).surrogate(mix(1), guided.model, guided.guide, (), {})[0]
        size = max(abs(float(g)) for g in torch.autograd.grad(loss, list(leaves.values())))
        assert size < largest if largest else size > 1e-3
