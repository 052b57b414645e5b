"""Same noise, same numbers: the objective's value and gradient, for every guide family and estimator, to 1e-10."""

import numpy as np
import pyro
import pyro.distributions as tdist
import pytest
import torch
from contract.plain import plain_rejection_loop

import vi_reparam_pyro as vrt
from vi_reparam.estimators import Implicit, MeasureValued, Rejection, ScoreFunction
from vi_reparam_pyro.host.params import Parameters, first_parameters, using

jax = pytest.importorskip("jax")
numpyro = pytest.importorskip("numpyro")
import numpyro.distributions as jdist  # noqa: E402

import vi_reparam_numpyro as vrj  # noqa: E402

Y = np.array([3.0, 0.0, 4.0, 1.0])
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiled once, run once


class Fixed:
    """An Ops whose noise depends on its shape alone, and whose proposals are accepted at once."""

    def __init__(self, ops):
        self._ops = ops

    def __getattr__(self, name):
        return getattr(self._ops, name)

    def rejection_loop(self, attempt, key, shape, params, max_rounds):
        return plain_rejection_loop(self, attempt, key, shape, params, max_rounds)

    def normal(self, key, shape, dtype):
        return self._ops.xp.asarray(0.5 * np.sin(1.0 + np.arange(np.prod(shape, dtype=int))).reshape(shape))

    def uniform(self, key, shape, dtype):
        return self._ops.xp.asarray(0.2 + 0.1 * np.cos(np.arange(np.prod(shape, dtype=int))).reshape(shape))


@pytest.fixture(autouse=True)
def same_noise(monkeypatch):
    for package in ("vi_reparam_numpyro", "vi_reparam_pyro"):
        module = __import__(f"{package}.host.distributions", fromlist=["ops"])
        monkeypatch.setattr(module, "ops", Fixed(module.ops))


def program(host, dist, xp, entropy):
    """A model with a latent on each support, local ones in a plate."""

    def model(y):
        level = host.sample("level", dist.Normal(0.0, 2.0))
        scale = host.sample("scale", dist.LogNormal(xp.asarray(0.0), xp.asarray(1.0)))
        share = host.sample("share", dist.Dirichlet(xp.asarray([1.0, 2.0, 3.0])))
        half = host.sample("half", dist.Beta(xp.asarray(2.0), xp.asarray(3.0)))
        bounded = dist.Uniform(xp.asarray(-2.0), xp.asarray(3.0))  # its guide has no entropy in closed form
        between = host.sample("between", dist.Normal(0.0, 1.0) if entropy == "analytic" else bounded)
        pair = host.sample("pair", dist.Gamma(xp.asarray(2.0), xp.asarray(1.0)).expand([2]).to_event(1))
        with host.plate("n", len(y)):
            z = host.sample("z", dist.Gamma(xp.asarray(1.5), scale))
            rate = z * xp.exp(0.1 * level * between) * (half + share[0] + pair.sum())
            host.sample("y", dist.Poisson(rate), obs=y)

    return model


def in_torch(family, estimators, entropy):
    guided = vrt.guide(family, estimators=estimators, objective=vrt.ELBO(entropy=entropy))(
        program(pyro, tdist, torch_like, entropy)
    )
    y = torch.as_tensor(Y)
    first = first_parameters(guided.model, guided.guide, (y,), {}, key=0)
    held = Parameters({n: v.detach() for n, v in first.free.items()}, first.constraints).values()
    leaves = {n: v.clone().requires_grad_() for n, v in held.items()}
    with using(leaves):
        loss = guided.objective.differentiable_loss(guided.model, guided.guide, y)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return (
        {n: v.numpy() for n, v in held.items()},
        float(loss),
        dict(zip(leaves, (g.numpy() for g in grads), strict=True)),
    )


def in_jax(family, estimators, entropy, held):
    guided = vrj.guide(family, estimators=estimators, objective=vrj.ELBO(entropy=entropy))(
        program(numpyro, jdist, jax.numpy, entropy)
    )

    with jax.enable_x64(True):
        y, params = jax.numpy.asarray(Y), {n: jax.numpy.asarray(v) for n, v in held.items()}
        guided.objective.check_at(lambda key: params, guided.model, guided.guide, (y,), {})

        def loss(params):
            return guided.objective.loss(jax.random.key(0), params, guided.model, guided.guide, y)

        value, grads = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params)
        return float(value), {n: np.asarray(g) for n, g in grads.items()}


class torch_like:  # noqa: N801
    """The names that the program takes from an array module."""

    exp = staticmethod(torch.exp)

    @staticmethod
    def asarray(x):
        return torch.as_tensor(x, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize(
    ("families", "estimators", "entropy"),
    [
        pytest.param({}, Implicit(), "monte_carlo", marks=pytest.mark.slow),  # the last has all but one of its draws
        pytest.param({}, Implicit(), "analytic", marks=pytest.mark.slow),
        pytest.param({}, {"*": Rejection(boost=1, baseline=None)}, "monte_carlo", marks=pytest.mark.slow),
        ({}, {"*": Rejection(boost=1, baseline=None)}, "analytic"),
        ({}, {"level": MeasureValued(), "*": ScoreFunction(baseline=None)}, "monte_carlo"),
        pytest.param({}, {"*": ScoreFunction(baseline=None)}, "monte_carlo", marks=pytest.mark.slow),
        pytest.param(
            {}, {"level": MeasureValued(), "*": Rejection(baseline=None)}, "monte_carlo", marks=pytest.mark.slow
        ),
        ({"z": "inverse_gamma", "scale": "transformed_normal"}, Implicit(), "monte_carlo"),
    ],
    ids=lambda v: v if isinstance(v, str) else repr(v),
)
def test_values_and_gradients_agree(families, estimators, entropy):
    family = vrt.MeanField(families=families)
    held, value, grads = in_torch(family, estimators, entropy)
    other, other_grads = in_jax(family, estimators, entropy, held)
    assert value == pytest.approx(other, rel=1e-10, abs=1e-10)
    assert grads.keys() == other_grads.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, other_grads[name], rtol=1e-10, atol=1e-10, err_msg=name)
    assert all(np.any(g != 0.0) for g in grads.values())
