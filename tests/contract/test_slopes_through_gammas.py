"""What beta, Dirichlet, Student-t and their like make of the gamma's slope: each draw's derivative in closed form."""

import numpy as np
import pytest
from harness import BACKENDS, ops_or_skip, quickly
from scipy import integrate, stats
from test_gamma_slope import exact

from vi_reparam import Implicit
from vi_reparam.families import FAMILIES
from vi_reparam.samplers import LogGamma

# Relative to the largest slope of the same draw: what a share of a Dirichlet moves by is a difference.
BOUNDS = {"float32": 1e-5, "float64": 1e-10}
NUM = 400


def shapes(dtype, seed, size):
    """Concentrations over all orders of magnitude, alike in one draw and unlike."""
    rng = np.random.default_rng(seed)
    middle = rng.uniform(np.log(1e-2), np.log(1e5), (NUM, 1))
    return np.exp(middle + rng.normal(size=(NUM, size)) * rng.choice([0.1, 2.0], (NUM, 1))).astype(dtype).astype(float)


def _slopes(ops, name, params, moving, dtype, coordinate):
    """Noise of the gammas, and the gradient of one coordinate of each draw in the parameter `moving`."""
    kind = getattr(ops.xp, dtype)
    params = [ops.xp.asarray(p, dtype=kind) for p in params]
    family = FAMILIES[name]

    def draw(key, parameter):
        held = [*params[:moving], parameter, *params[moving + 1 :]]
        d = Implicit().draw(ops, key, family, (NUM,), *held)
        return coordinate(d).sum(), d

    if ops.name == "numpyro":
        import jax

        program = quickly(
            ops, jax.grad(lambda p, key: (lambda s, d: (s, (d.value, d.noise)))(*draw(key, p)), has_aux=True)
        )
        gradient, (value, noise) = program(params[moving], ops.key(3))
    else:
        leaf = params[moving].requires_grad_()
        total, d = draw(ops.key(3), leaf)
        total.backward()
        gradient, value, noise = leaf.grad, d.value.detach(), d.noise
    return np.asarray(value, float), noise, np.asarray(gradient, float)


def _gammas(ops, noise, a, dtype):
    """w = log(z / a) of the draw's own noise, and d log z / da by quadrature."""
    kind = getattr(ops.xp, dtype)
    w = np.asarray(LogGamma().transform(noise, ops.xp.asarray(a, dtype=kind)), float)
    return w, exact(w.ravel(), a.ravel()).reshape(a.shape)


def _close(found, wanted, scale, dtype):
    error = np.abs(found - wanted) / scale
    worst = np.unravel_index(error.argmax(), error.shape)
    assert error[worst] < BOUNDS[dtype], (worst, found[worst], wanted[worst])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_dirichlet(backend, dtype):
    """d log x_0 / da_j = (1[j = 0] - x_j) d log z_j / da_j."""
    ops = ops_or_skip(backend)
    a = shapes(dtype, 1, 4)
    x, noise, gradient = _slopes(ops, "dirichlet", (a,), 0, dtype, lambda d: d.logs[0][..., 0])
    _, slope = _gammas(ops, noise, a, dtype)
    _close(gradient, (np.array([1.0, 0.0, 0.0, 0.0]) - x) * slope, slope, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("moving", [0, 1])
def test_beta(backend, dtype, moving):
    """d x / da = x (1 - x) d log z / da, and minus that for the other."""
    ops = ops_or_skip(backend)
    a = shapes(dtype, 2, 2)
    x, noise, gradient = _slopes(ops, "beta", tuple(a.T), moving, dtype, lambda d: d.value)
    w, slope = _gammas(ops, noise, a, dtype)
    z = a * np.exp(w - w.max(-1, keepdims=True))
    share = np.prod(z / z.sum(-1, keepdims=True), -1)
    # of a small draw itself: made again of w, x would carry the rounding of its logarithm, which reaches -60
    size = np.where(x < 0.5, x * (1.0 - x), share) * slope[:, moving]
    keep = size > np.finfo(dtype).smallest_normal * 1e10
    assert keep.mean() > 0.8
    _close(gradient[keep], size[keep] * (1.0 - 2.0 * moving), size[keep], dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_student_t(backend, dtype):
    """d log|t| / d df = -(d log z / da - 1 / a) / 4 at a = df / 2."""
    ops = ops_or_skip(backend)
    df = shapes(dtype, 3, 1)[:, 0]
    zero = np.zeros(NUM)
    _, noise, gradient = _slopes(ops, "student_t", (df, zero, zero + 1.0), 0, dtype, lambda d: d.logs[0])
    _, slope = _gammas(ops, noise, 0.5 * df, dtype)
    _close(gradient, -0.25 * (slope - 2.0 / df), slope, dtype)


def _one_dimensional(law, step, x, a):
    """-(dF/da) / q by a central difference of quadratures of the density, of error step^4."""

    def cdf(a):
        return integrate.quad(lambda t: law(a).pdf(t), 0.0, x, epsabs=1e-14, epsrel=1e-13, limit=400)[0]

    first, second = ((cdf(a + h) - cdf(a - h)) / (2.0 * h) for h in (step, 2.0 * step))
    return -(4.0 * first - second) / 3.0 / law(a).pdf(x)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("a", "b"), [(0.7, 1.6), (3.0, 2.0)])
def test_a_betas_mean_slope_at_a_value_is_that_of_its_distribution_function(backend, a, b):
    """Over the second degree of freedom of two gammas: E[dx / da | x] = -(dF / da) / q, for every function of x."""
    ops = ops_or_skip(backend)
    random = pytest.importorskip(f"vi_reparam_{backend}.random")
    num = 200_000
    ones = ops.xp.ones((num,), dtype=ops.xp.float64)
    if backend == "numpyro":
        import jax

        x, slope = jax.jvp(lambda a: random.beta(ops.key(5), a, b * ones, dtype=ones.dtype), (a * ones,), (ones,))
    else:
        import torch

        moving = (a * ones).requires_grad_()
        x = random.beta(moving, b * ones, generator=torch.Generator().manual_seed(5))
        (slope,) = torch.autograd.grad(x.sum(), moving)
        x = x.detach()
    x, slope = np.asarray(x), np.asarray(slope)
    grid = np.linspace(0.02, 0.98, 49)
    curve = np.array([_one_dimensional(lambda a: stats.beta(a, b), 1e-3, t, a) for t in grid])
    inside = (x > 0.02) & (x < 0.98)
    rest = (slope - np.interp(x, grid, curve))[inside]
    for power in range(4):
        weighted = rest * x[inside] ** power
        assert abs(weighted.mean()) < 4.0 * weighted.std() / np.sqrt(weighted.size) + 2e-4 * np.abs(curve).max()
