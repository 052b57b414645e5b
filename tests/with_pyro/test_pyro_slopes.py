"""The slope of gamma draws as one operation of a capture, and formulas that cancel, in twice the precision."""

import pytest
import torch

from vi_reparam.families.gamma import log_ratio
from vi_reparam.numerics import gamma_slope as core
from vi_reparam.numerics import special
from vi_reparam_pyro.capture.capture import Captured
from vi_reparam_pyro.lanes import vmap as lanes
from vi_reparam_pyro.ops.gamma_slope import SLOPES, WRITTEN_OUT, in_blocks, written_out
from vi_reparam_pyro.ops.ops import ops

A = torch.exp(torch.linspace(-2.0, 4.0, 3 * 500, dtype=torch.float32)).reshape(3, 500)
W = (0.8 * torch.sin(torch.arange(1_500.0, dtype=torch.float32)) / A.reshape(-1).sqrt()).reshape(3, 500)


def slope_in_lanes(w, a):
    a = a.detach().requires_grad_()
    total = lanes.vectorized(lambda w, a: ops.with_slope(w, a, core.ratio_slope).sum(), 3, 0, w, a).sum()
    return total.detach(), torch.autograd.grad(total, a)[0]


def test_in_lanes_and_captured_it_is_the_fast_form():
    expected = in_blocks(core.ratio_slope, W, A)
    assert torch.equal(slope_in_lanes(W, A)[1], expected)
    graph = Captured(slope_in_lanes, (W, A))
    assert torch.equal(graph(W, A)[1], expected)
    assert sum(node.target in SLOPES for node in graph._graph.graph.nodes) == 1
    assert not torch.equal(graph(W, 1.5 * A)[1], expected)
    assert torch.equal(graph(W, 1.5 * A)[1], in_blocks(core.ratio_slope, W, 1.5 * A))


def test_for_a_compiler_it_is_written_out():
    graph = Captured(slope_in_lanes, (W, A))
    flat = written_out(graph._graph, (W, A))
    assert not any(node.target in SLOPES for node in flat.graph.nodes)
    assert abs(len(flat.graph.nodes) - graph.size) < 0.1 * WRITTEN_OUT
    found, expected = (1.0 / A + run(W, A)[1] for run in (flat, graph))
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=0.0)
    assert written_out(flat, (W, A)) is flat


@pytest.mark.parametrize(("few", "dtype"), [(slice(0, 20), torch.float32), (slice(None), torch.float64)])
def test_of_few_lanes_and_in_float64_it_is_the_cores_form(few, dtype):
    graph = Captured(slope_in_lanes, (W[:, few].to(dtype), A[:, few].to(dtype)))
    assert not any(node.target in SLOPES for node in graph._graph.graph.nodes)


@pytest.mark.parametrize(
    ("function", "least"), [(special.expm1_minus, -30.0), (special.minus_log1p, -0.999)], ids=["expm1", "log1p"]
)
def test_what_cancels_is_exact_in_float32(function, least):
    size = torch.logspace(-6.0, 1.2, 400, dtype=torch.float64)
    x = torch.cat([-size[-size > least], size]).float()

    def with_slopes(x):
        x = x.detach().requires_grad_()
        value = function(x)
        (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        return value, first, second

    for found, expected in zip(with_slopes(x), with_slopes(x.double()), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=3e-7, atol=0.0)


def test_a_ratio_near_one_and_one_that_has_left_the_range():
    a = torch.tensor([5.0, 1e4, 2.0, 2.0, 0.01], dtype=torch.float32)
    log_unit = torch.log(a) + torch.tensor([1e-4, -3e-5, 3.0, 120.0, -300.0], dtype=torch.float32)
    unit = torch.exp(log_unit.double()).clamp(1e-45, 1e38).float()
    unit[4] = 0.0
    unit, log_unit, a = (x.requires_grad_() for x in (unit, log_unit, a))
    w = log_ratio(unit, log_unit, a)
    exact = torch.log(unit.detach().double() / a.detach().double())
    torch.testing.assert_close(w[:3].double(), exact[:3], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(w[4], log_unit[4] - torch.log(a[4]), rtol=1e-6, atol=0.0)
    for slope in torch.autograd.grad(w.sum(), (unit, log_unit, a)):
        assert torch.isfinite(slope).all()
