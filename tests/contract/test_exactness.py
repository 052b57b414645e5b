"""Every estimator's mean gradient is the exact one, in every family that it serves."""

import numpy as np
import pytest
from harness import BACKENDS, jax_gradients, mean_and_error, ops_or_skip, torch_gradients
from rows import ROWS

from vi_reparam import Rejection


def _marks(backend, row, estimator):
    """Every day in torch, which compiles nothing: with_pyro/test_pyro_same_noise.py holds the other backend to it.

    The small boost is the default one's code: the gamma's own rows are enough for every day.
    """
    again = estimator == Rejection(boost=1) and not row.name.startswith("gamma-")
    return (pytest.mark.slow,) if again or backend == "numpyro" else ()


CASES = [
    pytest.param(backend, row, e, id=f"{backend}-{row.name}-{e!r}", marks=_marks(backend, row, e))
    for backend in BACKENDS
    for row in ROWS
    for e in row.estimators
]
BATCH = 100_000


@pytest.mark.parametrize(("backend", "row", "estimator"), CASES)
def test_mean_gradient_is_exact(backend, row, estimator):
    ops_or_skip(backend)
    truth = row.truth()
    wanted = 0.01 * np.maximum(np.abs(truth), 0.1)
    gradients = {"numpyro": jax_gradients, "pyro": torch_gradients}[backend](estimator, row, BATCH)
    mean, error = mean_and_error(gradients, wanted)
    assert np.all(error < wanted), f"standard error {error}, wanted {wanted}: raise the number of batches"
    # Where a gradient does not vary at all, its rounding and that of the quadrature remain.
    z = (mean - truth) / np.hypot(error, 1e-6 * np.maximum(np.abs(truth), 1.0))
    assert np.all(np.abs(z) < 4.0), f"mean {mean}, exact {truth}, standard error {error}, z {z}"


def test_dropping_the_correction_is_caught():
    """Without boost the KL's gradient at a = 1 comes out 16% too large; the table's test would see it."""
    ops_or_skip("pyro")
    row = next(row for row in ROWS if row.name == "gamma-1")
    plain = row.estimators[0]
    assert plain.boost == 0
    mean, error = mean_and_error(torch_gradients(plain, row, BATCH, corrected=False), 0.01 * 3.28987)
    mean, error = mean[0, 1], error[0, 1]
    assert mean / -3.28987 - 1.0 == pytest.approx(0.16, abs=0.01)
    assert abs(mean + 3.28987) / error > 4.0


def test_a_score_function_gives_no_number_for_a_moving_edge():
    jax = pytest.importorskip("jax")
    from vi_reparam import Implicit, ScoreFunction, load
    from vi_reparam.families import FAMILIES

    ops, family = load("numpyro").ops, FAMILIES["truncated_normal"]

    def mean(low, estimator):
        scalars = (jax.numpy.asarray(x) for x in (0.0, 1.0))
        draw = estimator.draw(ops, ops.key(0), family, (5,), *scalars, low, jax.numpy.asarray(np.inf))
        return (draw.value if draw.score_term is None else draw.value * draw.score_term).sum()

    assert np.isfinite(jax.jit(jax.grad(mean), static_argnums=1)(0.5, Implicit()))
    assert not np.isfinite(jax.jit(jax.grad(mean), static_argnums=1)(0.5, ScoreFunction()))
