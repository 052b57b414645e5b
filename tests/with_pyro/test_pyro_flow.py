"""vr.Flow in Pyro: the identity at the start, densities that fit their draws, path gradients that agree."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import multivariate_normal

import vi_reparam_pyro as vr
from vi_reparam.gaussians.skew import skew
from vi_reparam.gaussians.tails import widen
from vi_reparam.guides.flow import KINDS
from vi_reparam_pyro.host.params import first_parameters, using
from vi_reparam_pyro.host.statements import host

KEY = 20170613
INVERTED = [kind for kind in KINDS if kind != "block_autoregressive"]


def small(kind, **options):
    return vr.Flow(kind=kind, num_layers=2, hidden=4, **options)


def banana():
    z = pyro.sample("z", dist.LogNormal(torch.zeros(3), 1.0).to_event(1)).log()  # bent in its logarithm
    pyro.factor("bend", -0.5 * ((z[1] - 0.5 * z[0] ** 2) / 0.7) ** 2)


def standard():
    pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def parameters(guided, *, noise=0.0, tail=0.0):
    """Parameters in a frame that is not the identity, the weights moved by some noise."""
    params = first_parameters(guided.model, guided.guide, (), {}, key=5).values()
    torch.manual_seed(1)
    moved = {name: value + noise * torch.randn_like(value) for name, value in params.items()}
    prefix = "flow" if "flow_tail" in params else "gaussian"
    root = torch.tensor([[0.8, 0.0, 0.0], [0.3, 1.1, 0.0], [-0.2, 0.4, 0.6]])
    frame = {"center": torch.tensor([0.1, -0.2, 0.3]), "root": root, "tail": torch.tensor(tail)}
    return {**moved, **{f"{prefix}_{name}": value for name, value in frame.items()}}


def loss_of(guided, params, key=KEY):
    with using(params):
        return guided.objective.surrogate(key, guided.model, guided.guide, (), {})[0]


@pytest.mark.parametrize("kind", INVERTED)
def test_it_starts_as_the_gaussian(kind):
    flow, gaussian = (vr.guide(family, objective=vr.ELBO(20))(banana) for family in (small(kind), vr.FullRank()))
    own = parameters(gaussian)
    held = {name: torch.zeros_like(value) for name, value in own.items() if not name.endswith(("center", "root"))}
    expected = loss_of(gaussian, {**own, **held})
    assert float(loss_of(flow, parameters(flow))) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_log_q_is_the_change_of_variables(kind):
    guided = vr.guide(small(kind))(banana)
    params, layout = parameters(guided, noise=0.4, tail=0.03), guided.base_guide.layout((), {})
    network = host.bijection(small(kind), 3, None)
    bijection = network.bind({name: params[f"flow_{name}"] for name in network.names})

    def place(noise):
        x = skew(vr.ops, widen(vr.ops, noise, params["flow_tail"])[0], params["flow_skew"])[0]
        return params["flow_center"] + params["flow_root"] @ bijection.at(x, None)[0]

    with using(params), torch.no_grad():
        made = guided.base_guide.distribution(layout, (), {}).make(KEY)
    noise, step = vr.ops.normal(KEY, (3,), torch.float64), 1e-4
    torch.testing.assert_close(made.value, place(noise), rtol=1e-12, atol=1e-12)
    columns = []
    for e in step * torch.eye(3):
        near, far = place(noise + e) - place(noise - e), place(noise + 2 * e) - place(noise - 2 * e)
        columns.append((8.0 * near - far) / (12.0 * step))
    expected = dist.Normal(0.0, 1.0).log_prob(noise).sum() - torch.stack(columns).slogdet()[1]
    # Pyro's block layer adds 1e-8 inside its logarithms
    assert float(made.log_q) == pytest.approx(float(expected), abs=1e-5 if kind == "block_autoregressive" else 1e-8)


@pytest.mark.parametrize("kind", INVERTED)
def test_the_path_gradient_vanishes_where_q_is_the_posterior(kind):
    guided = vr.guide(small(kind), objective=vr.ELBO(5))(standard)
    params = parameters(guided)
    params |= {"flow_center": torch.zeros(3), "flow_root": torch.eye(3)}
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    grads = torch.autograd.grad(loss_of(guided, leaves), list(leaves.values()), allow_unused=True)
    used = [g for g in grads if g is not None]
    assert len(used) == len(grads) - 3  # all but the frame and the tail
    assert max(float(g.abs().max()) for g in used) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_both_gradients_have_the_same_mean(kind):
    found = {}
    for gradient in ("path", "reparameterization"):
        guided = vr.guide(small(kind, gradient=gradient), objective=vr.ELBO(300))(banana)
        leaves = {n: v.requires_grad_() for n, v in parameters(guided, noise=0.4).items() if not n.endswith("tail")}
        params = {**leaves, "flow_tail": torch.zeros(())}
        moving = [v for n, v in leaves.items() if not n.endswith(("center", "root"))]
        flat = [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss_of(guided, params, KEY + i), moving)])
            for i in range(40)
        ]
        found[gradient] = torch.stack(flat)
    difference, scale = found["path"] - found["reparameterization"], found["path"].abs().max()
    moving = difference.std(0) > 1e-6 * scale  # Pyro's block layers have weights that do nothing
    z = (difference.mean(0) / (difference.std(0) / 40**0.5))[moving]
    assert len(z) > 20  # they are not the same estimator
    assert float(z.abs().max()) < 5.0  # Student's t with 39 degrees of freedom, of about a hundred


def regression(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)


def test_a_fit_its_file_and_its_evidence(tmp_path):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(20, 2))
    y = x @ np.array([1.0, -2.0]) + 0.5 * rng.normal(size=20)
    evidence = multivariate_normal(np.zeros(20), x @ x.T + 0.25 * np.eye(20)).logpdf(y)
    guided = vr.guide(small("inverse_autoregressive"), objective=vr.ELBO(16))(regression)
    posterior = guided.fit(x, y, num_steps=120, progress=False)
    assert posterior.record["steps"] == "captured"
    elbo, error = posterior.elbo()
    assert abs(elbo - evidence) < 0.01 + 4.0 * error
    assert posterior.khat < 0.5
    posterior.save(tmp_path / "posterior.vr")
    again = vr.load(tmp_path / "posterior.vr", vr.guide(small("inverse_autoregressive"))(regression))
    np.testing.assert_allclose(again.draws(20)["w"], posterior.draws(20)["w"])
    assert again.elbo() == posterior.elbo()


@pytest.mark.parametrize("kind", KINDS)
def test_one_coordinate(kind):
    def model():
        pyro.sample("z", dist.Gamma(2.0, torch.tensor(1.0)))

    guided = vr.guide(small(kind), objective=vr.ELBO(3))(model)
    params = first_parameters(guided.model, guided.guide, (), {}, key=5).values()
    assert np.isfinite(float(loss_of(guided, params)))


def test_it_goes_into_pyros_own_loop():
    guided = vr.guide(small("inverse_autoregressive"))(banana)
    svi = pyro.infer.SVI(guided.model, guided.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    assert np.isfinite([svi.step() for _ in range(3)]).all()
    biased = pyro.infer.SVI(guided.model, guided.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.RenyiELBO())
    with pytest.raises(vr.GradientError, match="biased under RenyiELBO"):
        biased.step()
