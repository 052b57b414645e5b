"""float32 at its edges: concentrations from 1e-3 to 1e6, everything finite and right.

Each draw is checked as it comes (logs, value, log q, log pi, their derivatives), and again in
float64 from the same noise, upcast.
"""

import functools

import numpy as np
import pytest
from harness import ops_or_skip, quickly
from scipy import special

from vi_reparam import Implicit, Rejection, load
from vi_reparam.families import FAMILIES
from vi_reparam.samplers.primitive import Primitive

CONCENTRATIONS = (1e-3, 1e-2, 0.3, 1.0, 1e3, 1e6)
NUM = {"gamma": 1_000_000, "von_mises": 400_000}
TINY = float(np.finfo(np.float32).smallest_normal)

# The parameters as functions of one concentration, in the dtype of that concentration.
PARAMS = {
    "gamma": lambda xp, a: (a, 0.0 * a + 1.0),
    "inverse_gamma": lambda xp, a: (a, 0.0 * a + 1.0),
    "chi2": lambda xp, a: (2.0 * a,),
    "beta": lambda xp, a: (a, 0.0 * a + 1.0 + a * a / (a + 1.0)),
    "dirichlet": lambda xp, a: (xp.stack([a, 1.0 + 0.0 * a, 0.5 * a]),),
    "student_t": lambda xp, a: (2.0 * a, 0.0 * a, 0.0 * a + 1.0),
    "von_mises": lambda xp, a: (0.0 * a + 0.7, a),
    "von_mises_fisher": lambda xp, a: (xp.stack([0.0 * a + 0.6, 0.0 * a + 0.8, 0.0 * a]), a),
}
ESTIMATORS = {"implicit": Implicit(), "rejection": Rejection()}


class Replay(Primitive):
    """The same noise once more."""

    boost = Rejection().boost

    def __init__(self, noise):
        self.noise = noise

    def __call__(self, ops, key, sampler, shape, *params, value=None):
        params = tuple(ops.xp.broadcast_to(p, shape) for p in params)
        return sampler.transform(self.noise, *params), sampler.log_noise_density(self.noise, *params), self.noise


@functools.cache
def _program(name, how):
    import jax
    import jax.numpy as jnp

    ops, family, num = load("numpyro").ops, FAMILIES[name], NUM.get(name, 100_000)

    def draw(a):
        def of(a):
            d = ESTIMATORS[how].draw(ops, ops.key(7), family, (num,), *PARAMS[name](jnp, a))
            logs = d.value if d.logs is None else d.logs
            return {"logs": logs, "log_prob": d.log_prob, "log_pi": d.score_term}, (d.value, d.noise)

        (out, extra), (slopes, _) = jax.jvp(of, (a,), (jnp.ones_like(a),))
        return out, slopes, extra

    return quickly(ops, draw, optimized=name in NUM)


_DRAWN = {}


@pytest.fixture(autouse=True, scope="module")
def drawn_once():
    yield
    _DRAWN.clear()


def _draws(name, how, a):
    """What the program gives; kept where more than one test looks at it."""
    import jax.numpy as jnp

    if name not in ("gamma", "von_mises") and how != "rejection":
        return _program(name, how)(jnp.float32(a))
    if (name, how, a) not in _DRAWN:
        _DRAWN[name, how, a] = _program(name, how)(jnp.float32(a))
    return _DRAWN[name, how, a]


def _leaves(tree):
    import jax

    return [np.asarray(x) for x in jax.tree.leaves(tree)]


# These are a gamma up to constants and a sign of its logarithm, whose own row runs every day.
GAMMAS = ("inverse_gamma", "chi2")
# A beta is a Dirichlet of two, and a Student t has the gamma's slope.
AGAIN = (("beta", "implicit"), ("student_t", "implicit"))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(name, how, marks=pytest.mark.slow if name in GAMMAS or (name, how) in AGAIN else ())
        for name in PARAMS
        for how in ESTIMATORS
    ],
)
def test_finite_from_1e_minus_3_to_1e6(name, how):
    ops_or_skip("numpyro")

    for a in CONCENTRATIONS:
        out, slopes, (value, _) = _draws(name, how, a)
        for array in _leaves(out) + _leaves(slopes) + _leaves(value):
            assert array.dtype == np.float32
            assert np.isfinite(array).all(), (a, name)
        value = np.asarray(value)
        if name in ("gamma", "inverse_gamma", "chi2", "beta", "dirichlet"):
            assert value.min() >= TINY
            # Concentrations from 0.3 on (the Dirichlet's least is half of a): nothing is clipped.
            if a * {"dirichlet": 0.5}.get(name, 1.0) >= 0.3:
                assert value.min() > TINY and value.max() < np.finfo(np.float32).max
        if name == "von_mises":
            assert value.min() >= -np.float32(np.pi) and value.max() < np.float32(np.pi)


