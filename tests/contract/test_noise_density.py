"""The density of the accepted noise: its score has mean zero, and its inverse is one."""

import functools
from typing import Any

import numpy as np
import pytest
from harness import BACKENDS, QUICK, ops_or_skip
from own_samplers import SkewNormal, SlowExponential
from scipy import integrate, special, stats

from vi_reparam import GradientError, RejectionSampler
from vi_reparam.samplers import LogGamma, PolarLogit, TruncatedNormalOffset, VonMisesDeviation, accepted_noise

INF = float("inf")
EDGES = ((-0.5, INF), (-1.0, 2.5), (0.2, 0.9), (8.0, INF), (-INF, -2.0), (-3.0, -1.0), (-INF, INF))

# Every sampler with settings of its parameters, which are drawn side by side.
CASES = {
    "gamma, no boost": (LogGamma(0), ((1.2, 1.5, 8.0),)),
    "gamma, boost 1": (LogGamma(1), ((0.05, 0.7, 20.0),)),
    "gamma, boost 3": (LogGamma(3), ((0.05, 0.7, 20.0),)),
    "von Mises": (VonMisesDeviation(), ((1e-3, 0.8, 30.0, 1e4),)),
    **{f"von Mises-Fisher in {p}": (PolarLogit(p), ((0.5, 4.0, 200.0),)) for p in (2, 3, 10, 100)},
    "truncated normal": (TruncatedNormalOffset(), tuple(zip(*EDGES, strict=True))),
    "own skew normal": (SkewNormal(), ((1.3, -0.4), (0.8, 1.5))),
    "own exponential": (SlowExponential(), ((1.6, 0.2),)),
}
NUM = 4_000
EVERY_DAY = ("gamma, boost 1", "von Mises")
SLOW_IN_JAX = [
    # Every day in torch, which compiles nothing: with_pyro/test_pyro_same_noise.py holds the other backend to it.
    pytest.param(backend, name, marks=pytest.mark.slow if backend == "numpyro" and name not in EVERY_DAY else ())
    for name in CASES
    for backend in BACKENDS
]
WITHOUT_BOOST = [p for p in SLOW_IN_JAX if not getattr(CASES[p.values[1]][0], "boost", 0)]


def _has_inverse(sampler):
    return not getattr(sampler, "boost", 0) and type(sampler).inverse is not RejectionSampler.inverse


def _plain(sampler):
    """The sampler with the base class's log_noise_density, target over proposal."""
    subclass = type("Plain", (type(sampler),), {"log_noise_density": RejectionSampler.log_noise_density})
    plain: Any = object.__new__(subclass)
    plain.__dict__.update(sampler.__dict__)
    return plain


def _per_lane(ops, density, params):
    """The density's value, and its derivative in every parameter, for every lane."""
    if ops.name == "numpyro":
        import jax

        value, pull = jax.vjp(density, *params)
        return value, pull(ops.xp.ones_like(value))
    import torch

    params = [p.clone().requires_grad_() for p in params]
    value = density(*params)
    grads = torch.autograd.grad(value.sum(), params, allow_unused=True) if value.requires_grad else [None] * len(params)
    return value.detach(), tuple(torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True))


@functools.cache
def _run(backend, name):
    """All that these tests look at, from one program a sampler: noise, scores, acceptance."""
    ops = ops_or_skip(backend)
    sampler, settings = CASES[name]
    shape = (len(settings[0]), NUM)

    def everything(key, *params):
        draw_key, raw_key = ops.split(key, 2)
        noise = accepted_noise(ops, draw_key, sampler, shape, *params)
        out = {"noise": noise, "score": _per_lane(ops, lambda *p: sampler.log_noise_density(noise, *p), params)}
        if _has_inverse(sampler):
            out["back"] = sampler.inverse(sampler.transform(noise, *params), *params)
        if not getattr(sampler, "boost", 0):
            out["plain"] = _per_lane(ops, lambda *p: _plain(sampler).log_noise_density(noise, *p), params)
        raw = sampler.propose(sampler.raw_noise(ops, raw_key, shape, params[0].dtype), *params)
        return out, sampler.log_accept(raw, *params)

    params = [ops.xp.asarray(np.repeat(np.array(s, float)[:, None], NUM, axis=1)) for s in settings]
    if backend == "numpyro":
        import jax

        everything = jax.jit(everything, compiler_options=QUICK)
    return everything(ops.key(11), *params)


@pytest.mark.parametrize(("backend", "name"), SLOW_IN_JAX)
def test_mean_score_is_zero(backend, name):
    for score in _run(backend, name)[0]["score"][1]:
        score = np.asarray(score)
        assert np.isfinite(score).all()
        bound = 4.5 * score.std(1) / np.sqrt(NUM) + 1e-9 * np.abs(score).max(1) + 1e-14
        assert np.all(np.abs(score.mean(1)) <= bound), score.mean(1) / bound


