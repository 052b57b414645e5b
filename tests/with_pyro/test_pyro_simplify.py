"""A captured graph without what changes nothing: the same results to the last bit, and each its caller's own."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from vi_reparam_pyro.capture.capture import Captured
from vi_reparam_pyro.ops.ops import ops

X, W = torch.linspace(-1.0, 2.0, 12).reshape(3, 4), torch.linspace(0.1, 0.9, 4)


def idle(x, w):
    """Seven operations, of which four change nothing."""
    y = (x.expand(3, 4).reshape(3, 4) * 1.0 + 0.0).sum(0)
    return ((y * w).exp(),)


def twice(x, w):
    return (torch.tanh(x @ w) + torch.tanh(x @ w) * torch.sin(x @ w),)


def of_nothing(x, w):
    """A power of one, sums of one number, and what takes but a form: one operation of four, the last two folded."""
    return ((x.sum() ** 1.0).sum() * torch.neg(torch.ones_like(w)),)


def written(x, w):
    """What is written to is neither one with what it was made of nor with what looks the same."""
    first, second = x * 1.0, x * 1.0
    first.add_(w)
    third = x * 1.0
    second.mul_(w)
    return first.clone() + third, second, x + 0.0


def constant(x, w):
    scale = torch.ones(4).cumsum(0).exp()
    return (x * scale + w.clone(), scale)


def stretched(x, w):
    """Shapes and strides that do change."""
    return (x.t().contiguous().view(12), w.expand(3, 4) * 1, x.t() * 1.0)


@pytest.mark.parametrize(
    ("function", "operations"),
    [(idle, 3), (twice, 5), (of_nothing, 2), (written, None), (constant, None), (stretched, None)],
)
def test_the_same_to_the_last_bit(function, operations):
    graph = Captured(function, (X, W))
    for x, w in ((X, W), (X.flip(0) * 1.7, W**2)):
        for one, other in zip(function(x.clone(), w.clone()), graph(x, w), strict=True):
            assert torch.equal(one, other) and one.stride() == other.stride()
    if operations is not None:
        calls = [n for n in graph._graph.graph.nodes if n.op == "call_function"]
        plain = [n for n in make_fx(function)(X, W).graph.nodes if n.op == "call_function"]
        assert len(calls) == operations < len(plain)


def test_noise_is_drawn_as_often_as_it_was():
    def noisy(x, w):
        key = ops.key(3)
        return (x + ops.normal(key, (3, 4), x.dtype) - ops.normal(ops.split(key, 2)[0], (3, 4), x.dtype) * w,)

    graph = Captured(noisy, (X, W))
    assert torch.equal(graph(X, W)[0], noisy(X, W)[0])
    assert sum("normal" in str(n.target) for n in graph._graph.graph.nodes) == 2


def test_a_result_may_be_written_to():
    """An optimizer that clips writes to gradients: not to another one, to an argument, or to a constant."""

    def shared(x, w):
        y = torch.sin(w)
        return y, y * 1.0, w.expand(4), torch.ones(4).exp(), y.view(2, 2)

    graph = Captured(shared, (X, W))
    w = W.clone()
    expected = shared(X, W)
    for _ in range(2):
        found = graph(X, w)
        for one, other in zip(expected, found, strict=True):
            assert torch.equal(one, other)
            other.mul_(2.0)
        assert torch.equal(w, W)
