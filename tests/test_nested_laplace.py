"""Guides whose latents lie at their mode given a few globals, in both backends, against quadrature."""

import math

import numpy as np
import pytest

ROWS, COLUMNS = np.repeat(np.arange(6), 5), np.tile(np.arange(5), 6)
NOISE, OTHER = 0.6, 0.5
_rng = np.random.default_rng(0)
Y = 0.4 + (0.9 * _rng.normal(size=6))[ROWS] + (OTHER * _rng.normal(size=5))[COLUMNS] + NOISE * _rng.normal(size=30)


def crossed(vr):
    """Two crossed effects, one of unknown size, which is given on the logarithmic scale."""
    h, xp = vr.host, vr.ops.xp

    def model(y=None):
        level = h.sample("level", h.dist.Normal(h.array(0.0), h.array(2.0)))
        size = h.sample("size", h.dist.Normal(h.array(0.0), h.array(0.7)))
        with h.plate("rows", 6):
            row = h.sample("row", h.dist.Normal(h.array(0.0), xp.exp(size)))
        with h.plate("columns", 5):
            column = h.sample("column", h.dist.Normal(h.array(0.0), h.array(OTHER)))
        with h.plate("data", 30):
            h.sample("y", h.dist.Normal(level + row[ROWS] + column[COLUMNS], h.array(NOISE)), obs=y)

    return model


@pytest.fixture(scope="module")
def exact():
    """Log evidence; mean and sd of `size`; mean of the first row's effect; by quadrature over `size`."""
    grid = np.linspace(-4.0, 3.0, 2_001)
    design = np.concatenate([np.eye(6)[ROWS], np.eye(5)[COLUMNS], np.ones((30, 1))], axis=1)
    heights, firsts = [], []
    for size in grid:
        prior = np.diag(np.concatenate([np.full(6, math.exp(2.0 * size)), np.full(5, OTHER**2), [4.0]]))
        covariance = design @ prior @ design.T + NOISE**2 * np.eye(30)
        solved = np.linalg.solve(covariance, Y)
        heights.append(-0.5 * (30 * math.log(2.0 * math.pi) + np.linalg.slogdet(covariance)[1] + Y @ solved))
        firsts.append((prior @ design.T @ solved)[0])
    log_p = np.array(heights) - 0.5 * (grid / 0.7) ** 2 - math.log(0.7) - 0.5 * math.log(2.0 * math.pi)
    top, step = log_p.max(), grid[1] - grid[0]
    mass = np.exp(log_p - top) * step
    weights = mass / mass.sum()
    mean = weights @ grid
    return top + math.log(mass.sum()), mean, math.sqrt(weights @ (grid - mean) ** 2), weights @ np.array(firsts)


@pytest.fixture(scope="module")
def fitted(module_vr):
    return module_vr, module_vr.guide(module_vr.NestedLaplace())(crossed(module_vr)).fit(Y, progress=False)


def test_latents_that_are_tied_together_come_out_exactly(fitted, exact):
    """The conditional is exact, so that what is left is the mixture's distance from the marginal of one scale."""
    _, posterior = fitted
    evidence, mean, sd, first = exact
    assert posterior.record["family"] == "NestedLaplace(globals=('size',))"
    value, error = posterior.log_evidence()
    assert abs(value - evidence) < 4.0 * error + 1e-3
    assert evidence - posterior.elbo()[0] < 0.03
    draws = posterior.draws(4_000, seed=1)
    size, row = np.asarray(draws["size"]), np.asarray(draws["row"])[:, 0]
    effective = 2_000  # the fit's own draws of the scale
    assert abs(size.mean() - mean) < 4.0 * sd / math.sqrt(effective)
    assert abs(math.log(size.std() / sd)) < 4.0 / math.sqrt(2.0 * effective) + 0.02
    assert abs(row.mean() - first) < 4.0 * row.std() / math.sqrt(4_000)


