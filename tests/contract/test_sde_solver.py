"""The solver is right: variances, exact steps and orders, against quadrature, moments and flows."""

import itertools
import math

import numpy as np
import pytest
from harness import BACKENDS, ops_or_skip
from scipy.integrate import quad, solve_ivp

from vi_reparam import ArgumentError
from vi_reparam.sde import (
    Adams,
    Constant,
    Cosine,
    Linear,
    Ramp,
    UniformLogSNR,
    VarianceExploding,
    Window,
    as_tau,
    exact_step,
    from_data,
    kernel_variances,
    noise_variance,
    noising,
    sample,
    to_data,
)
from vi_reparam.sde.moments import adams_weights, unit_moment
from vi_reparam.sde.parameterizations import PARAMETERIZATIONS, residual_scale

VP = UniformLogSNR()
SCHEDULES = (VP, Linear(), Cosine(), VarianceExploding())
STEPS = [(-2.0, -1.2), (0.3, 0.35), (3.9, 4.0), (-2.5, 4.0)]


# Schedules.


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_schedules(schedule):
    grid = schedule.grid(50)
    assert len(grid) == 51 and all(a < b for a, b in itertools.pairwise(grid))
    for lam in grid:
        assert math.isclose(math.log(schedule.alpha(lam) / schedule.sigma(lam)), lam, abs_tol=1e-12)
    preserved = schedule.total(grid[0])
    assert math.isclose(preserved, 1.0, rel_tol=1e-14) == (not isinstance(schedule, VarianceExploding))


def test_known_schedules():
    lam = Linear(last=1e-3).log_snr(0.0)
    assert math.isclose(VP.alpha(lam), math.exp(-0.25 * 19.9 - 0.05), rel_tol=1e-12)  # Song et al., eq. 33 at t = 1
    cosine = Cosine(first=0.5).log_snr(0.0)
    assert math.isclose(VP.alpha(cosine), math.cos(0.5 * math.pi * 0.508 / 1.008), rel_tol=1e-12)
    assert math.isclose(VarianceExploding(sigma_max=7.0).sigma(-math.log(7.0)), 7.0)


@pytest.mark.parametrize("make", [lambda: UniformLogSNR(1.0, 1.0), lambda: Linear(beta_min=0.0), lambda: Cosine(-1.0)])
def test_bad_schedules(make):
    with pytest.raises(ArgumentError, match="expected"):
        make()
    with pytest.raises(ArgumentError, match="num_steps"):
        VP.grid(0)


def test_tau_schedules():
    assert as_tau(0.5).at(-1.0, 1.0) == 0.5
    window = Window(1.5, 0.0, 1.0)
    assert (window.at(-0.5, -0.1), window.at(0.2, 0.4), window.at(0.9, 1.3)) == (0.0, 1.5, 0.0)
    ramp = Ramp(1.0, 0.0, low=0.0, high=2.0)
    assert (ramp.at(-2.0, -1.0), ramp.at(0.5, 1.5), ramp.at(5.0, 6.0)) == (1.0, 0.5, 0.0)
    for bad in (-0.1, "one", True, float("nan")):
        with pytest.raises(ArgumentError, match="tau"):
            as_tau(bad)


# Parameterizations.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("schedule", [VP, VarianceExploding()], ids=["preserving", "exploding"])
@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_parameterizations_go_there_and_back(backend, schedule, kind):
    ops = ops_or_skip(backend)
    rng = np.random.default_rng(0)
    data, eps = (ops.xp.asarray(rng.normal(size=(5, 3))) for _ in range(2))
    for lam in (-2.5, 0.1, 4.0):
        a, s = schedule.alpha(lam), schedule.sigma(lam)
        x = a * data + s * eps
        truth = {"data": data, "noise": eps, "score": -eps / s, "velocity": a * eps - s * data}[kind]
        assert np.allclose(from_data(kind, x, data, a, s), truth, rtol=1e-11, atol=1e-11)
        assert np.allclose(to_data(kind, x, truth, a, s), data, rtol=1e-11, atol=1e-11)
        # a residual is a change of the prediction, up to its sign
        moved = to_data(kind, x, truth + 1.0, a, s) - data
        assert np.allclose(abs(moved), residual_scale(kind, a, s), rtol=1e-9)


