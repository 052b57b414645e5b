"""A captured step run by torch's interpreter of scripts: the same to the last bit, at any noise."""

import pytest
import torch

from vi_reparam_pyro.capture import capture
from vi_reparam_pyro.capture.capture import Captured
from vi_reparam_pyro.lanes.seeding import salted
from vi_reparam_pyro.ops import noise

X, W = torch.linspace(-1.0, 2.0, 12).reshape(3, 4), torch.linspace(0.1, 0.9, 4)
TABLE = torch.linspace(1.0, 3.0, 4)


def step(x, w):
    """Noise of two kinds, a constant, a list of tensors, a write in place, a derivative."""
    x = x.detach().requires_grad_()
    with torch.no_grad():
        counts = noise.poisson(5, TABLE.expand(3, 4))
    first, second = (x * w + noise.normal(3, (3, 4), x.dtype)).split([1, 3], 1)
    scratch = torch.zeros(3, 4, dtype=x.dtype)
    scratch.add_(counts)
    loss = (torch.cat([second, first], 1) * scratch / TABLE).logsumexp(1).sum()
    return loss.detach(), torch.autograd.grad(loss, x)[0], w * noise.uniform(4, (4,), w.dtype)


def test_the_same_to_the_last_bit_at_other_noise():
    graph = Captured(step, (X, W))
    graph.script(X, W)
    assert graph._run is not graph._graph
    found = []
    for salt, x, w in ((1, X, W), (2, X, W), (2, X.flip(0) * 1.7, W**2)):
        with salted(salt):
            expected, results = graph._graph(x, w), graph(x, w)
        assert all(torch.equal(one, other) for one, other in zip(expected, results, strict=True))
        found.append(results)
    assert not torch.equal(found[0][0], found[1][0]) and not torch.equal(found[0][2], found[1][2])


def test_results_are_new_at_every_run():
    graph = Captured(step, (X, W))
    graph.script(X, W)
    first = graph(X, W)
    expected = [x.clone() for x in first]
    for x in graph(X, W):
        x.mul_(2.0)
    assert all(torch.equal(one, other) for one, other in zip(expected, first, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(expected, graph(X, W), strict=True))


@pytest.mark.parametrize("wrong", ["frozen noise", "a last bit", "an error"])
def test_a_script_that_is_not_the_graph_is_not_used(monkeypatch, wrong):
    def scripted(graph, arguments):
        if wrong == "an error":
            raise RuntimeError("no such operator")
        frozen = graph(*arguments)
        if wrong == "frozen noise":
            return lambda *tensors: frozen
        return lambda *tensors: tuple(torch.nextafter(x, x + 1.0) for x in graph(*tensors))

    monkeypatch.setattr(capture, "scripted", scripted)
    graph = Captured(step, (X, W))
    graph.script(X, W)
    assert graph._run is graph._graph


def test_what_is_compiled_stays_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function.forward)
    graph = Captured(step, (X, W))
    graph.compile(X, W)
    run = graph._run
    graph.script(X, W)
    assert graph.how == "compiled" and graph._run is run


def test_the_interpreter_of_scripts_is_left_as_it_was():
    graph = Captured(step, (X, W))
    before = torch._C._get_graph_executor_optimize()
    graph.script(X, W)
    graph(X, W)
    assert torch._C._get_graph_executor_optimize() == before