def test_it_is_saved_and_predicts(fitted, tmp_path):
    vr, posterior = fitted
    posterior.save(tmp_path / "posterior.npz")
    for family in (vr.NestedLaplace(), vr.NestedLaplace(globals=("size",)), vr.Escalate()):
        loaded = vr.load(tmp_path / "posterior.npz", vr.guide(family)(crossed(vr)))
        np.testing.assert_array_equal(np.asarray(loaded.draws(3)["row"]), np.asarray(posterior.draws(3)["row"]))
    assert np.asarray(posterior.predict(num_draws=3)["y"]).shape == (3, 30)


def test_what_it_cannot_do_is_refused(fitted):
    vr, posterior = fitted
    model, nested = crossed(vr), vr.NestedLaplace
    with pytest.raises(vr.ArgumentError, match="fitted without steps"):
        vr.guide(nested())(model).fit(Y, num_steps=10, progress=False)
    with pytest.raises(vr.ArgumentError, match="expected names of latents"):
        nested(globals="size")
    with pytest.raises(vr.SiteError, match=r"it has no \['sizes'\]"):
        vr.guide(nested(globals=("sizes",)))(model).fit(Y, progress=False)
    with pytest.raises(vr.SiteError, match="chooses its globals as it is fitted"):
        vr.guide(nested())(model).start(Y)
    with pytest.raises(vr.ArgumentError, match="it is no part"):
        vr.Sites({"row": nested(), "*": vr.MeanField()})
    with pytest.raises(vr.SiteError, match="covers at most 4096 coordinates"):
        nested().check_size(5_000)
    guided = posterior.guided
    with pytest.raises(vr.GradientError, match="no gradient goes through its draws"):
        slope_of_a_draw(vr, guided)


def slope_of_a_draw(vr, guided):
    """What an optimizer of the host's asks for."""
    ops, key = vr.ops, vr.ops.key(0)
    params = guided.start(Y)

    def drawn(place):
        known = {**params, "laplace_loc": place}
        found = guided.backend.tracer.run(guided.guide, (ops.asarray(Y),), {}, key, params=known, alone=True)
        return ops.xp.sum(found["size"].value)

    return ops.grad(drawn)(ops.asarray(params["laplace_loc"]))


GERMINATED = np.array([10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3])
SEEDS = np.array([39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7])
FIRST, SECOND = np.repeat([0.0, 1.0], [11, 10]), np.repeat([0.0, 1.0, 0.0, 1.0], [5, 6, 5, 5])
EVIDENCE, EVIDENCE_ERROR = -71.5574, 0.0008
"""Of the model below, by four fits in other seeds, 4,000 weights each."""


def seeds(vr):
    """Crowder (1978): the logarithm of a precision, as free as in its wide prior beyond a sharp edge."""
    h, xp = vr.host, vr.ops.xp

    def model(count=None):
        size = h.sample("size", h.dist.Normal(h.array(0.0), h.array(10.0)))
        a = [h.sample(f"a{i}", h.dist.Normal(h.array(0.0), h.array(10.0))) for i in range(4)]
        first, second, total = (h.array(x) for x in (FIRST, SECOND, 1.0 * SEEDS))
        with h.plate("plates", 21):
            b = h.sample("b", h.dist.Normal(h.array(0.0), xp.exp(-0.5 * size)))
            logits = a[0] + a[1] * first + a[2] * second + a[3] * first * second + b
            h.sample("count", h.dist.Binomial(total, logits=logits), obs=count)

    return model


def test_mass_beyond_an_edge_and_far_away_is_found(module_vr):
    """A hundredth lies where no early draw is, another below the edge of a bend that draws alone would choose."""
    posterior = module_vr.guide(module_vr.NestedLaplace())(seeds(module_vr)).fit(1.0 * GERMINATED, progress=False)
    value, error = posterior.log_evidence()
    assert posterior.khat < 0.7
    assert abs(value - EVIDENCE) < 4.0 * math.hypot(error, EVIDENCE_ERROR)
    assert EVIDENCE - posterior.elbo()[0] < 0.02
