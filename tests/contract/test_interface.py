"""What every estimator promises in every family: shapes, dtypes, determinism, given values."""

import numpy as np
import pytest
from harness import BACKENDS, jax_gradients, mean_and_error, ops_or_skip, quickly
from own_samplers import SkewNormal, SlowExponential
from rows import ROWS

from vi_reparam import (
    ArgumentError,
    GradientError,
    Implicit,
    MeasureValued,
    Pathwise,
    Rejection,
    ScoreFunction,
    SiteError,
)
from vi_reparam.families import FAMILIES, SamplerFamily
from vi_reparam.samplers import PolarLogit, TruncatedNormalOffset

ESTIMATORS = (Pathwise(), Implicit(), Rejection(boost=1), ScoreFunction(), MeasureValued())
ALL = {**FAMILIES, "own": SamplerFamily(SkewNormal()), "own_implicit": SamplerFamily(SlowExponential())}
CASES = [pytest.param(n, e, id=f"{n}-{e!r}") for n, f in ALL.items() for e in ESTIMATORS if e.applies_to(f)]


def _params(ops, name, dtype):
    """Parameters of different batch ranks, broadcasting to (2, 4)."""
    family, out = ALL[name], []
    for i, (parameter, dims) in enumerate(zip(family.parameters, family.parameter_event_dims, strict=True)):
        batch = (4,) if i % 2 == 0 else (2, 1)
        p = np.full(batch + (3,) * dims, 1.3 + 0.2 * i) - (2.0 if parameter == "low" else 0.0)
        if parameter == "direction":
            p = p / np.sqrt((p * p).sum(-1, keepdims=True))
        out.append(ops.xp.asarray(p, dtype=getattr(ops.xp, dtype)))
    return family, tuple(out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "estimator"), CASES)
def test_shapes_and_dtypes(backend, dtype, name, estimator):
    ops = ops_or_skip(backend)
    family, params = _params(ops, name, dtype)
    batch = (2, 4) if len(params) > 1 else (4,)
    assert family.batch_shape(*params) == batch
    shape, event = (5, *batch), (3,) * family.event_dim

    def draw(key, *params):
        d = estimator.draw(ops, key, family, shape, *params)
        found = [d.log_prob, *([] if d.score_term is None else [d.score_term]), family.log_prob(d.value, *params)]
        try:
            entropy = family.entropy(*params)
        except SiteError:
            entropy = None
        return d.value, found, [b.weight for b in d.branches], [b.value for b in d.branches], d.logs, entropy

    if backend == "numpyro":
        import jax

        value, scalars, weights, branches, logs, entropy = jax.eval_shape(draw, ops.key(0), *params)
    else:
        value, scalars, weights, branches, logs, entropy = draw(ops.key(0), *params)
    wanted = getattr(ops.xp, dtype)
    for array in (value, *branches):
        assert (tuple(array.shape), array.dtype) == ((*shape, *event), wanted)
    for array in (*scalars, *weights):
        assert (tuple(array.shape), array.dtype) == (shape, wanted)
    assert all(log.dtype == wanted for log in logs or ())
    if entropy is not None:
        assert (tuple(entropy.shape), entropy.dtype) == (batch, wanted)