# Moments.


def moment(n, rate, h):
    """The integral of e^(rate u) u^n over u in [-h, 0]."""
    return (-1.0) ** n * h ** (n + 1) * unit_moment(n, rate * h)


def test_moments_equal_quadrature():
    for rate, h, n in itertools.product((-1.0, 1.0, 2.0, 3.25), (1e-3, 0.2, 1.0, 6.5), range(4)):
        truth = quad(lambda u, rate=rate, n=n: math.exp(rate * u) * u**n, -h, 0.0, epsabs=0.0, epsrel=1e-13)[0]
        assert math.isclose(moment(n, rate, h), truth, rel_tol=1e-12)


def test_adams_weights_integrate_cubics_exactly():
    nodes = [0.0, -0.3, -0.7, -1.2]
    for rate, degree in itertools.product((-1.0, 1.0, 2.0), range(4)):
        found = sum(w * u**degree for w, u in zip(adams_weights(rate, 0.3, nodes), nodes, strict=True))
        assert math.isclose(found, moment(degree, rate, 0.3), rel_tol=1e-11)


# Variances.


@pytest.mark.parametrize("schedule", [VP, VarianceExploding()], ids=["preserving", "exploding"])
@pytest.mark.parametrize("tau", [0.3, 1.0, 1.5])
@pytest.mark.parametrize(("low", "high"), STEPS)
def test_noise_variances_equal_quadrature(schedule, tau, low, high):
    alpha, sigma = schedule.alpha(high), schedule.sigma(high)
    # in units of the end, so that quadrature keeps its digits
    data = quad(lambda u: 2.0 * tau**2 * math.exp(2.0 * tau**2 * u), low - high, 0.0, epsabs=0.0, epsrel=1e-13)[0]
    noise = quad(lambda u: 2.0 * tau**2 * math.exp(-2.0 * u), low - high, 0.0, epsabs=0.0, epsrel=1e-13)[0]
    assert math.isclose(noise_variance(schedule, low, high, tau), sigma**2 * data, rel_tol=1e-12)
    found = noise_variance(schedule, low, high, tau, form="noise")
    assert math.isclose(found, (alpha * math.exp(-high)) ** 2 * noise, rel_tol=1e-12)


def test_the_noise_form_injects_more():
    for tau, h in itertools.product(np.linspace(0.05, 2.0, 20), np.geomspace(1e-4, 6.0, 30)):
        ratio = noise_variance(VP, 0.0, h, tau, form="noise") / noise_variance(VP, 0.0, h, tau)
        assert ratio >= 1.0
        if tau == 1.0:
            assert math.isclose(ratio, math.exp(2.0 * h), rel_tol=1e-12)
    for h in np.geomspace(1e-4, 6.0, 30):
        ratio = noise_variance(VP, 0.0, h, 1.0, form="noise") / noise_variance(VP, 0.0, h, 1.0)
        assert math.isclose(ratio, math.exp(2.0 * h), rel_tol=1e-12)


def test_the_kernel_variances_are_ordered_and_have_a_density():
    grid = VP.grid(8)
    data, ddpm, noise = (kernel_variances(k, VP, grid, Constant(1.0)) for k in ("data", "ddpm", "noise"))
    assert all(a < b < c for a, b, c in zip(data, ddpm, noise, strict=True))
    betas = [1.0 - (VP.alpha(a) / VP.alpha(b)) ** 2 for a, b in itertools.pairwise(grid)]  # Ho et al. 2020
    assert np.allclose(ddpm, betas, rtol=1e-12)
    with pytest.raises(ArgumentError, match="no density"):
        kernel_variances("data", VP, grid, Constant(0.0))
    with pytest.raises(ArgumentError, match="expected one of"):
        kernel_variances("wide", VP, grid, Constant(1.0))


# One step.


