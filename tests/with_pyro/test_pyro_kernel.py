"""The Triton kernels, in Triton's interpreter: their law, their slopes, their keys, and how they are chosen."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

import vi_reparam_pyro as vr
from vi_reparam.backend.kernel_choice import FastestWay
from vi_reparam.numerics import gamma_slope
from vi_reparam.samplers import LogGamma, accepted_noise
from vi_reparam_pyro.lanes.seeding import salted, with_salt
from vi_reparam_pyro.ops import kernels as choice

pytest.importorskip("triton", reason="Triton is not installed: its kernel is tested where it is")
kernels = importlib.import_module("vi_reparam_pyro.ops.triton_kernels")


@pytest.fixture(autouse=True)
def wide_programs(monkeypatch):
    """The interpreter takes as long for a program of few lanes as for one of many; each lane's noise is its own."""
    monkeypatch.setattr(kernels, "_LANES", 4_096)


def single(x):
    return torch.as_tensor(x, dtype=torch.float32)


def ratios(key, a, most=2_000):
    return kernels.draw(key, a, boost=1.0, most=most, ratio=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [1e-3, pytest.param(0.5, marks=pytest.mark.slow), 3.0, 1e6])
def test_its_draws_follow_their_law(a, dtype):
    a = torch.tensor(a, dtype=dtype)
    w = ratios(12_345_678_901_234_567, a.expand(20_000)).double().numpy()
    assert stats.kstest(w + np.log(float(a)), stats.loggamma(float(a)).cdf).pvalue > 1e-4


@pytest.mark.parametrize("boost", [1, 3])
def test_its_normals_are_those_that_the_sampler_accepts(boost):
    a = torch.full((20_000,), 0.3, dtype=torch.float64)
    eps = kernels.draw(7, a, boost=float(boost), most=2_000, ratio=False)
    other = accepted_noise(vr.ops, 3, LogGamma(boost), (20_000,), a)[0]
    assert stats.ks_2samp(eps.numpy(), other.numpy()).pvalue > 1e-4


def test_its_slopes_are_the_cores():
    a = torch.exp(torch.linspace(-6.0, 12.0, 3_000, dtype=torch.float32)).repeat(3)
    w = ratios(5, a)
    found, exact = kernels.slope(w, a), gamma_slope.log_slope(w.double(), a.double())
    assert ((found - exact).abs() <= 2e-5 * exact.abs()).all()


def test_a_lane_does_not_see_the_others():
    a = torch.exp(torch.linspace(-3.0, 3.0, 2_000, dtype=torch.float32))
    others = torch.where(torch.arange(2_000) % 7 == 0, a, single(1e-3))
    one, two = ratios(3, a), ratios(3, others)
    assert torch.equal(one[::7], two[::7]) and torch.equal(one, ratios(3, a))
    assert torch.equal(one, ratios(torch.tensor(3), a))  # a key that a CUDA graph reads
    other = ratios(4, a)
    assert not (one == other).any()
    lanes = ratios(3, single(0.7).expand(20_000))
    assert abs(np.corrcoef(lanes[1:], lanes[:-1])[0, 1]) < 4.0 / np.sqrt(20_000)


def test_exhaustion_is_reported():
    a = single(0.7).expand(2_000).clone()
    a[7] = float("nan")
    first, all_ = ratios(3, a, most=1), ratios(3, a)
    left = first.isnan()
    assert 0.005 < left.double().mean() < 0.1 and all_.isnan().sum() == 1
    assert torch.equal(first[~left], all_[~left])


def test_a_salt_in_memory_gives_the_key_of_its_number():
    for salt in (1, 2**62 + 12_345):
        with salted(salt):
            key = with_salt(2**61 + 99)
        with salted(torch.tensor(salt)):
            assert int(with_salt(2**61 + 99)) == key


@pytest.mark.parametrize("faster", [True, False])
def test_the_faster_one_draws_and_gives_the_slope(faster, monkeypatch):
    times, timed = iter([2.0, 1.0 if faster else 3.0]), []
    monkeypatch.setattr(choice, "device_kind", lambda a: "pretended")
    monkeypatch.setattr(choice, "_MEASURED", 5_000)
    monkeypatch.setattr(choice, "CHOICE", FastestWay("draws", lambda run: timed.append(run()) or next(times)))
    calls = []
    for name in ("draw", "slope"):
        way = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *args, name=name, way=way, **options: calls.append(name) or way(*args, **options)
        )
    a = torch.exp(torch.linspace(-2.0, 2.0, 5_000, dtype=torch.float32)).requires_grad_()
    log_z = vr.random.log_gamma(a, generator=torch.Generator().manual_seed(0))
    assert len(timed) == 2
    del calls[:2]  # of the timing
    key = int(torch.randint(0, (1 << 63) - 1, (), generator=torch.Generator().manual_seed(0)).item())
    log_z.sum().backward()
    assert calls == (["draw", "slope"] if faster else [])
    w = log_z.detach() - a.detach().log()
    if faster:
        np.testing.assert_allclose(w, ratios(key, a), rtol=1e-5, atol=1e-6)
    exact = gamma_slope.log_slope(w.double(), a.detach().double())
    np.testing.assert_allclose(a.grad, exact, rtol=5e-5)


def test_never_on_a_cpu(monkeypatch):
    monkeypatch.setattr(choice, "_kernels", lambda: pytest.fail("the kernel ran"))
    a = torch.ones(5_000, dtype=torch.float32, requires_grad=True)
    vr.random.gamma(a).sum().backward()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vi_reparam_pyro.ops import triton_kernels as kernels

for kind, double in (("fp32", False), ("fp64", True)):
    kinds = {"a_at": f"*{kind}", "seed_at": "*i64", "out_at": f"*{kind}", "num": "i32", "most": "i32", "shift": "fp32"}
    kinds |= dict.fromkeys(("RATIO", "DOUBLE", "LANES"), "constexpr")
    source = ASTSource(fn=kernels._draw, signature=kinds, constexprs={(6,): True, (7,): double, (8,): 256})
    assert "entry" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
kinds = {"w_at": "*fp32", "a_at": "*fp32", "rule_at": "*fp32", "out_at": "*fp32", "num": "i32", "below": "fp32"}
kinds |= dict.fromkeys(("TERMS", "NODES", "LANES"), "constexpr")
source = ASTSource(fn=kernels._slope, signature=kinds, constexprs={(6,): 12, (7,): 11, (8,): 256})
assert "entry" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""


@pytest.mark.slow
def test_they_compile_for_a_gpu(tmp_path):
    """Triton's compiler needs no GPU to say so."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
