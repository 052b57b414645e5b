"""Variances for N(1, 1), not only means, against the closed forms of Mohamed et al. (2020).

The numbers were computed with the Apache-2.0 notebook of github.com/deepmind/mc_gradients
(Monte Carlo Gradient Estimation in Machine Learning, section 3, figures 2 and 3).
"""

import functools

import numpy as np
import pytest
from harness import ops_or_skip

from vi_reparam import MeasureValued, Pathwise, ScoreFunction, load
from vi_reparam.families import FAMILIES

# cost -> k -> (estimator -> variance of d/dmu, of d/dsigma)
TABLE = {
    "square": {
        -3.0: {"score": (495.0, 1546.0), "optimal": (134.0, 664.0), "path": (4.0, 72.0), "weak": (17.487331, 68.0)},
        -1.0: {"score": (87.0, 346.0), "optimal": (38.0, 184.0), "path": (4.0, 24.0), "weak": (4.371833, 20.0)},
        0.0: {"score": (30.0, 136.0), "optimal": (14.0, 64.0), "path": (4.0, 12.0), "weak": (1.092958, 8.0)},
        1.0: {"score": (15.0, 74.0), "optimal": (6.0, 24.0), "path": (4.0, 8.0), "weak": (0.0, 4.0)},
        3.0: {"score": (87.0, 346.0), "optimal": (38.0, 184.0), "path": (4.0, 24.0), "weak": (4.371833, 20.0)},
    },
    "exponential": {
        0.1: {
            "score": (0.563532, 0.935384),
            "optimal": (0.040468, 0.140991),
            "path": (0.01629, 0.02777),
            "weak": (0.002509, 0.021971),
        },
        0.3162: {
            "score": (0.316253, 0.479949),
            "optimal": (0.074368, 0.193072),
            "path": (0.065527, 0.063806),
            "weak": (0.0047, 0.043075),
        },
        1.0: {
            "score": (0.17575, 0.17669),
            "optimal": (0.072222, 0.112784),
            "path": (0.211723, 0.175731),
            "weak": (0.012568, 0.070665),
        },
        3.162: {
            "score": (0.115813, 0.044681),
            "optimal": (0.071012, 0.038632),
            "path": (0.492687, 0.436031),
            "weak": (0.019997, 0.118693),
        },
        10.0: {
            "score": (0.07694, 0.009035),
            "optimal": (0.060197, 0.008739),
            "path": (0.941629, 0.892046),
            "weak": (0.020656, 0.116732),
        },
    },
    "cosine": {
        0.5: {
            "score": (0.455248, 0.798658),
            "optimal": (0.117864, 0.460102),
            "path": (0.039285, 0.087513),
            "weak": (0.008275, 0.065266),
        },
        1.0: {
            "score": (0.323993, 0.836287),
            "optimal": (0.323993, 0.78259),
            "path": (0.267674, 0.308127),
            "weak": (0.028004, 0.202628),
        },
        2.0: {
            "score": (0.441069, 0.927981),
            "optimal": (0.412523, 0.921637),
            "path": (1.939863, 1.942672),
            "weak": (0.224083, 0.727427),
        },
        5.0: {"score": (0.5, 1.0), "optimal": (0.5, 1.0), "path": (12.5, 12.5), "weak": (0.295717, 0.999993)},
    },
}
COSTS = {
    "square": lambda xp, x, k: (x - k) ** 2,
    "exponential": lambda xp, x, k: xp.exp(-k * x * x),
    "cosine": lambda xp, x, k: xp.cos(k * x),
}
ESTIMATORS = {"score": ScoreFunction(), "optimal": ScoreFunction(), "path": Pathwise(), "weak": MeasureValued()}
CASES = [(cost, how) for cost in TABLE for how in ESTIMATORS]
NUM = 400_000


@functools.cache
def _parts(cost, estimator):
    """Of one cost and estimator, for every k: slopes, costs and scores of the same draws."""
    import jax
    import jax.numpy as jnp

    ops, family = load("numpyro").ops, FAMILIES["normal"]

    @jax.jit
    def parts(key, k):
        def of(loc, scale):
            draw = estimator.draw(ops, key, family, (NUM,), loc, scale)
            branches = [COSTS[cost](jnp, b.value, k) for b in draw.branches]
            return COSTS[cost](jnp, draw.value, k), draw.score_term, branches, [b.weight for b in draw.branches]

        one = jnp.ones(())
        columns = [jax.jvp(of, (one, one), t) for t in ((one, 0.0 * one), (0.0 * one, one))]
        (f, _, branches, _) = columns[0][0]
        plain = jnp.stack([c[1][0] for c in columns])
        score = jnp.stack([c[1][1] for c in columns]) if estimator == ScoreFunction() else None
        weights = [jnp.stack([c[1][3][i] for c in columns]) for i in range(len(branches))]
        return plain + sum((b[None] * w for b, w in zip(branches, weights, strict=True)), 0.0 * plain), f, score

    return parts


@pytest.mark.parametrize(("cost", "how"), CASES, ids=[f"{c}-{h}" for c, h in CASES])
def test_variance_is_the_exact_one(cost, how):
    ops_or_skip("numpyro")
    import jax

    parts = _parts(cost, ESTIMATORS[how])
    for number, (k, exact) in enumerate(TABLE[cost].items()):
        slope, f, score = (None if x is None else np.asarray(x) for x in parts(jax.random.key(number), k))
        for index in range(2):
            g = slope[index]
            if score is not None:
                s = score[index]
                # The optimal baseline of one parameter, Cov(f s, s) / Var(s): estimated from all draws.
                baseline = np.cov(f * s, s)[0, 1] / np.var(s) if how == "optimal" else 0.0
                g = g + (f - baseline) * s
            deviation = (g - g.mean()) ** 2
            error = deviation.std() / np.sqrt(NUM)
            # The table has six decimals.
            assert abs(deviation.mean() - exact[how][index]) < 4.0 * error + 1e-6, (
                k,
                index,
                deviation.mean(),
                exact[how],
            )
