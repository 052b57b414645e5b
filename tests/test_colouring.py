"""Second derivatives of few products, and of a matrix that is factored in blocks."""

import numpy as np
import pytest

from vi_reparam.fit.colouring import of_pattern, pattern


def walk(size):
    return np.abs(np.subtract.outer(np.arange(size), np.arange(size))) <= 1


def groups(size):
    """Two latents a group, which know of each other, and one of which all know."""
    known = np.kron(np.eye(size, dtype=bool), np.ones((2, 2), dtype=bool))
    known = np.pad(known, (0, 1), constant_values=True)
    return known


@pytest.mark.parametrize(("known", "most"), [(walk(40), 3), (groups(20), 3), (np.eye(30, dtype=bool), 1)])
def test_few_products_give_all_entries(known, most):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=known.shape)
    matrix = (matrix + matrix.T) * known
    seeds, mask = of_pattern(known)
    assert len(seeds) <= most
    assert (seeds.sum(0) == 1.0).all()
    found = mask * (matrix @ seeds.T @ seeds)
    np.testing.assert_allclose(found + (1.0 - mask) * found.T, matrix)


def test_a_full_matrix_is_looked_at_column_by_column():
    seeds, mask = of_pattern(np.ones((9, 9), dtype=bool))
    np.testing.assert_array_equal(seeds, np.eye(9))
    assert mask.all()


def test_the_pattern_is_that_of_the_slopes():
    """Slopes of -sum (z[i + 1] - z[i])^4, at places of which the first is not finite."""

    def slopes(z):
        step = 4.0 * np.diff(z, axis=1) ** 3
        return np.pad(step, ((0, 0), (0, 1))) - np.pad(step, ((0, 0), (1, 0)))

    places = np.random.default_rng(0).normal(size=(4, 12))
    places[0, 3] = np.nan
    np.testing.assert_array_equal(pattern(slopes, places), walk(12))
    assert pattern(slopes, np.full((2, 12), np.nan)).all()


@pytest.mark.parametrize("size", [1, 5, 32, 33, 70])
def test_factors_of_many_matrices(vr, size):
    ops, rng = vr.ops, np.random.default_rng(size)
    roots = np.tril(rng.normal(size=(3, size, size))) + 3.0 * np.sqrt(size) * np.eye(size)
    found = ops.vmap(ops.cholesky)(ops.asarray(roots @ roots.transpose(0, 2, 1)))
    np.testing.assert_allclose(ops.to_numpy(found), roots, atol=1e-9 * size)
    lost = ops.to_numpy(ops.cholesky(ops.asarray(-np.eye(size))))
    assert not np.isfinite(lost).all()
