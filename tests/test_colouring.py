"""Second derivatives of few products, as an arrow that is factored in blocks."""

import numpy as np
import pytest

from vi_reparam.fit.colouring import Pattern, full, of_pattern, pattern
from vi_reparam.programs.curvature import Curvature


def walk(size):
    return np.abs(np.subtract.outer(np.arange(size), np.arange(size))) <= 1


def groups(size):
    """Two latents a group, which know of each other, and one of which all know."""
    known = np.kron(np.eye(size, dtype=bool), np.ones((2, 2), dtype=bool))
    known = np.pad(known, (0, 1), constant_values=True)
    return known


def three(size):
    """Of each six, one, two and three know of each other."""
    own = np.array([0, 1, 1, 2, 2, 2])[np.arange(size) % 6]
    return np.equal.outer(own, own)


def precision(known, rng):
    """A positive definite matrix with these entries, its rows in any order."""
    order = rng.permutation(len(known))
    matrix = np.where(known, rng.normal(size=known.shape), 0.0)
    matrix = matrix + matrix.T
    matrix += (1.0 + np.abs(matrix).sum(1).max()) * np.eye(len(known))
    return matrix[np.ix_(order, order)], known[np.ix_(order, order)]


CASES = {
    "a walk": (walk(40), 3),
    "a longer walk": (walk(300), 3),
    "groups and one of all": (groups(20), 3),
    "many groups and one of all": (groups(100), 3),
    "groups of one to three": (np.kron(np.eye(30, dtype=bool), np.ones((6, 6), dtype=bool)) & three(180), 3),
    "none": (np.eye(70, dtype=bool), 1),
    "all": (np.ones((50, 50), dtype=bool), 50),
    "one": (np.ones((1, 1), dtype=bool), 1),
}


def looked(ops, form, matrix, x, noise):
    """The matrix times each x solved, log densities of its draws, and the draws."""
    held = ops.asarray(matrix)

    def one(x, noise):
        own = Curvature(*(ops.asarray(part) for part in form))
        root, slope = own.look(ops, lambda z: -held @ z, x)
        way, _ = own.step(ops, root, -slope)
        return way, root.log_density(ops, noise), own.ways(ops, root, noise)

    return map(ops.to_numpy, ops.compiled(ops.vmap(one))(ops.asarray(x), ops.asarray(noise)))


def is_exact(ops, form, matrix):
    rng = np.random.default_rng(1)
    x, noise = rng.normal(size=(2, 3, len(matrix)))
    same, log_q, ways = looked(ops, form, matrix, x, noise)
    np.testing.assert_allclose(same, x, atol=1e-9)
    lengths = np.einsum("ni,ij,nj->n", ways, matrix, ways)
    np.testing.assert_allclose(lengths, (noise**2).sum(1))
    exact = 0.5 * (np.linalg.slogdet(matrix)[1] - len(matrix) * np.log(2.0 * np.pi) - lengths)
    np.testing.assert_allclose(log_q, exact)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("whole", [False, True], ids=["arrow", "full"])
def test_few_products_give_a_factor(vr, case, whole):
    matrix, known = precision(CASES[case][0], np.random.default_rng(0))
    form = full(len(known)) if whole else of_pattern(Pattern(known, np.zeros(len(known))), scalars=1_000)
    assert whole or len(form.seeds) <= CASES[case][1]
    is_exact(vr.ops, form, matrix)


@pytest.mark.parametrize("case", ["a longer walk", "many groups and one of all"])
def test_a_soft_sum_leaves_the_zeros(vr, case):
    """What ``Normal(0, 0.1)`` of the sum of half of the latents adds to each pair of these."""
    matrix, known = precision(CASES[case][0], np.random.default_rng(0))
    half = np.arange(len(matrix)) % 2 == 0
    both = matrix + 100.0 * np.outer(half, half)
    found = pattern(lambda z: -z @ both, np.random.default_rng(2).normal(size=(2, len(matrix))))
    np.testing.assert_allclose(found.shared, 10.0 * half, rtol=1e-6)
    np.testing.assert_array_equal(found.known, known)
    form = of_pattern(found, scalars=1_000)
    assert len(form.seeds) <= CASES[case][1]
    is_exact(vr.ops, form, both)


@pytest.mark.parametrize("case", ["a longer walk", "all"])
def test_a_matrix_without_a_factor_gives_a_diagonal_one(vr, case):
    known, ops = CASES[case][0], vr.ops
    form, ones = of_pattern(Pattern(known, np.zeros(len(known)))), np.ones((1, len(known)))
    way, log_q, ways = looked(ops, form, -np.eye(len(known)), ones, ones)
    assert (ways > 0.5).all() and (ways < 1.0).all() and np.isfinite(way).all() and np.isfinite(log_q).all()


def test_the_pattern_is_that_of_the_slopes():
    """Slopes of -sum (z[i + 1] - z[i])^4, at places of which the first is not finite."""

    def slopes(z):
        step = 4.0 * np.diff(z, axis=1) ** 3
        return np.pad(step, ((0, 0), (0, 1))) - np.pad(step, ((0, 0), (1, 0)))

    places = np.random.default_rng(0).normal(size=(4, 12))
    places[0, 3] = np.nan
    np.testing.assert_array_equal(pattern(slopes, places).known, walk(12))
    assert pattern(slopes, np.full((2, 12), np.nan)).known.all()
    far = np.where(np.arange(12) == 3, 40.0, np.zeros((2, 12)))

    def overflows(z):  # where the fourth is above 40.05
        return np.where(z[:, 3:4] > 40.05, np.nan, slopes(z))

    np.testing.assert_array_equal(pattern(overflows, far).known, walk(12))  # by smaller differences


@pytest.mark.parametrize("size", [1, 5, 32, 33, 70])
def test_factors_of_many_matrices(vr, size):
    ops, rng = vr.ops, np.random.default_rng(size)
    roots = np.tril(rng.normal(size=(3, size, size))) + 3.0 * np.sqrt(size) * np.eye(size)
    found = ops.vmap(ops.cholesky)(ops.asarray(roots @ roots.transpose(0, 2, 1)))
    np.testing.assert_allclose(ops.to_numpy(found), roots, atol=1e-9 * size)
    lost = ops.to_numpy(ops.cholesky(ops.asarray(-np.eye(size))))
    assert not np.isfinite(lost).all()