def _moments_along(schedule, low, high, tau, form, prediction, mean, variance):
    """Mean and variance under the SDE in lambda with a prediction held, by a numerical ODE."""

    def slope(lam, state):
        m, v = state
        a, s = schedule.alpha(lam), schedule.sigma(lam)
        # x's drift in lambda: (log a)' x + (1 + tau^2) sigma^2 score, and g^2 dt = 2 sigma^2 dlambda;
        # (log a)' is sigma^2 where a^2 + sigma^2 = 1, and 0 where a = 1
        growth = 0.0 if a == 1.0 else s * s
        if form == "data":  # sigma^2 score = a x0 - x
            rate, push = growth - (1.0 + tau**2), (1.0 + tau**2) * a * prediction
        else:  # sigma^2 score = -sigma eps
            rate, push = growth, -(1.0 + tau**2) * s * prediction
        return [rate * m + push, 2.0 * rate * v + 2.0 * (tau * s) ** 2]

    found = solve_ivp(slope, (low, high), [mean, variance], method="DOP853", rtol=1e-12, atol=1e-14)
    return found.y[:, -1]


@pytest.mark.parametrize("schedule", [VP, VarianceExploding()], ids=["preserving", "exploding"])
@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_exact_steps_solve_the_moment_equations(schedule, form, tau):
    for low, high in [(-2.0, -1.2), (0.3, 0.9), (3.0, 4.0)]:
        step = exact_step(schedule, low, high, tau, form=form)
        mean, variance = _moments_along(schedule, low, high, tau, form, 0.8, 1.3, 0.4)
        assert math.isclose(step.keep * 1.3 + step.weights[0] * 0.8, mean, rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(step.keep**2 * 0.4 + step.variance, variance, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_order_one_at_tau_one_is_the_ddpm_posterior(schedule):
    for low, high in itertools.pairwise(schedule.grid(6)):
        back, step = noising(schedule, low, high), exact_step(schedule, low, high, 1.0)
        a, s = schedule.alpha(high), schedule.sigma(high)
        # Bayes: N(x_t; a x0, s^2) N(x_s; keep x_t, variance), a product of normals
        precision = 1.0 / s**2 + back.keep**2 / back.variance
        assert math.isclose(step.variance, 1.0 / precision, rel_tol=1e-11)
        assert math.isclose(step.keep, back.keep / back.variance / precision, rel_tol=1e-11)
        assert math.isclose(step.weights[0], a / s**2 / precision, rel_tol=1e-11)


def test_bad_steps():
    with pytest.raises(ArgumentError, match="low < high"):
        exact_step(VP, 1.0, 1.0, 1.0)
    with pytest.raises(ArgumentError, match="form"):
        exact_step(VP, 0.0, 1.0, 1.0, form="score")
    for options in ({"order": 0}, {"order": 5}, {"corrector": -1}, {"form": "x"}):
        with pytest.raises(ArgumentError, match="Adams"):
            Adams(**options)


# Orders, on Gaussian data with the exact drift. Everything is linear, so the variance at the end follows
# exactly from one run whose batch holds the start and each step's noise, one at a time.

WIDTH = 0.25  # variance of the data


def _exact(x, row):
    a, s = row["alpha"], row["sigma"]
    return a * WIDTH / (a * a * WIDTH + s * s) * x


def _marginal(lam):
    return VP.alpha(lam) ** 2 * WIDTH + VP.sigma(lam) ** 2


def _end_factors(ops, grid, adams, tau, *, past=0):
    """Factors of (start, noises) in the end."""
    steps = len(grid) - 1 - past
    start = np.zeros((steps + 1, 1))
    start[0] = 1.0
    noise = np.zeros((steps, steps + 1, 1))
    noise[np.arange(steps), np.arange(steps) + 1] = 1.0
    earlier = []
    for lam in grid[:past]:  # the flow's own past, known exactly
        factor = math.sqrt(_marginal(lam) / _marginal(grid[past]))
        x0 = VP.alpha(lam) * WIDTH / _marginal(lam) * factor
        earlier.insert(0, (lam, ops.xp.asarray(x0 * start)))
    end = sample(
        ops,
        _exact,
        ops.xp.asarray(start),
        ops.xp.asarray(noise),
        schedule=VP,
        grid=grid[past:],
        adams=adams,
        tau=Constant(tau),
        past=earlier,
    )
    return np.asarray(end)[:, 0]


def _variance_error(ops, steps, adams, tau, *, past=0):
    # the span is that of a real sampler; the past of an exact start lies inside it
    grid = UniformLogSNR(-2.5, 4.0).grid(steps)
    factors = _end_factors(ops, grid, adams, tau, past=past)
    start = _marginal(grid[past])
    return abs(factors[0] ** 2 * start + (factors[1:] ** 2).sum() - _marginal(grid[-1]))


def _slope(errors, steps):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize("order", [1, 2])
def test_predictors_have_their_order(order, tau):
    ops, steps = ops_or_skip("numpyro"), [80, 160, 320]
    errors = [_variance_error(ops, n, Adams(order=order), tau) for n in steps]
    assert abs(_slope(errors, steps) - order) < 0.15


def test_third_order_with_fourth_order_corrector():
    ops, steps = ops_or_skip("numpyro"), [80, 160, 320]
    errors = [_variance_error(ops, n, Adams(order=3, corrector=4), 0.0, past=3) for n in steps]
    assert abs(_slope(errors, steps) - 4.0) < 0.25


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5])
def test_all_taus_share_their_marginals(tau, form):
    ops, steps = ops_or_skip("numpyro"), [160, 320]
    for order, least in ((1, 0.04), (2, 0.001)):
        first, second = (_variance_error(ops, n, Adams(order=order, form=form), tau) for n in steps)
        assert second < least * WIDTH
        # at least the order's rate: the noise form's first-order terms happen to cancel at tau = 1
        assert math.log2(first / second) > order - 0.15


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_without_noise_it_is_the_flow(order):
    ops, steps = ops_or_skip("numpyro"), [160, 320]
    errors = []
    for n in steps:
        grid = VP.grid(n)
        past = order - 1
        flow = math.sqrt(_marginal(grid[-1]) / _marginal(grid[past]))
        errors.append(abs(_end_factors(ops, grid, Adams(order=order), 0.0, past=past)[0] - flow))
    assert errors[1] < 1e-2 ** (0.5 + 0.5 * order)
    assert math.log2(errors[0] / errors[1]) > order - 0.25


