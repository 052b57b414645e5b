"""One site of a guide in either framework: draws through wrappers, precise densities, who draws, where draws go."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
from harness import BACKENDS, ops_or_skip
from scipy import stats

from vi_reparam import ArgumentError, GradientError, Implicit, Pathwise, Rejection, ScoreFunction, SiteError
from vi_reparam.sites.choice import Chooser, as_mapping
from vi_reparam.sites.density import entropy_of, precise_log_prob
from vi_reparam.sites.draw import resolve, sample_with
from vi_reparam.sites.emission import ALONE, emit, emit_vector
from vi_reparam.sites.recorder import Recorder, current, recording
from vi_reparam.sites.wrappers import innermost


def of(backend):
    ops = ops_or_skip(backend)
    dist = importlib.import_module(f"{backend}.distributions")
    return ops, dist, importlib.import_module(f"vi_reparam_{backend}.host.families").reader


def wrapped(ops, dist, dtype="float64"):
    """A gamma in every wrapper but a transform. Batch shape [2], event shape [3]."""
    xp = ops.xp
    shape = xp.asarray(np.full((1, 3), 0.01), dtype=getattr(xp, dtype))
    rate = xp.asarray(np.ones((1, 3)), dtype=getattr(xp, dtype))
    return dist.Gamma(shape, rate).expand((2, 3)).to_event(1).mask(xp.asarray([True, False]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_guide_as_its_own_model_has_log_weight_zero_in_single_precision(backend):
    ops, dist, reader = of(backend)
    d = wrapped(ops, dist, "float32")
    drawn = sample_with(reader, ops, d, Implicit(), ops.key(3), (2,))
    log_p = ops.to_numpy(precise_log_prob(reader, d, drawn.draw.value, drawn.family, drawn.draw.logs))
    np.testing.assert_allclose(log_p, ops.to_numpy(drawn.draw.log_prob), rtol=1e-5)
    assert log_p.shape == (2,)
    assert log_p[0] != 0.0
    assert log_p[1] == 0.0
    plain = ops.to_numpy(precise_log_prob(reader, d, drawn.draw.value, drawn.family, None))
    np.testing.assert_allclose(plain, ops.to_numpy(d.log_prob(drawn.draw.value)))
    everywhere = dist.Gamma(ops.asarray(0.01), ops.asarray(1.0)).mask(True)
    one = sample_with(reader, ops, everywhere, Implicit(), ops.key(3), ())
    same = precise_log_prob(reader, everywhere, one.draw.value, one.family, one.draw.logs)
    np.testing.assert_allclose(ops.to_numpy(same), ops.to_numpy(one.draw.log_prob))


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrappers_are_read_through(backend):
    ops, dist, reader = of(backend)
    d = wrapped(ops, dist)
    assert type(innermost(reader, d)) is dist.Gamma
    assert resolve(reader, Rejection(), d)[1].name == "gamma"
    np.testing.assert_allclose(ops.to_numpy(entropy_of(reader, d)), [3.0 * stats.gamma(0.01).entropy(), 0.0], rtol=1e-9)
    normal = dist.TransformedDistribution(
        dist.Normal(ops.asarray(np.zeros(3)), ops.asarray(np.ones(3))), [dist.transforms.ExpTransform()]
    )
    drawn = sample_with(reader, ops, normal, ScoreFunction(), ops.key(1), (3,))
    np.testing.assert_allclose(ops.to_numpy(drawn.draw.log_prob), ops.to_numpy(normal.log_prob(drawn.draw.value)))
    again = sample_with(reader, ops, normal, Pathwise(), ops.key(2), (3,), drawn.draw.value)
    np.testing.assert_allclose(ops.to_numpy(again.draw.value), ops.to_numpy(drawn.draw.value))
    with pytest.raises(SiteError, match="no entropy in closed form"):
        entropy_of(reader, normal)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_recorder_holds_moves_and_shifts(backend):
    ops, dist, reader = of(backend)
    d = dist.Bernoulli(probs=ops.asarray(np.full(4, 0.5)))
    drawn = sample_with(reader, ops, d, ScoreFunction(), ops.key(1), (4,))
    other = 1.0 - drawn.draw.value
    recorder = Recorder(
        held={"z": other},
        moved={"z": ops.xp.asarray([True, True, False, False])},
        shifts={"z": ops.xp.zeros(4, dtype=ops.xp.float32)},
    )
    assert current() is None
    with recording(recorder), recording(None):
        value, known = emit("z", drawn, lambda sampled: None)
        with pytest.raises(GradientError, match="drew twice"):
            emit("z", drawn, lambda sampled: None)
    assert current() is None
    assert not known
    assert value.dtype == drawn.draw.value.dtype
    expected = np.where([True, True, False, False], ops.to_numpy(other), ops.to_numpy(drawn.draw.value))
    np.testing.assert_array_equal(ops.to_numpy(value), expected)
    with pytest.raises(GradientError, match="near site 'z', but the wrapper would drop its score term"):
        recorder.finish()
    recorder.consume("z")
    recorder.finish()
    pathwise = sample_with(reader, ops, dist.Gamma(ops.asarray(2.0), ops.asarray(1.0)), Implicit(), ops.key(1), ())
    for _ in range(2):  # draws inside other distributions have no name, and nothing to lose
        recorder.report("", pathwise)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_vector_reports_itself_or_is_guarded(backend):
    ops, _, _ = of(backend)

    def value_of(x, **options):
        vector = SimpleNamespace(value=x, log_q=-(x * x).sum(), score_term=None, frozen=False, **options)
        return vector

    def emitted(objective, **changes):
        def total(x):
            vector = SimpleNamespace(**{**vars(value_of(x)), **changes})
            value, log_q = emit_vector(ops, "v", vector, lambda: objective, linear=("ELBO",))
            return value.sum() + log_q

        return ops.to_numpy(ops.grad(total)(ops.asarray(np.ones(2))))

    np.testing.assert_allclose(emitted("RenyiELBO"), [-1.0, -1.0])
    np.testing.assert_allclose(emitted("ELBO", frozen=True), [-1.0, -1.0])
    np.testing.assert_allclose(emitted(ALONE, frozen=True), [-1.0, -1.0])
    with pytest.raises(GradientError, match="biased under RenyiELBO"):
        emitted("RenyiELBO", frozen=True)
    zero = ops.asarray(0.0)
    with pytest.raises(GradientError, match="score term that this computation would drop"):
        emitted(ALONE, score_term=zero)
    recorder = Recorder()
    with recording(recorder):
        np.testing.assert_allclose(emitted("ELBO", frozen=True, score_term=zero), [-1.0, -1.0])
    assert recorder.frozen == {"v": True}
    assert recorder.draws["v"].estimator == ScoreFunction(baseline="leave_one_out")
    recorder.finish()


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_draws_a_site(backend):
    ops, dist, reader = of(backend)
    gamma, uniform = dist.Gamma(ops.asarray(2.0), ops.asarray(1.0)), dist.Uniform(ops.asarray(0.0), ops.asarray(1.0))
    own = {"estimator": Rejection()}

    def choose(estimators, *sites):
        chooser = Chooser(reader, as_mapping(estimators))
        found = [chooser.choose(name, d, infer, is_point=False) for name, d, infer in sites]
        chooser.finish()
        return found

    assert choose(None, ("a", gamma, {}), ("b", gamma, own)) == [None, Rejection()]
    both = {"a": Implicit(), "*": ScoreFunction()}
    sites = [("a", gamma, own), ("b", gamma, own), ("c", gamma, {})]
    assert choose(both, *sites) == [Implicit(), Rejection(), ScoreFunction()]
    assert repr(choose(Rejection(), ("a", gamma, {}), ("b", uniform, {}))[1]) == "Auto()"
    with pytest.raises(SiteError, match="does not apply to Uniform"):
        choose(Rejection(), ("b", uniform, {}))
    with pytest.raises(ArgumentError, match=r"name \['x'\], which the guide does not draw: it draws \['a'\]"):
        choose({"x": Implicit()}, ("a", gamma, {}))
    with pytest.raises(ArgumentError, match=r"infer\['estimator'\] is 3"):
        choose(None, ("a", gamma, {"estimator": 3}))
    for wrong in (3, {"a": 3}):
        with pytest.raises(ArgumentError, match="expected an estimator"):
            as_mapping(wrong)
    chooser = Chooser(reader, {})
    chooser.note("a", ScoreFunction(baseline="decaying_average"), (5, 2, 3), {-1, -3})
    chooser.note("b", Implicit(), (5,), {-1})
    start = chooser.averages(ops)
    assert list(start) == ["a"]
    assert tuple(start["a"]["mean"].shape) == (5, 1, 3)
