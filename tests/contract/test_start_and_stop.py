"""Where a fit starts, when it stops, and the frame and tails of its draws: the core, by both backends' arrays."""

import math

import numpy as np
import pytest
from harness import BACKENDS, ops_or_skip
from scipy.integrate import quad

from vi_reparam.errors import SiteError
from vi_reparam.fit.convergence import BLOCK, SHARES, Convergence
from vi_reparam.fit.escalation import Budget, _climb, mean_field_loss, why_stop
from vi_reparam.gaussians import path_gradient as path
from vi_reparam.gaussians import pathfinder as search
from vi_reparam.gaussians.bases import Diagonal, Full, LowRank
from vi_reparam.gaussians.preconditioner import Preconditioner
from vi_reparam.gaussians.tails import widen
from vi_reparam.guides import FullRank, NestedLaplace
from vi_reparam.posterior.attempt import Attempt

MIX = np.array([[1.0, 0.9, 0.0], [0.0, 0.5, 0.7], [0.3, 0.0, 0.6]])
MEAN = np.array([3.0, -20.0, 0.5])
PRECISION = MIX.T @ MIX + 0.1 * np.eye(3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_search_finds_a_gaussian_exactly(backend):
    ops = ops_or_skip(backend)
    xp = ops.xp
    mean, precision = xp.asarray(MEAN), xp.asarray(PRECISION)
    density = search.Density(
        values=lambda z: -0.5 * xp.sum(((z - mean[None]) @ precision) * (z - mean[None]), axis=-1),
        curvature=lambda z: (-precision @ (z - mean), -precision),
    )
    noise = ops.normal(ops.key(0), (64, 3), mean.dtype)
    state = search.begin(ops, xp.zeros(3, dtype=mean.dtype))
    for _ in range(4):
        state = search.advance(ops, density, noise, state)
    np.testing.assert_allclose(np.asarray(state["center"]), MEAN, atol=1e-10)
    root = np.asarray(state["root"])
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(PRECISION), atol=1e-10)
    assert np.allclose(root, np.tril(root)) and (np.diag(root) > 0.0).all()
    evidence = 1.5 * math.log(2.0 * math.pi) - 0.5 * np.linalg.slogdet(PRECISION)[1]
    assert abs(float(state["bound"]) - evidence) < 1e-9
    assert float(state["error"]) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_point_without_a_density_is_never_chosen(backend):
    ops = ops_or_skip(backend)
    xp = ops.xp
    density = search.Density(
        values=lambda z: xp.full_like(z[:, 0], math.nan),
        curvature=lambda z: (z * math.nan, z[:, None] * z[None]),
    )
    start = xp.ones(2, dtype=xp.asarray(MEAN).dtype)
    state = search.advance(ops, density, ops.normal(ops.key(0), (8, 2), start.dtype), search.begin(ops, start))
    assert float(state["bound"]) == -math.inf
    assert np.asarray(state["at"]).tolist() == [1.0, 1.0]


def test_places_that_are_one_get_one_run():
    places = np.array([0.0, 0.5, 30.0, 60.0, 90.0])
    bounds = np.array([-1.0, -0.5, -3.0, -40.0, -np.inf])
    assert search.places_apart(bounds, np.abs(places[:, None] - places[None])) == [1, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_narrow_place_beside_a_wide_one_is_another(backend):
    ops = ops_or_skip(backend)
    centers = ops.asarray(np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 0.0]]))
    roots = ops.asarray(np.stack([np.eye(2), 0.1 * np.eye(2), np.eye(2)]))
    found = np.asarray(search.distances(ops, centers, roots))
    np.testing.assert_allclose(found[0], [0.0, 3.0 / np.sqrt(0.505), 3.0])
    np.testing.assert_allclose(found, found.T)
    widened = search.with_widths(found, np.asarray(roots))
    np.testing.assert_allclose(widened[0], [0.0, np.sqrt(9.0 / 0.505 + 8.0 * np.log(5.05)), 3.0], atol=1e-12)
    np.testing.assert_allclose(widened, widened.T, atol=1e-12)
    many = np.stack([np.eye(search.SMALL + 1), 0.1 * np.eye(search.SMALL + 1)])
    assert search.with_widths(np.zeros((2, 2)), many).max() == 0.0  # widths alone set nothing apart here