def test_exact_pasts_are_of_the_data():
    ops = ops_or_skip("numpyro")
    with pytest.raises(ArgumentError, match="past"):
        _end_factors(ops, VP.grid(8), Adams(order=2, form="noise"), 0.0, past=1)


@pytest.mark.parametrize("adams", [Adams(), Adams(order=3), Adams(order=2, corrector=3), Adams(order=4, form="noise")])
def test_backends_agree_on_samples(adams):
    found = []
    rng = np.random.default_rng(1)
    start, noise = rng.normal(size=(6, 2)), rng.normal(size=(12, 6, 2))
    for backend in BACKENDS:
        ops = ops_or_skip(backend)
        bend = lambda x, row, ops=ops: ops.xp.tanh(3.0 * x) * row["alpha"]  # noqa: E731
        end = sample(
            ops,
            bend,
            ops.xp.asarray(start),
            ops.xp.asarray(noise),
            schedule=VP,
            grid=VP.grid(12),
            adams=adams,
            tau=Ramp(1.2, 0.4),
        )
        found.append(np.asarray(end))
    assert np.allclose(found[0], found[1], rtol=1e-10, atol=1e-10)
    assert np.isfinite(found[0]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_precision_keeps_its_digits(backend):
    ops = ops_or_skip(backend)
    rng = np.random.default_rng(2)
    start, noise = rng.normal(size=(50, 3)), rng.normal(size=(128, 50, 3))
    ends = []
    for dtype in ("float32", "float64"):
        cast = lambda x, dtype=dtype: ops.xp.asarray(x, dtype=getattr(ops.xp, dtype))  # noqa: E731
        end = sample(
            ops,
            _exact,
            cast(start),
            cast(noise),
            schedule=VP,
            grid=VP.grid(128),
            adams=Adams(order=3, corrector=4),
            tau=Constant(1.0),
        )
        assert end.dtype == getattr(ops.xp, dtype)
        ends.append(np.asarray(end))
    assert np.abs(ends[0] - ends[1]).max() < 1e-5