@pytest.mark.parametrize("how", ESTIMATORS)
def test_gradient_of_the_mean_log_is_trigamma(how):
    """Within 1%, down to 1e-3, where it is a million and a float32 derivative can be off by a factor."""
    ops_or_skip("numpyro")

    for a in CONCENTRATIONS:
        out, slopes, _ = _draws("gamma", how, a)
        slope = np.asarray(slopes["logs"][0], np.float64)
        if how == "rejection":
            log_z = np.asarray(out["logs"][0], np.float64)
            slope = slope + (log_z - log_z.mean()) * np.asarray(slopes["log_pi"], np.float64)
        truth = special.polygamma(1, float(np.float32(a)))
        error = slope.std() / np.sqrt(slope.size)
        assert error < 0.0025 * truth
        assert abs(slope.mean() / truth - 1.0) < 0.01, a


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in GAMMAS else ())
        for name in ("gamma", "inverse_gamma", "chi2", "beta", "dirichlet", "von_mises")
    ],
)
def test_densities_are_those_of_float64_at_the_same_noise(name):
    ops = ops_or_skip("numpyro")
    import jax
    import jax.numpy as jnp

    family = FAMILIES[name]

    @functools.partial(quickly, ops, optimized=name in NUM)
    def exactly(noise, a):
        shape = (NUM.get(name, 100_000),)
        d = family.build(Replay(noise), ops, ops.key(0), shape, *PARAMS[name](jnp, a))
        return d.log_prob, d.score_term

    for a in CONCENTRATIONS:
        out, _, (_, noise) = _draws(name, "rejection", a)
        upcast = jax.tree.map(lambda x: x.astype(jnp.float64), noise)
        log_prob, log_pi = exactly(upcast, jnp.float64(jnp.float32(a)))
        # log pi is known up to what does not depend on the parameters; here both have the same.
        for ours, exact in ((out["log_prob"], log_prob), (out["log_pi"], log_pi)):
            gap = np.abs(np.asarray(ours, np.float64) - np.asarray(exact))
            assert np.all(gap < 1e-3 + 2e-6 * np.abs(np.asarray(exact))), (a, gap.max())


def test_student_t_density_is_that_of_float64():
    ops_or_skip("numpyro")
    import jax.numpy as jnp

    family = FAMILIES["student_t"]
    for a in CONCENTRATIONS:
        out, _, _ = _draws("student_t", "rejection", a)
        log_t = jnp.asarray(out["logs"][0], jnp.float64)
        params = PARAMS["student_t"](jnp, jnp.float64(jnp.float32(a)))
        exact = np.asarray(family.log_prob(jnp.exp(jnp.minimum(log_t, 300.0)), *params, logs=(log_t,)))
        gap = np.abs(np.asarray(out["log_prob"], np.float64) - exact)
        assert np.all(gap < 1e-3 + 2e-6 * np.abs(exact)), (a, gap.max())


@pytest.mark.parametrize("how", ESTIMATORS)
def test_von_mises_mean_resultant_and_its_derivative(how):
    """E[1 - cos] and its derivative against Bessel ratios, from 1e-3 to 1e6."""
    ops_or_skip("numpyro")

    for a in CONCENTRATIONS:
        out, slopes, (value, _) = _draws("von_mises", how, a)
        kappa = float(np.float32(a))
        ratio = special.ive(1, kappa) / special.ive(0, kappa)
        variance = 1.0 - ratio / kappa - ratio**2  # A' = Var(cos)
        if kappa > 1e4:  # the difference above has no digits left
            variance = 0.5 / kappa**2
        # log q = -kappa (1 - cos x) - log(2 pi I0 exp(-kappa)), so the deficit comes without rounding loc + x.
        log_mass = np.log(2.0 * np.pi * special.ive(0, kappa))
        deficit = -(np.asarray(out["log_prob"], np.float64) + log_mass) / kappa
        mean = 1.0 - ratio if kappa < 1e4 else 0.5 / kappa + 0.125 / kappa**2
        error = deficit.std() / np.sqrt(deficit.size)
        assert abs(deficit.mean() - mean) < 4.0 * error + 3e-7 / kappa + 1e-7 * mean
        # d(1 - cos x) = sin x dx.
        x = np.asarray(value, np.float64) - 0.7
        slope = np.sin(x) * np.asarray(slopes["logs"], np.float64)
        if how == "rejection":
            slope = slope + (deficit - deficit.mean()) * np.asarray(slopes["log_pi"], np.float64)
        error = slope.std() / np.sqrt(slope.size)
        assert error < 0.01 * variance
        assert abs(slope.mean() + variance) < 4.0 * error + 1e-3 * variance, (a, slope.mean(), variance)


def test_truncated_normal_far_in_the_tail():
    """A million draws beyond 8 standard deviations, and beyond 1000."""
    ops_or_skip("numpyro")
    import jax
    import jax.numpy as jnp
    from scipy import stats

    ops, family = load("numpyro").ops, FAMILIES["truncated_normal"]

    def draw(low, how):
        def of(loc):
            d = ESTIMATORS[how].draw(ops, ops.key(3), family, (200_000,), loc, loc + 1.0, low, low + jnp.inf)
            return d.value - low, d.log_prob, d.score_term

        zero = jnp.float32(0.0)
        return jax.jvp(of, (zero,), (zero + 1.0,))

    for how in ESTIMATORS:
        run = quickly(ops, functools.partial(draw, how=how))
        for low in (8.0, 1000.0):
            (offset, log_prob, log_pi), slopes = run(jnp.float32(low))
            for array in (offset, log_prob, log_pi, *slopes):
                assert array is None or np.isfinite(np.asarray(array)).all()
            if low == 8.0:
                d = stats.truncnorm(8.0, np.inf)
                assert stats.kstest(np.asarray(offset, np.float64) + 8.0, d.cdf).pvalue > 1e-4
                exact = d.logpdf(np.asarray(offset, np.float64) + 8.0)
                np.testing.assert_allclose(np.asarray(log_prob), exact, rtol=1e-5, atol=1e-4)
