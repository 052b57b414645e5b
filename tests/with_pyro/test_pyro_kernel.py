"""The Triton kernel, in Triton's interpreter: its law, its keys, and how it is chosen."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

import vi_reparam_pyro as vr
from vi_reparam.backend.kernel_choice import KernelTiming
from vi_reparam_pyro.sampling import gammas

pytest.importorskip("triton", reason="Triton is not installed: its kernel is tested where it is")
kernels = importlib.import_module("vi_reparam_pyro.sampling.kernels")


@pytest.fixture(autouse=True)
def wide_programs(monkeypatch):
    """The interpreter takes as long for a program of few lanes as for one of many; each lane's noise is its own."""
    monkeypatch.setattr(kernels, "_LANES", 4_096)


def single(x):
    return torch.as_tensor(x, dtype=torch.float32)


@pytest.mark.parametrize("a", [1e-3, pytest.param(0.5, marks=pytest.mark.slow), 3.0, 1e6])
def test_its_draws_follow_their_law(a):
    a = float(np.float32(a))
    w = kernels.ratios(12_345_678_901_234_567, single(a).expand(20_000)).double().numpy()
    assert stats.kstest(w + np.log(a), stats.loggamma(a).cdf).pvalue > 1e-4
    plain = gammas.plain_ratios(3, single(a).expand(20_000)).double().numpy()
    assert stats.ks_2samp(w, plain).pvalue > 1e-4


def test_a_lane_does_not_see_the_others():
    a = torch.exp(torch.linspace(-3.0, 3.0, 2_000, dtype=torch.float32))
    others = torch.where(torch.arange(2_000) % 7 == 0, a, single(1e-3))
    one, two = kernels.ratios(3, a), kernels.ratios(3, others)
    assert torch.equal(one[::7], two[::7]) and torch.equal(one, kernels.ratios(3, a))
    other = kernels.ratios(4, a)
    assert not (one == other).any()
    lanes = kernels.ratios(3, single(0.7).expand(20_000))
    assert abs(np.corrcoef(lanes[1:], lanes[:-1])[0, 1]) < 4.0 / np.sqrt(20_000)


def test_exhaustion_is_reported():
    a = single(0.7).expand(2_000)
    first, all_ = kernels.ratios(3, a, most=1), kernels.ratios(3, a)
    left = first.isnan()
    assert 0.005 < left.double().mean() < 0.1 and not all_.isnan().any()
    assert torch.equal(first[~left], all_[~left])


@pytest.mark.parametrize("faster", [True, False])
def test_the_faster_one_draws(faster, monkeypatch):
    times = iter([1.0 if faster else 3.0, 2.0])
    monkeypatch.setattr(gammas, "device_kind", lambda a: "pretended")
    monkeypatch.setattr(gammas, "CHOICE", KernelTiming("gamma draws", lambda run: next(times)))
    a = torch.exp(torch.linspace(-2.0, 2.0, 5_000, dtype=torch.float32)).requires_grad_()
    z = vr.random.log_gamma(a, generator=torch.Generator().manual_seed(0))
    key = int(torch.randint(0, (1 << 63) - 1, (), generator=torch.Generator().manual_seed(0)).item())
    way = kernels.ratios if faster else gammas.plain_ratios
    np.testing.assert_allclose(z.detach(), way(key, a) + a.detach().log(), rtol=1e-6)
    z.sum().backward()
    assert a.grad is not None and (a.grad > 0.0).all()


def test_never_on_a_cpu(monkeypatch):
    monkeypatch.setattr(gammas, "_kernel", lambda key, a: pytest.fail("the kernel ran"))
    vr.random.gamma(torch.ones(5_000, dtype=torch.float32))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vi_reparam_pyro import kernels

kinds = {"a_at": "*fp32", "out_at": "*fp32", "seed": "i64", "num": "i32", "most": "i32", "LANES": "constexpr"}
source = ASTSource(fn=kernels._draw, signature=kinds, constexprs={(5,): 256})
assert "entry" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""


@pytest.mark.slow
def test_it_compiles_for_a_gpu(tmp_path):
    """Triton's compiler needs no GPU to say so."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
