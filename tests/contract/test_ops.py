"""Arrays, keys, rows, derivatives and trees mean the same in every backend."""

import numpy as np
import pytest
from harness import BACKENDS, ops_or_skip

from vi_reparam.backend.ops import Ops


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_in_every_backend(backend):
    ops = ops_or_skip(backend)
    assert isinstance(ops, Ops)
    x = ops.asarray(np.asarray([1.0, 2.0], np.float32))
    assert x.dtype == ops.float_dtype()
    assert "int" in str(ops.asarray(np.asarray([1, 2])).dtype)

    def cubes(x):
        return (x**3).sum()

    ones = ops.asarray(np.ones((3, 2)))
    slope = ops.grad(cubes)
    np.testing.assert_allclose(ops.to_numpy(slope(x)), [3.0, 12.0])
    np.testing.assert_allclose(ops.to_numpy(ops.jacobian(slope)(x)), [[6.0, 0.0], [0.0, 12.0]])
    np.testing.assert_allclose(ops.to_numpy(ops.vmap(slope)(ones)), 3.0 * np.ones((3, 2)))
    assert tuple(ops.vmap(ops.jacobian(slope))(ones).shape) == (3, 2, 2)
    products, same = ops.products(slope, x, ops.asarray(np.asarray([[1.0, 1.0]])))
    np.testing.assert_allclose(ops.to_numpy(products), [[6.0, 12.0]])
    np.testing.assert_allclose(ops.to_numpy(same), [3.0, 12.0])
    for values in (np.ones(()), np.arange(5.0), np.arange(6.0).reshape(2, 3), np.ones((0, 2))):
        np.testing.assert_array_equal(ops.to_numpy(ops.once(ops.asarray(values))), values)
    both = ops.vmap(lambda row, y: row["x"] + y, (0, None))({"x": ones}, x)
    np.testing.assert_allclose(ops.to_numpy(both), [[2.0, 3.0]] * 3)

    tree = ops.grad(lambda t: t["b"].sum() * t["a"][0])({"b": x, "a": (x[0], x)})
    np.testing.assert_allclose(ops.to_numpy(tree["a"][1]), [0.0, 0.0])
    assert float(tree["a"][0]) == 3.0
    np.testing.assert_allclose(ops.to_numpy(ops.grad(lambda x: ops.asarray(3.0))(x)), [0.0, 0.0])

    assert ops.tree_leaves({"b": 1, "a": [2, None]}) == [2, 1]
    assert ops.tree_map(lambda a, b: a - b, {"b": 1, "a": (2, None)}, {"a": (3, None), "b": 5}) == {
        "b": -4,
        "a": (-1, None),
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_run_and_every_number_has_noise_of_its_own(backend):
    ops = ops_or_skip(backend)

    def noise(key):
        return ops.to_numpy(ops.normal(key, (2,), ops.float_dtype()))

    key = ops.key(1)
    many = ops.many(lambda key: {"x": ops.normal(key, (2,), ops.float_dtype())}, key, 3)
    assert len(np.unique(ops.to_numpy(many["x"]))) == 6
    keys = [key, *ops.split(key, 3), *(ops.fold_in(key, n) for n in range(3)), ops.aux_key(key)]
    assert len(np.unique(np.stack([noise(k) for k in keys]))) == 2 * len(keys)
    np.testing.assert_array_equal(noise(ops.fold_in(key, 2)), noise(ops.fold_in(key, 2)))
