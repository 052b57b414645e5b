"""Draws that a Pyro model makes numbers of Python of: torch drops their gradient without a word."""

import pytest
import torch

vr = pytest.importorskip("vi_reparam_pyro")
OPTIONS = {"num_steps": 2, "num_particles": 1, "progress": False}


def model_of(read):
    def model(y):
        a = vr.host.sample("a", vr.host.dist.Normal(vr.host.array(0.0), vr.host.array(5.0)))
        vr.host.sample("y", vr.host.dist.Normal(read(a), vr.host.array(0.5)), obs=y)

    return vr.guide(vr.MeanField())(model)


READS = {
    "float": lambda a: torch.tensor(float(a)),
    "item": lambda a: torch.ones(()) * a.item(),
    "tensor of a list": lambda a: torch.tensor([a, a]).sum(),
    "numpy": lambda a: torch.as_tensor(a.numpy()),
    "tolist": lambda a: torch.ones(()) * a.reshape(1).tolist()[0],
    "through others": lambda a: torch.ones(()) * float(torch.exp(a) + 1.0),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize("what", READS)
def test_a_draw_that_becomes_a_number_is_refused(what):
    with pytest.raises(vr.ViReparamError, match=r"makes a number of Python of a draw .*: keep it a tensor") as caught:
        model_of(READS[what]).fit(torch.tensor(1.0), **OPTIONS)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


SEEN = {
    "shown": lambda a: a if f"{a} {a!r}" else 2.0 * a,
    "chosen by": lambda a: a if a.item() < 1e9 and float(a) > -1e9 else 2.0 * a,
    "detached": lambda a: a if a.detach().item() < 1e9 else 2.0 * a,
    "compared": lambda a: a if a > -1e9 else 2.0 * a,
    "stacked": lambda a: torch.stack([a, a]).sum(),
}


@pytest.mark.parametrize("what", SEEN)
def test_a_draw_that_is_looked_at_is_no_matter(what):
    model_of(SEEN[what]).fit(torch.tensor(1.0), **OPTIONS)


def test_a_discrete_draw_may_be_a_number():
    def model(y):
        n = vr.host.sample("n", vr.host.dist.Poisson(torch.tensor(3.0)))
        vr.host.sample("y", vr.host.dist.Normal(torch.tensor(float(int(n))), torch.tensor(1.0)), obs=y)

    guided = vr.guide(vr.MeanField(), estimators={"n": vr.ScoreFunction()})(model)
    guided.fitter.check(guided.backend.engine.data((torch.tensor(1.0),), {}), guided.backend.engine.key(0))