@pytest.mark.parametrize("h", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_tails_have_their_density(backend, h):
    ops = ops_or_skip(backend)
    xp = ops.xp

    def at(n):
        x, log_density, slope = widen(ops, xp.asarray(np.array([n])), xp.asarray(np.array(h)))
        return float(x[0]), float(log_density), float(slope[0])

    for n in (-3.0, -0.2, 0.0, 1.0, 4.0):
        step = 1e-5
        (low, log_low, _), (high, log_high, _) = at(n - step), at(n + step)
        _, log_density, slope = at(n)
        stretch = (high - low) / (2.0 * step)
        assert abs(log_density - (-0.5 * n * n - 0.5 * math.log(2.0 * math.pi) - math.log(stretch))) < 1e-8
        assert abs(slope - (log_high - log_low) / (high - low)) < 1e-7
    total = quad(lambda n: math.exp(at(n)[1]) * (at(n + 1e-6)[0] - at(n - 1e-6)[0]) / 2e-6, -8.0, 8.0)[0]
    assert abs(total - 1.0) < 1e-6


@pytest.mark.parametrize("base", [Diagonal(), LowRank(2), Full()], ids=repr)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frame_folds_into_the_base(backend, base):
    """The same draw and log q in a frame, and with the frame folded into the parameters."""
    ops = ops_or_skip(backend)
    xp = ops.xp
    loc, scale = xp.asarray(np.array([0.3, -1.0, 2.0])), xp.asarray(np.array([0.5, 1.0, 3.0]))
    params = base.parameters(ops, ops.key(0), loc, scale)
    if isinstance(base, Full):
        params["lower"] = xp.asarray(MIX)
    roots = [scale * 2.0] + ([xp.asarray(np.tril(MIX) + np.eye(3))] if isinstance(base, Full) else [])
    noise, zero = ops.normal(ops.key(1), (3,), loc.dtype), xp.zeros((), dtype=loc.dtype)
    for root in roots:
        frame = Preconditioner(loc * 3.0, root)
        z, log_q = path.gaussian(ops, base, params, frame, zero, noise)
        folded = frame.fold(ops, params)
        plain = Preconditioner(xp.zeros_like(loc), xp.ones_like(loc))
        again, log_again = path.gaussian(ops, base, folded, plain, zero, noise)
        np.testing.assert_allclose(np.asarray(again), np.asarray(z), atol=1e-12)
        assert abs(float(log_again) - float(log_q)) < 1e-12
        assert abs(float(base.log_prob(ops, folded, z)) - float(log_q)) < 1e-12


def _walk(rng, num, mean, spread):
    return mean + spread * rng.standard_normal((num, 2))


def test_a_fit_that_stands_still_leaves_each_rate_and_ends():
    rng, course, steps = np.random.default_rng(0), Convergence(budget=10_000), 0
    while not course.finished:
        iterates = _walk(rng, BLOCK, np.array([1.0, -2.0]), 0.1 * course.rate)
        losses = 5.0 + 0.1 * rng.standard_normal(BLOCK)
        found = course.add(losses, iterates.mean(0), (iterates**2).mean(0))
        steps += BLOCK
    assert course.converged and steps < 2_500
    np.testing.assert_allclose(found, [1.0, -2.0], atol=0.01)


def test_a_fit_that_moves_on_uses_its_budget():
    rng, course, budget = np.random.default_rng(0), Convergence(budget=2_000), 2_000
    for i in range(budget // BLOCK):
        assert not course.finished
        iterates = _walk(rng, BLOCK, np.array([0.05 * i, 0.0]), 0.01)
        stage = course.stage
        course.add(100.0 - i + 0.1 * rng.standard_normal(BLOCK), iterates.mean(0), (iterates**2).mean(0))
        if course.stage > stage:
            assert course.done == math.ceil(SHARES[stage] * budget / BLOCK) * BLOCK
    assert course.finished and not course.converged and str(course) == "out of steps"
    assert course.falls == [math.ceil(share * budget / BLOCK) * BLOCK for share in SHARES[:-1]]


@pytest.mark.parametrize("after", [3, 7, 20])
def test_a_fit_goes_on_where_it_was_cut(after):
    """Its later decisions are those of a fit that was not cut, also when the state went through arrays."""
    rng = np.random.default_rng(0)
    blocks = [(list(rng.normal(size=BLOCK)), rng.normal(size=3), 1.0 + rng.random(3)) for _ in range(40)]
    whole, cut = Convergence(budget=2_000), Convergence(budget=2_000)
    for block in blocks[:after]:
        whole.add(*block)
        cut.add(*block)
    resumed = Convergence(budget=2_000)
    resumed.restore({name: np.asarray(value) for name, value in cut.state().items()})
    for block in blocks[after:]:
        if whole.finished:
            break
        found, again = whole.add(*block), resumed.add(*block)
        assert (found is None) == (again is None)
        if found is not None:
            np.testing.assert_array_equal(found, again)
    assert whole.finished and resumed.finished
    assert (whole.done, whole.converged) == (resumed.done, resumed.converged)
    assert whole.falls == resumed.falls and len(whole.falls) == 2


def _attempt(**changes):
    good = {"family": "A()", "elbo": -1.0, "error": 0.001, "khat": 0.2, "gap": 0.01, "shift": 0.01, "steps": 10}
    return Attempt(**{**good, **changes})


def test_when_to_stop():
    assert "is good" in why_stop([_attempt()], 1.0, Budget(10.0))
    assert not _attempt(gap=0.1).is_good and _attempt(gap=0.1, num_latents=400).is_good
    assert _attempt(gap=0.09, sampled=True).is_good and not _attempt(gap=0.09, khat=0.6, sampled=True).is_good
    bad = _attempt(khat=0.9)
    assert why_stop([bad], 1.0, Budget(10.0)) == ""
    assert "no richer family" in why_stop([bad], None, Budget(10.0))
    assert "5 gradients, and 2 of Escalate's" in why_stop([bad], 5.0, Budget(2.0))
    assert "the clock ended it" in why_stop([bad], 5.0, Budget(10.0, seconds=2.0, pace=1.0))
    assert "gained nothing" in why_stop([bad, bad, bad, _attempt(elbo=-1.001, khat=0.95)], 1.0, Budget(10.0))


class Fitted:
    """What a ladder asks of a posterior."""

    def __init__(self):
        self.record = {}

    def attempt(self, *, seconds):
        return _attempt(seconds=seconds)


def test_a_first_family_without_steps_may_not_suit():
    """It is noted, and the next one is fitted; the refusal of a family that takes steps is the model's."""

    def fit(family):
        if family != good:
            raise SiteError("it does not suit")
        return Fitted()

    def climb(*ladder):
        return _climb(ladder, fit, lambda family: "", lambda family: 1, gradients=100, seconds=math.inf)

    good = FullRank()
    tried = climb(NestedLaplace(), good).record["tried"]
    assert [row["note"] for row in tried] == ["failed: it does not suit", ""]
    good = NestedLaplace()
    with pytest.raises(SiteError, match="does not suit"):
        climb(FullRank(), good)


@pytest.mark.parametrize(
    ("change", "better"),
    [({"elbo": -0.5}, True), ({"elbo": -2.0}, False), ({"elbo": -1.001, "khat": 0.1}, True), ({"khat": 0.6}, False)],
)
def test_what_is_better(change, better):
    assert _attempt(**change).is_better_than(_attempt()) == better


def test_what_correlations_cost_a_mean_field():
    """KL from the best product of normals to a Gaussian, in closed form."""
    root = np.linalg.cholesky(np.linalg.inv(PRECISION))
    loss = mean_field_loss(root, np.linalg.inv(root))
    best = np.diag(1.0 / np.diag(PRECISION))
    kl = 0.5 * (np.trace(PRECISION @ best) - 3.0 - np.linalg.slogdet(PRECISION @ best)[1])
    assert abs(loss - kl) < 1e-12
