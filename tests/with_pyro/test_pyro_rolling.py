"""What repeats in a captured step is found, cut out exactly, and gives the same numbers."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_reparam_pyro as vr
from vi_reparam_pyro.capture.capture import Captured
from vi_reparam_pyro.capture.repetitions import Repetition, repetitions
from vi_reparam_pyro.capture.rolling import rolled
from vi_reparam_pyro.engine import gradient as steps
from vi_reparam_pyro.lanes.seeding import salted
from vi_reparam_pyro.ops import noise

TURNS = 8


def turn(x, weight, offset):
    hidden = torch.tanh(x @ weight + offset)
    hidden = hidden * torch.sigmoid(hidden) + torch.sin(x) / (1.0 + x * x)
    return hidden - 0.5 * torch.exp(-hidden * hidden)


def differentiated(function):
    """The function's value and its gradient by both arguments."""

    def both(x, weight):
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        loss = function(x, weight)
        return loss.detach(), *torch.autograd.grad(loss, (x, weight))

    return both


def of_constants(x, weight):
    table = torch.linspace(-1.0, 1.0, TURNS)
    for t in range(TURNS):
        x = turn(x, weight, table[t])
    return x.sum()


def of_numbers(x, weight):
    for t in range(TURNS):
        x = turn(x, weight, 0.1 * t - 0.3) * (1.0 + t) - x / (t + 2)
    return x.sum()


def of_rows(x, weight):
    offsets = weight @ torch.ones(3, TURNS)  # depends on what is differentiated, so each row has a slope
    for t in range(TURNS):
        x = turn(x, weight, offsets[:, t])
    return x.sum()


def of_noise(x, weight):
    for t in range(TURNS):
        x = turn(x, weight, 0.1 * noise.normal(100 + t, (3,), x.dtype))
    return x.sum()


def of_its_past(x, weight):
    earlier = x
    for _ in range(TURNS):
        x, earlier = turn(x, weight, earlier), x
    return (x * earlier).sum()


def of_another_end(x, weight):
    for t in range(TURNS):
        x = turn(x, weight, 0.3) if t < TURNS - 1 else torch.cos(turn(x, weight, -0.3))
    return x.sum()


def of_parts(x, weight):
    for _ in range(TURNS):
        first, second, third = turn(x, weight, 0.2).unbind(-1)
        x = torch.stack((second, third * first, first), -1)
    return x.sum()


def of_scratch(x, weight):
    for _ in range(TURNS):
        own = torch.tril(weight.detach())  # not a constant: it is made, and written to, in each turn
        own.diagonal().fill_(0.7)
        x = turn(x @ own, weight, 0.2)
    return x.sum()


def of_two_loops(x, weight):
    for _ in range(TURNS):
        x = turn(x, weight, 0.2)
    x = torch.sort(x, dim=0).values
    for _ in range(2 * TURNS):
        x = torch.atan(turn(torch.softmax(x, -1), weight, 0.1))
    return x.sum()


def captured(function):
    torch.manual_seed(0)
    example = (torch.randn(5, 3), torch.randn(3, 3))
    return Captured(differentiated(function), example), example


def replays(graph, example):
    """At arguments and noise that it was not made with."""
    for salt, (x, weight) in enumerate((example, (example[0] + 0.3, 0.5 * example[1]))):
        with salted(salt):
            yield graph(x, weight)