@pytest.mark.parametrize(("backend", "name"), WITHOUT_BOOST)
def test_written_density_is_target_over_proposal(backend, name):
    """What a sampler writes by hand for precision has the gradient of what the base class would compute."""
    out, _ = _run(backend, name)
    (value, score), (plain_value, plain_score) = out["score"], out["plain"]
    gap = np.asarray(value) - np.asarray(plain_value)
    assert np.all(np.ptp(gap, axis=1) < 1e-7 * (1.0 + np.abs(gap).max()))
    for ours, theirs in zip(score, plain_score, strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        size = np.maximum(1.0, np.abs(theirs).max(1, keepdims=True))
        assert np.all(np.abs(ours - theirs) < 1e-7 * size)


@pytest.mark.parametrize(("backend", "name"), SLOW_IN_JAX)
def test_inverse_undoes_the_transform(backend, name):
    sampler, settings = CASES[name]
    out, _ = _run(backend, name)
    noise = out["noise"]
    if not _has_inverse(sampler):
        with pytest.raises(GradientError):
            sampler.inverse(noise[0] if isinstance(noise, tuple) else noise, *settings)
        return
    noise, back = (x[0] if isinstance(x, tuple) else x for x in (noise, out["back"]))
    np.testing.assert_allclose(np.asarray(back), np.asarray(noise), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("backend", "name"), SLOW_IN_JAX)
def test_bound_holds_and_acceptance_is_worth_having(backend, name):
    log_accept = np.asarray(_run(backend, name)[1])
    accept = np.where(np.isnan(log_accept), 0.0, np.exp(log_accept))  # NaN: outside the support
    assert accept.max() <= 1.0 + 1e-9
    assert np.all(accept.mean(1) > 0.45)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lane_whose_parameter_is_nan_is_given_up_at_once(backend):
    """No proposal is ever accepted there: 2,000 rounds would be for nothing. The other lanes draw as before."""
    ops = ops_or_skip(backend)
    looked = []

    class Counted(LogGamma):
        def log_accept(self, noise, *params):
            if backend == "numpyro":
                import jax

                jax.debug.callback(lambda _: looked.append(1), params[0])
            else:
                looked.append(1)
            return super().log_accept(noise, *params)

    whole = np.full(20, 0.7)
    broken = np.where(np.arange(20) % 3 == 0, np.nan, whole)
    drawn, left = (
        np.asarray(accepted_noise(ops, ops.key(1), Counted(1), (20,), ops.xp.asarray(a))[0]) for a in (whole, broken)
    )
    np.testing.assert_array_equal(left, np.where(np.isnan(broken), np.nan, drawn))
    assert 0 < len(looked) < 100


_legendre = functools.cache(np.polynomial.legendre.leggauss)


def _noise_grid(sampler, params):
    """A rule over the noise's whole support, and the logarithm of the proposal's density on it."""
    nodes, weights = _legendre(1000)
    if isinstance(sampler, PolarLogit):
        a = 0.5 * (sampler.dim - 1)
        reach = 35.0 / min(a, 5.0)
        noise = reach * nodes
        log_base = -a * (np.abs(noise) + 2.0 * np.log1p(np.exp(-np.abs(noise)))) - special.betaln(a, a)
        return noise, reach * weights, log_base
    if sampler.noise == "normal":
        low = max(-3.0 * np.sqrt(params[0] - 1.0 / 3.0), -12.0) if isinstance(sampler, LogGamma) else -12.0
        half = 0.5 * (12.0 - low)
        noise = low + half * (nodes + 1.0)
        return noise, half * weights, stats.norm.logpdf(noise)
    low = -1.0 if isinstance(sampler, VonMisesDeviation) else 0.0
    half = 0.5 * (1.0 - low)
    return low + half * (nodes + 1.0), half * weights, np.full(nodes.shape, -np.log(1.0 - low))


@pytest.mark.parametrize("name", [n for n, (s, _) in CASES.items() if not getattr(s, "boost", 0)])
def test_density_integrates_to_one_and_its_gradient_to_zero(name):
    """By quadrature over the noise, where it is one-dimensional."""
    ops = ops_or_skip("numpyro")
    sampler, settings = CASES[name]
    sampler_jit = functools.cache(lambda: _quick(ops, sampler))
    for params in zip(*settings, strict=True):
        noise, weights, log_base = _noise_grid(sampler, params)
        eps = ops.xp.asarray(noise)
        full = tuple(ops.xp.full(eps.shape, p) for p in params)
        given = (eps, ops.xp.zeros((0, *eps.shape))) if isinstance(sampler, LogGamma) else eps
        log_pi, scores = sampler_jit()(given, *full)
        density = weights * np.exp(log_base + np.asarray(log_pi))
        # A gamma's noise density only vanishes like a power at its edge.
        tolerance = 1e-3 if isinstance(sampler, LogGamma) else 1e-7
        assert density.sum() == pytest.approx(1.0, abs=tolerance)
        for score in scores:
            score = np.asarray(score)
            assert abs((density * score).sum()) < tolerance * max(1.0, (density * np.abs(score)).sum())


def _quick(ops, sampler):
    import jax

    def both(given, *params):
        return _per_lane(ops, lambda *p: sampler.log_noise_density(given, *p), params)

    return jax.jit(both, compiler_options=QUICK)


def test_robert_normal_proposal_would_be_wrong():
    """Why it is not here: with a normal's noise cut at a, the mean score is the hazard, not zero."""
    a = -0.5
    # pi(noise) = phi(noise) / (1 - Phi(a)) on noise > a, so grad_a log pi is the hazard throughout.
    hazard = stats.norm.pdf(a) / stats.norm.sf(a)
    mean = integrate.quad(lambda x: hazard * stats.norm.pdf(x) / stats.norm.sf(a), a, 40.0)[0]
    assert mean == pytest.approx(0.51, abs=0.01)
