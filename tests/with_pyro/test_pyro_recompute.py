"""Steps computed again for their derivative: the same gradient, whatever they rest on, for an eighth of the memory."""

import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_reparam_pyro as vr
from vi_reparam_pyro.capture.capture import Captured
from vi_reparam_pyro.host.params import Parameters, first_parameters, using
from vi_reparam_pyro.lanes.recompute import Recomputed
from vi_reparam_pyro.lanes.vmap import vectorized, without_validation
from vi_reparam_pyro.ops.ops import ops

Y = torch.tensor([1.2, -0.3, 0.8], dtype=torch.float64)


def funnel(y):
    scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    x = pyro.sample("x", dist.Normal(torch.zeros(2), scale * torch.exp(0.5 * v)).to_event(1))
    pyro.sample("y", dist.Normal(x.sum(), 1.0).expand([3]).to_event(1), obs=y)


def rows(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("n", len(y)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


class Drift(torch.nn.Module):
    """Of three dimensions; its weights start the same in every instance."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)
        for number, p in enumerate(self.parameters()):
            p.data = torch.linspace(-0.2, 0.3 + 0.1 * number, p.numel()).reshape(p.shape)

    def forward(self, x, lam):
        return self.second(torch.tanh(self.first(torch.cat([x, lam.reshape(1)]))))


def program(model, family, objective):
    """The loss and gradients of a guide at parameters off their start, as a function of the leaves."""
    guided = vr.guide(family, objective=objective)(model)
    with pyro.get_param_store().scope():
        params = first_parameters(guided.model, guided.guide, (Y,), {}, key=0)
    names = list(params.free)
    moved = [
        (leaf.detach() + 0.1 * torch.sin(torch.arange(leaf.numel()) + number).reshape(leaf.shape))
        for number, leaf in enumerate(params.free.values())
    ]
    for leaf, value in zip(params.free.values(), moved, strict=True):
        leaf.data = value.clone()

    def function(*leaves):
        # a network's weights are read where they are
        own = [old if isinstance(old, torch.nn.Parameter) else x.detach().requires_grad_()
               for old, x in zip(params.free.values(), leaves, strict=True)]  # fmt: skip
        with using(Parameters(dict(zip(names, own, strict=True)), params.constraints).constrained()):
            loss = guided.objective.surrogate(5, guided.model, guided.guide, (Y,), {}, averages={})[0]
        found = torch.autograd.grad(loss, own, allow_unused=True)
        return loss.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(own, found, strict=True))

    return function, tuple(moved)


def sde(**options):
    return lambda checkpoint: vr.SDE(
        **{"warm_start": 0, "num_steps": 4, "network": vr.MLP(width=8), **options}, checkpoint=checkpoint
    )


def local(**options):
    return lambda checkpoint: vr.Sites(
        {"z": sde(condition="y", base="diagonal", **options)(checkpoint), "*": vr.MeanField()}
    )


CASES = {
    "one particle, and a parameter of the model": (funnel, sde(), vr.ELBO(1)),
    "lanes": (funnel, sde(), vr.ELBO(3)),
    "particles one by one": (funnel, sde(), vr.ELBO(3, vectorize_particles=False)),
    "a mixture base, closed over by each lane": (funnel, sde(base="mixture"), vr.ELBO(3)),
    "a gradient through everything": (
        funnel,
        sde(gradient="reparameterization", solver=vr.Adams(order=2)),
        vr.IWELBO(3, gradient="reparameterization"),
    ),
    "a score term": (funnel, sde(gradient="log_variance"), vr.ELBO(3)),
    "the elements of a plate, one particle": (rows, local(), vr.ELBO(1)),
    "the elements of a plate in lanes": (rows, local(), vr.ELBO(3)),
    "a network of one's own": (funnel, lambda c: sde(network=Drift())(c), vr.ELBO(3)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_gradient(case):
    model, family, objective = CASES[case]
    kept, again = (
        function(*start) for function, start in (program(model, family(c), objective) for c in (False, True))
    )
    assert max(float(g.abs().max()) for g in kept[1:]) > 1e-3
    for one, other in zip(kept, again, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_a_capture_computes_again_too():
    function, start = program(funnel, sde()(True), vr.ELBO(3))
    expected = function(*start)
    with without_validation():
        graph = Captured(function, start)
    other = tuple(x + 0.01 for x in start)
    for one, two in zip((*expected, *function(*other)), (*graph(*start), *graph(*other)), strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)


def test_what_the_first_step_did_not_rest_on_is_refused():
    weights = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)

    def body(state, x):
        state = state * weights[int(x > 0.0)]
        return state, state

    (end, _) = ops.scan(body, torch.tensor(1.0), torch.tensor([-1.0, -1.0]), checkpoint=True)
    assert torch.autograd.grad(end, weights[0])[0] == 4.0
    (end, _) = ops.scan(body, torch.tensor(1.0), torch.tensor([-1.0, 1.0]), checkpoint=True)
    with pytest.raises(vr.GradientError, match="checkpoint=False"):
        end.backward()


def test_inside_a_derivative_of_torch_func():
    w = torch.tensor(0.7)

    def of(w, checkpoint):
        body = lambda state, x: (torch.sin(w * state + x), state)  # noqa: E731
        return ops.scan(body, torch.tensor(0.3), torch.tensor([0.1, 0.2]), checkpoint=checkpoint)[0]

    assert torch.func.grad(of)(w, True) == torch.func.grad(of)(w, False)


def test_the_numbers_inside_are_let_go():
    """Of a function whose inner values are a hundred times its arguments, those alone are kept."""
    w = torch.tensor(1.0, requires_grad=True)
    kept = []

    def wide(x):
        return (torch.sin(w * x.expand(100, *x.shape)).exp().sum(0),)

    def note(tensor):
        kept.append(tensor.numel())
        return tensor

    def total(x, fn):
        return vectorized(lambda row: fn(row)[0], 4, 0, x).sum()

    x = torch.linspace(0.0, 1.0, 20).reshape(4, 5).requires_grad_()
    expected = torch.autograd.grad(total(x, wide), (w, x))
    again = Recomputed(wide)
    total(x, again)  # finds what it closes over
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = total(x, again)
    assert sum(kept) < 100
    for one, other in zip(expected, torch.autograd.grad(value, (w, x)), strict=True):
        assert torch.allclose(one, other)


PEAK = """
import sys, torch, pyro, pyro.distributions as dist, vi_reparam_pyro as vr
def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), torch.exp(0.5 * v)).to_event(1))
def step(num_steps, particles):
    guided = vr.guide(vr.SDE(num_steps=num_steps, warm_start=0, checkpoint=sys.argv[1] == "True"))(funnel)
    pyro.clear_param_store()
    vr.ELBO(particles).loss_and_grads(guided.model, guided.guide)
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = step(2, 2)
print(step(128, 2_000) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's peak where Linux tells it")
def test_an_eighth_of_the_memory():
    """Of one gradient of 2,000 paths of 128 steps, each way in a process of its own."""
    peak = [
        int(subprocess.run([sys.executable, "-c", PEAK, str(c)], check=True, capture_output=True, text=True).stdout)
        for c in (False, True)
    ]
    assert peak[0] > 8.0 * peak[1], np.asarray(peak) / 1024