@pytest.mark.parametrize("name", ALL)
def test_draws_depend_on_the_key_alone_and_jit_changes_nothing(name):
    ops = ops_or_skip("numpyro")
    family, params = _params(ops, name, "float64")
    estimator = ScoreFunction()
    shape = family.batch_shape(*params)

    def draw(key):
        d = estimator.draw(ops, key, family, shape, *params)
        return d.value, d.log_prob

    compiled = quickly(ops, draw)
    first, again, other = (compiled(ops.key(seed)) for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    if name in ("gamma", "von_mises"):  # an operation at a time: slow
        for a, b in zip(first, draw(ops.key(1)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    if name not in ("bernoulli", "poisson"):
        assert not np.any(np.asarray(first[0]) == np.asarray(other[0]))


def test_torch_draws_follow_the_key():
    ops = ops_or_skip("pyro")
    family, params = _params(ops, "von_mises_fisher", "float64")
    values = [np.asarray(Implicit().draw(ops, ops.key(s), family, (2, 4), *params).value) for s in (1, 1, 2)]
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.any(values[0] == values[2])


# Where the value alone does not fix the noise, it is drawn from its conditional law.
GIVEN = [n for n in ALL if n not in ("bernoulli", "poisson", "own")]


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        pytest.param(b, n, marks=pytest.mark.slow if b == "numpyro" and n in ("dirichlet", "student_t") else ())
        for b in BACKENDS
        for n in GIVEN
        if b == "pyro" or n not in ("gamma", "inverse_gamma", "chi2", "beta")
    ],
)
def test_a_given_value_comes_back(backend, name):
    ops = ops_or_skip(backend)
    family, params = _params(ops, name, "float64")
    shape = (3, *family.batch_shape(*params))
    estimators = [e for e in ESTIMATORS if e.applies_to(family) and e != MeasureValued()]

    def replay(key, other, *params):
        value = estimators[-1].draw(ops, key, family, shape, *params).value
        again = [e.draw(ops, other, family, shape, *params, value=value) for e in estimators]
        return value, family.log_prob(value, *params), [(d.value, d.log_prob) for d in again]

    value, log_prob, again = quickly(ops, replay)(ops.key(4), ops.key(5), *params)
    for same, density in again:
        np.testing.assert_allclose(np.asarray(same), np.asarray(value), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(np.asarray(density), np.asarray(log_prob), rtol=1e-7, atol=1e-7)


REPLAYED = ("gamma-1.5", "beta", "dirichlet", "student-t", "von-mises", "truncated-around")


def _boosts(row):
    """The default; where there is something to augment a small one; and for one family none at all."""
    return (0, 1, 3) if row.name == "gamma-1.5" else (1, 3) if row.family.shape_parameters else (3,)


@pytest.mark.parametrize(
    ("row", "boost"),
    [
        # The small boost is the default one's code, a beta is a Dirichlet, a Student t's shape is a gamma's: once is
        # enough for every day.
        pytest.param(
            row,
            b,
            id=f"{row.name}-{b}",
            marks=pytest.mark.slow if row.name in ("beta", "student-t") or b == 1 else (),
        )
        for row in ROWS
        if row.name in REPLAYED
        for b in _boosts(row)
    ],
)
def test_a_given_value_has_the_right_gradient(row, boost):
    """Values drawn elsewhere, noise recovered: the gradient's mean is still the exact one."""
    ops_or_skip("numpyro")
    truth = row.truth()
    wanted = 0.02 * np.maximum(np.abs(truth), 0.1)
    mean, error = mean_and_error(jax_gradients(Replayed(boost), row, 100_000), wanted)
    assert np.all(error < wanted)
    assert np.all(np.abs(mean - truth) < 4.0 * error), (mean, truth, error)


class Replayed(Rejection):
    """Draws by score function, forgets the noise, and asks for the acceptance-rejection gradient."""

    def __init__(self, boost):
        super().__init__(boost=boost, min_concentration=1.0)

    def draw(self, ops, key, family, shape, *params, value=None):
        draw_key, noise_key = ops.split(key, 2)
        value = ScoreFunction().draw(ops, draw_key, family, shape, *params).value
        return super().draw(ops, noise_key, family, shape, *params, value=value)


def test_what_cannot_be_recovered_raises():
    ops = ops_or_skip("numpyro")
    family, params = _params(ops, "own", "float64")
    value = ops.xp.ones((2, 4))
    with pytest.raises(GradientError, match="no inverse"):
        Rejection().draw(ops, ops.key(0), family, (2, 4), *params, value=value)


@pytest.mark.parametrize(
    ("name", "estimator", "names"),
    [
        ("von_mises", Pathwise(), "Implicit, Rejection, ScoreFunction"),
        ("truncated_normal", MeasureValued(), "Implicit, Rejection, ScoreFunction"),
        ("own", Implicit(), "Rejection, ScoreFunction"),
        ("poisson", Rejection(), "MeasureValued, ScoreFunction"),
    ],
)
def test_estimators_that_do_not_apply_name_those_that_do(name, estimator, names):
    ops = ops_or_skip("numpyro")
    family, params = _params(ops, name, "float64")
    with pytest.raises(SiteError, match=names):
        estimator.draw(ops, ops.key(0), family, family.batch_shape(*params), *params)


def test_own_samplers_are_read_from_their_signature():
    assert SamplerFamily(SkewNormal()).parameters == ("alpha", "scale")
    assert SamplerFamily(SkewNormal(), parameters=2).parameters == ("params[0]", "params[1]")
    assert "implicit" in SamplerFamily(SlowExponential()).kinds and "implicit" not in SamplerFamily(SkewNormal()).kinds
    sampler = SkewNormal()
    assert SamplerFamily(sampler) == SamplerFamily(sampler) and hash(SamplerFamily(sampler)) == hash(
        SamplerFamily(sampler)
    )
    with pytest.raises(ArgumentError, match="name them"):
        SamplerFamily(TruncatedNormalOffset())
    with pytest.raises(ArgumentError, match="at least 2"):
        PolarLogit(1)


def test_these_laws_run_without_rank_promotion():
    jax = pytest.importorskip("jax")
    with pytest.raises(ValueError, match="rank"):
        jax.numpy.ones((2, 3)) + jax.numpy.ones(3)
