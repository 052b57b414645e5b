"""What makes `vr.NestedLaplace` right where latents are skewed: bends of the others, and a mixture of known density."""

import math

import numpy as np
import pytest
from scipy import special

from vi_reparam.fit import sharpening, weighted_mixture
from vi_reparam.fit.colouring import of_pattern, pattern
from vi_reparam.gaussians import skew
from vi_reparam.posterior.attempt import Attempt
from vi_reparam.posterior.verdict import Figures, judge
from vi_reparam.posterior.weights import Weights
from vi_reparam.programs.leaning import lean
from vi_reparam.programs.nested_laplace import climb

SHAPES = np.array([0.6, 1.0, 2.0, 5.0, 20.0, 3.0])
NODES, MASS = np.polynomial.hermite_e.hermegauss(100)
MASS = MASS / MASS.sum()


@pytest.fixture(scope="module")
def leaning(module_vr):
    """Logarithms of gamma variates about their mode: those of the normal, moved, and bent."""
    ops = module_vr.ops
    xp, shapes = ops.xp, module_vr.ops.asarray(SHAPES)

    def height(x):
        return xp.sum(shapes * x - xp.exp(x))

    starts = np.random.default_rng(0).normal(size=(4, 6))
    form = of_pattern(pattern(lambda x: SHAPES - np.exp(x), starts).of(list(range(6))), 100)
    form = type(form)(*(ops.asarray(part) for part in form))
    mode = ops.asarray(np.log(SHAPES))
    found = climb(ops, height, mode, form)
    probes = ops.asarray(np.where(np.random.default_rng(1).uniform(size=(4, 6)) < 0.5, -1.0, 1.0))
    made = [
        lean(ops, height, mode, found.root, form, own, ops.asarray(np.asarray(much)))
        for own, much in ((probes[:0], 0.0), (probes, 0.0), (probes, 1.0))
    ]
    return ops, height, made


def test_the_mean_of_skewed_latents_is_found(leaning):
    """psi(a), of which the mode, log a, is up to half an sd away."""
    ops, _, (normal, *found) = leaning
    exact, sd = special.digamma(SHAPES), np.sqrt(special.polygamma(1, SHAPES))
    assert np.max(np.abs(ops.to_numpy(normal.mean) - exact) / sd) > 0.4
    for own in found:
        assert np.max(np.abs(ops.to_numpy(own.mean) - exact) / sd) < 0.06


def test_a_bend_leaves_less_of_the_log_weights(leaning):
    ops, height, made = leaning
    noise = ops.asarray(np.random.default_rng(2).normal(size=(4_000, 6)))
    spreads = []
    for own in made:
        values, log_q = ops.vmap(lambda n, own=own: own.draw(ops, n))(noise)
        spreads.append(float(np.std(ops.to_numpy(ops.vmap(height)(values) - log_q))))
    assert spreads[1] < 0.8 * spreads[0] and spreads[2] < 0.25 * spreads[0]


def test_a_bent_density_is_that_of_its_draws(leaning):
    """One coordinate moves along its noise, the others stay: its density integrates to one."""
    ops, _, (*_, bent) = leaning
    grid = np.linspace(-9.0, 9.0, 6_001)
    for i in range(len(SHAPES)):
        noise = np.zeros((len(grid), len(SHAPES)))
        noise[:, i] = grid
        values, log_q = (ops.to_numpy(x) for x in ops.vmap(lambda n: bent.draw(ops, n))(ops.asarray(noise)))
        others = [bent.draw(ops, ops.asarray(row))[1] for row in (noise[3_000],)]
        x, density = values[:, i], np.exp(log_q - float(ops.to_numpy(others[0])))
        total = np.trapezoid(density, x) / np.gradient(x, grid)[3_000] / math.sqrt(2.0 * math.pi)
        assert total == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("skewness", [-1.7, -0.6, -0.1, 0.3, 1.2])
def test_a_bend_has_the_skewness_that_is_asked_for(module_vr, skewness):
    ops = module_vr.ops
    raw = skew.raw_of_skewness(ops, ops.asarray(np.full(len(NODES), skewness)))
    value = ops.to_numpy(skew.skew(ops, ops.asarray(NODES), raw)[0])
    assert MASS @ value**3 == pytest.approx(skewness, abs=0.01)


def test_a_mixture_of_known_density_is_found_from_few_draws():
    """400 draws of a wider law leave maximum likelihood 0.03 nats off, and densities none."""
    rng = np.random.default_rng(3)
    true = weighted_mixture.Mixture(
        np.log([0.3, 0.7]),
        np.array([[-1.5, 0.5], [1.0, 0.0]]),
        np.array([[[0.5, 0.0], [0.2, 0.8]], [[1.0, 0.0], [-0.4, 0.6]]]),
    )
    z = weighted_mixture.propose(true, 400, rng)
    log_m = weighted_mixture.log_sums(true.log_probs(z))
    weights = np.exp(log_m - weighted_mixture.proposed_log_prob(true, z))
    weights = weights / weights.sum()
    fresh = weighted_mixture.propose(true, 4_000, rng)
    exact = weighted_mixture.log_sums(true.log_probs(fresh))
    mass = np.exp(exact - weighted_mixture.proposed_log_prob(true, fresh))

    def lost(made):
        return float((mass * (exact - weighted_mixture.log_sums(made.log_probs(fresh)))).sum() / mass.sum())

    alone = weighted_mixture.of_draws(z, weights, 2, np.random.default_rng(0))
    made = sharpening.best_of(z, log_m, weights, np.random.default_rng(0))
    assert math.exp(float(weighted_mixture.log_sums(made.log_weight[None])[0])) == pytest.approx(1.0)
    assert abs(lost(made)) < 1e-3 < lost(alone)

    # one draw far out, of a tail that no mixture has, does not choose it
    far = np.concatenate([z, [[60.0, 0.0]]]), np.append(log_m, -500.0), np.append(weights, 1e-200)
    assert abs(lost(sharpening.best_of(*far, np.random.default_rng(0)))) < 1e-3


@pytest.mark.parametrize(("largest", "grade"), [(3.0, "good"), (400.0, "poor")])
def test_weights_that_are_nearly_even_are_not_judged_by_their_tail(largest, grade):
    """4,000 that are nearly one but for a dozen, which make k-hat large however near one they are."""
    log = np.random.default_rng(4).normal(scale=1e-3, size=4_000)
    log[:12] = np.log1p((largest - 1.0) * 0.5 ** np.arange(12))
    weights = Weights(log, np.zeros(4_000))
    assert weights.khat > 0.7
    (value, error), (elbo, elbo_error) = weights.log_evidence(), weights.elbo()
    figures = {"khat": weights.khat, "elbo": elbo, "elbo_error": elbo_error, "beyond": weights.beyond}
    figures |= {"log_evidence": value, "log_evidence_error": error, "mean_shift": 0.01, "sd_shift": 0.01}
    figures |= {"num_weights": 4_000, "num_nan": 0, "num_outside": 0, "num_latents": 10, "drift": None}
    verdict = judge(Figures(**figures))
    assert verdict.grade == grade and ("says nothing here" in str(verdict)) == (grade == "good")
    attempt = Attempt("FullRank()", elbo, elbo_error, weights.khat, value - elbo, 0.01, beyond=weights.beyond)
    assert attempt.is_good == (grade == "good")
