"""Priors times factors, and Newton steps, against dense linear algebra."""

import numpy as np
import pytest

from vi_reparam.numerics import conjugate_gradients
from vi_reparam.programs.priors import Dense, Factor, Independent, Walk

NUM = 7
RNG = np.random.default_rng(0)
SCALES, WEIGHTS, LOCS = RNG.uniform(0.3, 2.0, NUM), RNG.normal(size=NUM), RNG.normal(size=NUM)
MEAN, ROOT = RNG.normal(size=NUM), np.tril(RNG.normal(size=(NUM, NUM)), -1) + np.diag(SCALES)
STEPS = 0.6 * np.tril(np.ones((NUM, NUM)))

PRIORS = {
    "independent": (lambda a: Independent(a(MEAN), a(SCALES)), MEAN, np.diag(SCALES)),
    "dense": (lambda a: Dense(a(MEAN), a(ROOT)), MEAN, ROOT),
    "walk": (lambda a: Walk(a([0.6]), a(np.zeros(NUM))), np.zeros(NUM), STEPS),
}
"""How it is made; its mean and a root of its covariance."""


@pytest.mark.parametrize(
    "weights", [WEIGHTS, WEIGHTS - 30.0, WEIGHTS + 12.0], ids=["as strong", "no data", "data alone"]
)
@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_times_a_factor_is_the_normal_of_both(vr, name, weights):
    ops, (make, mean, root) = vr.ops, PRIORS[name]
    prior = make(ops.asarray)
    product = prior.times(ops, Factor(ops.asarray(LOCS), ops.asarray(weights)))
    precision = np.linalg.inv(root @ root.T)
    covariance = np.linalg.inv(precision + np.diag(np.exp(weights)))
    place = [ops.to_numpy(product.place(ops.asarray(n))) for n in np.vstack([np.zeros(NUM), np.eye(NUM)])]
    found = np.stack(place[1:]).T - place[0][:, None]
    np.testing.assert_allclose(found @ found.T, covariance, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(place[0], covariance @ (precision @ mean + np.exp(weights) * LOCS), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(ops.to_numpy(product.log_det), np.linalg.slogdet(found)[1], rtol=1e-7, atol=1e-9)
    noise = ops.asarray(LOCS)
    np.testing.assert_allclose(ops.to_numpy(product.standardize(product.place(noise))), LOCS, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(ops.to_numpy(prior.precise(ops, noise)), precision @ LOCS, rtol=1e-7)


def test_conjugate_gradients_solve_a_system_and_stop_where_it_is_not_positive(vr):
    ops = vr.ops
    diagonal = (ROOT @ ROOT.T).diagonal().copy()
    matrix, scales = ops.asarray(ROOT @ ROOT.T), ops.asarray(diagonal)

    def about(v):
        return v / scales

    found = conjugate_gradients.solve(ops, lambda v: matrix @ v, ops.asarray(LOCS), about, 50)
    np.testing.assert_allclose(ops.to_numpy(found), np.linalg.solve(ROOT @ ROOT.T, LOCS), rtol=2e-2, atol=1e-3)
    cut_off = conjugate_gradients.solve(ops, lambda v: -(matrix @ v), ops.asarray(LOCS), about, 50)
    np.testing.assert_allclose(ops.to_numpy(cut_off), LOCS / diagonal)
