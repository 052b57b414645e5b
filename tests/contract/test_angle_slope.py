"""The implicit derivative of von Mises and von Mises-Fisher angles in their concentration, against quadrature."""

import mpmath
import numpy as np
import pytest
from harness import BACKENDS, ops_or_skip, quickly

from vi_reparam.numerics.bessel import angle_slope
from vi_reparam.samplers import VonMisesDeviation

# Stated in the docstring of `angle_slope`.
BOUNDS = {"float32": 5e-6, "float64": 2e-12}
LARGEST = {"float32": 1e6, "float64": 1e8}
DIMS = (2, 3, 10)
NODE, WEIGHT = (0.5 * x for x in np.polynomial.legendre.leggauss(400))


def exact(theta, kappa, dim):
    """-(dF/dkappa) / q = -(L1 R + L R1) / (Z e(theta)), whose terms have one sign, by 400 nodes a side.

    With e(t) = exp(kappa cos t) sin^(dim - 2) t, Z its integral, L and R those on either side of theta,
    L1 and R1 those of |cos t - cos theta| e.
    """
    n = dim - 2
    root = np.sqrt(0.25 * n * n + kappa**2)
    mode = np.arccos((root - 0.5 * n) / kappa)  # where kappa sin^2 = n cos

    def log_e(t, origin):
        with np.errstate(divide="ignore"):
            power = n * np.log(np.sin(t) / np.sin(origin)) if n else 0.0
        return -2.0 * kappa * np.sin(0.5 * (t + origin)) * np.sin(0.5 * (t - origin)) + power

    def end(origin, edge):
        """Towards the edge, where e is e^-45 of what it is at the origin; the edge itself if it is never so small."""
        near, far = origin, edge
        for _ in range(200):
            middle = 0.5 * (near + far)
            small = log_e(middle, origin) < -45.0
            near, far = np.where(small, near, middle), np.where(small, middle, far)
        return far

    def side(low, peak, high):
        """Integrals of e / e(peak) and of |cos t - cos theta| e / e(peak) between the two, in two parts."""
        mass, moment = 0.0, 0.0
        for start, stop in ((end(peak, low), peak), (peak, end(peak, high))):
            for x, weight in zip(NODE + 0.5, WEIGHT, strict=True):
                t = start + (stop - start) * x
                part = (stop - start) * weight * np.exp(log_e(t, peak))
                mass = mass + part
                moment = moment + part * 2.0 * np.abs(np.sin(0.5 * (t + theta)) * np.sin(0.5 * (t - theta)))
        return mass, moment

    before, beyond = np.minimum(theta, mode), np.maximum(theta, mode)
    left, left_moment = side(np.zeros_like(theta), before, theta)
    right, right_moment = side(theta, beyond, np.full_like(theta, np.pi))
    total = np.exp(log_e(before, mode)) * left + np.exp(log_e(beyond, mode)) * right
    return -(left * right_moment + left_moment * right) / total


def pairs(num, dim, dtype, seed):
    """Concentrations over all orders of magnitude; angles as drawn, far in the tails, and next to the poles."""
    rng = np.random.default_rng(seed)
    kappa = np.exp(rng.uniform(np.log(1e-4), np.log(LARGEST[dtype]), num)).astype(dtype).astype(float)
    spread = np.sqrt(dim - 1) / np.sqrt(kappa + 1.0)
    body = spread * np.abs(rng.normal(size=num)) * rng.choice([1.0, 4.0], num)
    pole = np.exp(rng.uniform(np.log(1e-3), np.log(np.pi), num))
    kind = rng.integers(0, 4, num)
    far = np.minimum(spread * 20.0, np.pi)  # beyond, every density is zero
    theta = np.choose(kind, [body, body, np.minimum(pole, far), np.where(kappa < 100.0, np.pi - pole, body)])
    return np.clip(theta, 1e-5, np.pi - 1e-3).astype(dtype).astype(float), kappa


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("dim", DIMS)
def test_within_its_stated_error(backend, dtype, dim):
    ops = ops_or_skip(backend)
    theta, kappa = pairs(2_000, dim, dtype, seed=dim)
    kind = getattr(ops.xp, dtype)
    program = quickly(ops, lambda theta, kappa: angle_slope(theta, kappa, dim), optimized=True)
    slope = np.asarray(program(*(ops.xp.asarray(x, dtype=kind) for x in (theta, kappa))), float)
    error = np.abs(slope / exact(theta, kappa, dim) - 1.0)
    worst = error.argmax()
    assert error[worst] < BOUNDS[dtype], (theta[worst], kappa[worst])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sampler_gives_it_to_its_draws_on_either_side(backend):
    ops = ops_or_skip(backend)
    theta, kappa = pairs(200, 2, "float64", seed=7)
    side = np.where(np.arange(200) % 2, 1.0, -1.0)
    value, moving = ops.xp.asarray(side * theta), ops.xp.asarray(kappa)
    if backend == "numpyro":
        import jax

        slope = jax.jit(jax.grad(lambda k: VonMisesDeviation().attach(value, k).sum()))(moving)
    else:
        moving.requires_grad_()
        VonMisesDeviation().attach(value, moving).sum().backward()
        slope = moving.grad
    np.testing.assert_allclose(slope, side * exact(theta, kappa, 2), rtol=BOUNDS["float64"])


@pytest.mark.parametrize("dim", [d if d == 3 else pytest.param(d, marks=pytest.mark.slow) for d in DIMS])
def test_the_reference_is_right(dim):
    """From dF/dkappa itself, in 60 digits."""
    with mpmath.workdps(60):
        for theta, kappa in ((0.3, 0.01), (1.2, 2.0), (2.9, 5.0), (0.2, 40.0)):
            points = mpmath.linspace(0, mpmath.pi, 9)

            def integral(f, low, high, points=points):
                return mpmath.quad(f, [low, *(p for p in points if low < p < high), high])

            def e(t, kappa=kappa):
                return mpmath.exp(kappa * mpmath.cos(t)) * mpmath.sin(t) ** (dim - 2)

            def moment(t):
                return mpmath.cos(t) * e(t)

            z, mean = integral(e, 0, mpmath.pi), integral(moment, 0, mpmath.pi)
            by_kappa = (integral(moment, 0, theta) - integral(e, 0, theta) * mean / z) / z
            slope = -by_kappa * z / e(theta)
            found = exact(np.array([theta]), np.array([kappa]), dim)[0]
            assert abs(found / float(slope) - 1.0) < 1e-12