@pytest.mark.parametrize(
    ("function", "loops"),
    [
        (of_constants, 2),
        (of_numbers, 2),
        (of_rows, 2),
        (of_noise, 2),
        (of_its_past, 2),
        (of_another_end, 2),
        (of_parts, 2),
        (of_scratch, 2),
        (of_two_loops, 4),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_turns_as_calls_are_the_turns(function, loops):
    graph, example = captured(function)
    expected = list(replays(graph, example))
    found, _ = graph.stretches(*example)
    assert len(found) == loops
    calls = []

    def counted(stretch):
        def call(*arguments):
            calls.append(stretch)
            return stretch.module(*arguments)

        return call

    graph.roll(found, counted)
    for before, after in zip(expected, replays(graph, example), strict=True):
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(other, one, rtol=0.0, atol=0.0)
    assert len(calls) == 2 * sum(len(stretch.turns) for stretch in found)
    assert all(len(stretch.turns) >= TURNS - 2 for stretch in found)
    left = [n for n in rolled(graph._graph, found, [s.module for s in found]).graph.nodes if n.op == "call_function"]
    ours = [n for n in left if "getitem" not in str(n.target)]
    assert len(ours) < graph.size / 2
    assert not any("vi_reparam" in str(n.target) for s in found for n in s.module.graph.nodes)


def test_noise_is_new_at_each_replay():
    graph, example = captured(of_noise)
    found, _ = graph.stretches(*example)
    graph.roll(found, lambda stretch: stretch.module)
    with salted(1):
        first = graph(*example)[0]
    with salted(2):
        assert graph(*example)[0] != first
    with salted(1):
        assert graph(*example)[0] == first


def test_what_does_not_repeat_is_left_alone():
    def function(x, weight):
        for t in range(TURNS):
            x = turn(torch.cat((x, x[: t + 1])), weight, 0.1)  # another shape each time
        return x.sum()

    graph, example = captured(function)
    assert graph.stretches(*example)[0] == []


def test_turns_that_write_to_one_place_stay():
    def function(x, weight):
        kept = torch.zeros(TURNS, 5, 3)
        for t in range(TURNS):
            x = turn(x, weight, 0.1)
            kept[t].copy_(x.detach())
        return x.sum() + (kept * kept).sum()

    graph, example = captured(function)
    expected = list(replays(graph, example))
    found, _ = graph.stretches(*example)
    assert len(found) == 1  # the derivative of the loop, which writes nothing
    graph.roll(found, lambda stretch: stretch.module)
    for before, after in zip(expected, replays(graph, example), strict=True):
        torch.testing.assert_close(after, before, rtol=0.0, atol=0.0)


def test_repetitions_of_a_sequence():
    body, other = list(range(20)), list(range(100, 112))
    sequence = [-1, -2, *body * 6, -3, *other * 5, 7]
    assert repetitions(sequence) == [Repetition(2, 20, 6), Repetition(123, 12, 5)]
    assert [list(sequence[t.start : t.stop]) for t in repetitions(sequence)[1].turns()] == [other] * 5
    assert repetitions(list(range(200))) == []
    assert repetitions([]) == []


def test_a_compiler_that_fails_or_is_wrong_leaves_the_graph(monkeypatch):
    graph, example = captured(of_constants)
    expected = graph(*example)
    found, values = graph.stretches(*example)

    def fails(function, **options):
        raise RuntimeError("no compiler here")

    def is_wrong(function, **options):
        return lambda *arguments: tuple(1.1 * value for value in function(*arguments))

    for compiler, reason in ((fails, "no compiler here"), (is_wrong, "another gradient")):
        monkeypatch.setattr(torch, "compile", compiler)
        graph.compile_stretches(found, values, *example)
        assert graph.how.startswith("captured, not compiled: ") and reason in graph.how
        torch.testing.assert_close(graph(*example), expected, rtol=0.0, atol=0.0)


def test_only_what_pays_is_compiled(monkeypatch):
    graph, example = captured(of_two_loops)
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(function) or function)
    for name in ("LARGE", "LARGEST"):
        monkeypatch.setattr(steps, name, graph.size - 1)
    gains = [stretch.gain for stretch in graph.stretches(*example)[0]]
    best = max(gains)
    steps._compile_if_worth_it(graph, int(0.5 * steps.WORTH_ROLLING / sum(gains)), example)
    assert (graph.how, asked) == ("captured", [])
    steps._compile_if_worth_it(graph, int(2.0 * steps.WORTH_ROLLING / best), example)
    assert graph.how.endswith("stretches compiled") and 1 <= len(asked) <= len(gains)


def test_what_is_not_too_large_is_compiled_whole(monkeypatch):
    graph, example = captured(of_two_loops)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(steps, "LARGE", graph.size - 1)
    replays = int(1.0 + 2.1 * steps.WORTH_COMPILING / graph.gain())
    assert steps.LARGE < graph.size <= steps.LARGEST
    steps._compile_if_worth_it(graph, replays, example)
    assert graph.how == "compiled"


def losses(monkeypatch, worth):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)

    for name in ("WORTH_ROLLING", "WORTH_A_STRETCH"):
        monkeypatch.setattr(steps, name, worth)
    family = vr.SDE(num_steps=6, network=vr.MLP(width=8), warm_start=0)
    guided = vr.guide(family, objective=vr.ELBO(4))(model)
    posterior = guided.fit(torch.tensor([1.2, -0.3]), num_steps=105, progress=False)
    return posterior.losses, posterior.record["steps"]


@pytest.mark.slow
def test_an_sde_fit_is_the_same_by_its_turns(monkeypatch):
    flat, how = losses(monkeypatch, 1e9)
    assert how == "captured"
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    rolled_up, how = losses(monkeypatch, 0.0)
    assert how == "captured, 5 + 4 stretches compiled"  # the first turn of six, and the last of the derivative, differ
    np.testing.assert_array_equal(rolled_up, flat)


@pytest.mark.slow
def test_a_compiled_sde_fit_is_the_same(monkeypatch):
    flat, _ = losses(monkeypatch, 1e9)
    compiled, how = losses(monkeypatch, 0.0)
    assert how.endswith(" stretches compiled") or how.startswith("captured, not compiled")
    np.testing.assert_allclose(compiled, flat, rtol=1e-6)
