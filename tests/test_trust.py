"""A posterior is right, or the verdict says that it is not: separate modes, refined draws, what vouches for what."""

import math

import numpy as np
import pytest

from vi_reparam.fit.matching import match
from vi_reparam.gaussians import pathfinder
from vi_reparam.posterior.diagnosis import drifts
from vi_reparam.posterior.modes import _some_draws
from vi_reparam.posterior.verdict import Surest, judge, missed_share

GAP, WEIGHTS = 5.0, np.array([0.3, 0.7])
SD = math.sqrt(1.0 + WEIGHTS.prod() * (2 * GAP) ** 2)
MEAN = GAP * (WEIGHTS[1] - WEIGHTS[0])
RHO = np.array([[1.0, 0.9, 0.3], [0.9, 2.0, 0.1], [0.3, 0.1, 0.5]])


def two_modes(vr):
    """Normals at -5 and 5, and a latent beside them."""
    h = vr.host

    def model():
        x = h.sample("x", h.dist.Normal(h.array(0.0), h.array(6.0)))
        h.sample("beside", h.dist.Normal(h.array(1.0), h.array(2.0)))
        first = math.log(WEIGHTS[0]) - 0.5 * (x + GAP) ** 2
        second = math.log(WEIGHTS[1]) - 0.5 * (x - GAP) ** 2
        top = h.xp.where(first > second, first, second)
        both = top + h.xp.log(h.xp.exp(first - top) + h.xp.exp(second - top))
        h.factor("modes", both + 0.5 * (x / 6.0) ** 2)

    return model


def correlated(vr):
    h = vr.host

    def model(y=None):
        x = h.sample("x", h.dist.MultivariateNormal(h.array(np.arange(3.0)), h.array(RHO)))
        h.sample("y", h.dist.Normal(x[0], 1e4), obs=y)

    return model


@pytest.fixture(scope="module")
def modes(module_vr):
    return module_vr.guide(two_modes(module_vr)).fit(progress=False)


def test_separate_modes_come_out_right(modes):
    x = np.asarray(modes.draws(20_000)["x"])
    assert modes.record["family"] == "Mixture()" and modes.verdict.grade == "good"
    assert abs(x.mean() - MEAN) / SD < 4.0 / math.sqrt(20_000) + 0.01
    assert abs(math.log(x.std() / SD)) < 0.02
    evidence = math.log(math.sqrt(2.0 * math.pi)) - math.log(6.0 * math.sqrt(2.0 * math.pi))
    value, error = modes.log_evidence()
    assert abs(value - evidence) < 4.0 * error + 1e-4
    assert [a["family"] for a in modes.tried] == ["Mixture()"] and "is good" in modes.why


def test_jumps_between_modes_keep_their_weights(modes):
    refined = modes.refine(2_000, progress=False)
    x, effective = np.asarray(refined.draws(20_000)["x"]), refined.record["refined"]["effective_draws"]
    assert refined.record["refined"]["jumps"] > 0.5
    assert abs((x > 0).mean() - WEIGHTS[1]) < 4.0 * math.sqrt(WEIGHTS.prod() / effective)


def test_a_guide_of_one_mode_is_poor(module_vr):
    vr = module_vr
    family = vr.Escalate(families=(vr.FullRank(),))
    posterior = vr.guide(family)(two_modes(vr)).fit(num_steps=100, progress=False)
    assert posterior.verdict.grade == "poor"
    assert "no draw is near: use vr.Mixture()" in str(posterior.verdict)
    assert min(missed_share(posterior.record["rivals"]) - share for share in WEIGHTS) < 0.1


@pytest.fixture(scope="module")
def narrow(module_vr):
    """A mean field, whose sds are 0.4 of the truth's."""
    vr = module_vr
    return vr.guide(vr.MeanField())(correlated(vr)).fit(np.array(0.0), num_steps=300, progress=False)


def test_refined_draws_are_exact(module_vr, narrow, tmp_path):
    vr, posterior, guided = module_vr, narrow, narrow.guided
    refined = posterior.refine(4_000, progress=False)
    about = refined.record["refined"]
    assert about["rhat"] < 1.01 and about["sd_moved"] > 0.3 and refined.verdict.grade == "good"
    x = np.asarray(refined.draws(20_000)["x"])
    sd = np.sqrt(np.diag(RHO))
    assert np.abs((x.mean(0) - np.arange(3)) / sd).max() < 4.0 / math.sqrt(about["effective_draws"])
    assert np.abs(np.cov(x.T) / np.outer(sd, sd) - RHO / np.outer(sd, sd)).max() < 0.1
    assert math.isnan(refined.khat) and math.isnan(refined.elbo()[0])
    with pytest.raises(vr.ArgumentError, match="is not fitted"):
        refined.guided.fit(np.array(0.0), progress=False)
    again = vr.load(refined.save(tmp_path / "refined.npz"), guided)
    np.testing.assert_array_equal(np.asarray(again.draws(5)["x"]), np.asarray(refined.draws(5)["x"]))
    assert str(again.verdict) == str(refined.verdict)
    assert np.asarray(refined.predict(num_draws=3)["y"]).shape == (3,)


def test_what_vouches_for_heavy_weights(modes):
    figures = modes.verdict.figures
    changed = {**vars(figures), "khat": 0.9, "beyond": 0.1, "surest": None}
    assert judge(type(figures)(**changed)).grade == "poor"
    sure = Surest("FullRank()", 0.2, figures.elbo + 0.01, 0.001)
    for gap, grade in ((0.01, "good"), (0.08, "fair")):
        own = Surest("FullRank()", 0.2, figures.elbo + gap, 0.001)
        vouched = judge(type(figures)(**{**changed, "surest": own}))
        assert vouched.grade == grade and "do not reweight" in str(vouched)
    unsure = Surest("FullRank()", 0.6, figures.elbo + 0.01, 0.001)
    assert judge(type(figures)(**{**changed, "surest": unsure})).grade == "fair"
    off = Surest("FullRank()", 0.2, figures.elbo + 0.5, 0.001)
    assert judge(type(figures)(**{**changed, "surest": off})).grade == "poor"
    more = figures.elbo + 0.4  # a draw has met what that family missed
    assert judge(type(figures)(**{**changed, "surest": sure, "raw_evidence": more})).grade == "poor"


def test_a_valley_tells_two_modes_from_one(module_vr):
    ops = module_vr.Guided.backend.ops

    def log_p(z):  # two at -4 and 4, and a ridge from 4 on
        first, second = (
            -0.5 * (z[:, 0] + 4.0) ** 2,
            -0.5 * ops.xp.where(z[:, 0] > 4.0, 0.0 * z[:, 0], z[:, 0] - 4.0) ** 2,
        )
        return ops.xp.where(first > second, first, second)

    points = pathfinder.between([[-4.0], [4.0], [9.0]])
    depth = np.array(pathfinder.valleys(ops.to_numpy(log_p(ops.asarray(np.array(points)))).tolist(), 3))
    assert depth[0, 1] == pytest.approx(8.0) and depth[1, 2] == 0.0 and depth[0, 2] > 6.5


def test_points_that_are_unlike_what_is_known(module_vr):
    """Of a density with a narrow mode beside a wide one that is known, the points lie at the narrow one."""
    ops = module_vr.Guided.backend.ops
    xp = ops.xp

    def log_p(z):
        wide = -0.5 * xp.sum(z * z, axis=-1)
        narrow = -0.5 * xp.sum((z - ops.asarray(np.array([4.0, 0.0]))[None]) ** 2, axis=-1) / 0.01 + math.log(100.0)
        top = xp.where(wide > narrow, wide, narrow)
        return top + xp.log(xp.exp(wide - top) + xp.exp(narrow - top))

    known = {"center": ops.asarray(np.zeros((1, 2))), "root": ops.asarray(np.eye(2)[None])}
    noise = ops.asarray(np.random.default_rng(0).normal(size=(8 * 6_000, 2)))
    points = np.asarray(pathfinder.unlike(ops, log_p, known, noise, 8))
    assert points.shape == (8, 2)
    assert (np.hypot(points[:, 0] - 4.0, points[:, 1]) < 0.5).all()


def test_scores_match_exactly_on_a_gaussian():
    """In closed form, from a start that is far off, also where a gradient is not finite."""
    covariance = np.array([[4.0, 1.5, 0.0], [1.5, 1.0, 0.2], [0.0, 0.2, 0.25]])
    precision, center = np.linalg.inv(covariance), np.array([3.0, -2.0, 0.5])

    def slope(z):
        g = -(z - center) @ precision
        g[0] = np.nan
        return g

    mean, root = match(slope, 3, np.random.default_rng(0))
    np.testing.assert_allclose(mean, center, atol=1e-3)
    np.testing.assert_allclose(root @ root.T, covariance, atol=1e-2)
    np.testing.assert_array_equal(root, np.tril(root))


def test_a_drift_is_told_from_chance():
    """Chains that keep a part b of where they began: exact, with standard errors that are right."""
    rng, z, found = np.random.default_rng(0), [], []
    for off in (0.0, 0.5):
        for _ in range(200):
            start, own = rng.normal(size=(256, 1)), rng.normal(size=(5_000, 1))
            later = off + 0.6 * (start - off) + 0.3 * rng.normal(size=(256, 1))
            drift = drifts(later, start, own)
            (found if off else z).append(float((drift.size if off else drift.z)[0]))
    assert abs(np.mean(z)) < 4.0 / math.sqrt(200) and abs(np.std(z) - 1.0) < 4.0 / math.sqrt(400)
    assert abs(np.mean(found) - 0.5) < 4.0 * np.std(found) / math.sqrt(200) + 1e-3


def test_the_chains_name_the_site_that_is_off(narrow):
    diagnosis = narrow.diagnose(progress=False)
    row = diagnosis.table.loc["x"]
    sds = np.asarray(narrow.draws(20_000)["x"]).std(0)
    truth = np.max(np.log(np.sqrt(np.diag(RHO)) / sds))
    assert row["sd_z"] > 4.0 and 0.5 * truth < row["sd"] < 2.0 * truth
    assert abs(row["mean_z"]) < 4.0 and diagnosis.grade == row["grade"] == "poor"
    assert "x: posterior.refine()" in str(diagnosis) and "poor" in diagnosis._repr_html_()


def test_right_draws_do_not_drift(modes):
    diagnosis = modes.diagnose(progress=False)
    assert diagnosis.grade == "good" and (diagnosis.table[["mean_z", "sd_z"]].abs() < 4.0).all(axis=None)
    assert "use the draws as they are" in diagnosis.advice


def test_the_evidence_by_draws_of_the_posterior(modes):
    """Of separate modes, between draws of the mixture and refined ones."""
    value, error = modes.log_evidence("bridge", num_draws=1_000)
    assert 0.0 < error < 0.02 and abs(value + math.log(6.0)) < 4.0 * error
    with pytest.raises(Exception, match="expected one of"):
        modes.log_evidence("laplace")


@pytest.mark.parametrize("module_vr", ["numpyro", pytest.param("pyro", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("method", ["bridge", "harmonic"])
def test_the_evidence_where_the_guides_weights_are_no_good(narrow, method):
    exact = -0.5 * math.log(2.0 * math.pi * (1e8 + 1.0))  # y is 0, and its sd is 1e4 beside x's 1
    assert narrow.khat > 0.7
    value, error = narrow.log_evidence(method)
    assert 0.0 < error < 0.05 and abs(value - exact) < 4.0 * error


def test_components_get_one_name_each(module_vr, tmp_path):
    """Two components and their weights, in either order; sorted, their means are the components'."""
    vr, h = module_vr, module_vr.host

    def model(y=None):
        weight = h.sample("weight", h.dist.Dirichlet(h.array([5.0, 5.0])))
        with h.plate("parts", 2):
            mu = h.sample("mu", h.dist.Normal(h.array(0.0), h.array(5.0)))
            tall = h.sample("tall", h.dist.Normal(h.array(0.0), h.array(0.1)))
        middle = weight[0] * mu[0] + weight[1] * mu[1] + 0.0 * tall[0]
        h.sample("y", h.dist.Normal(middle, h.array(100.0)), obs=y)

    posterior = vr.guide(vr.MeanField())(model).fit(h.array(0.0), num_steps=100, progress=False)
    sorted_ = posterior.relabel("parts", "mu", num_draws=1_000)
    before, after = (
        {n: np.asarray(x) for n, x in p.items()} for p in (posterior.draws(1_000), sorted_.draws(2_000, seed=1))
    )
    assert (np.diff(after["mu"], axis=1) >= 0.0).all()
    known = {round(float(row.sum()), 8): row for row in before["mu"]}  # each draw is one of the old ones, rearranged
    at = {round(float(row.sum()), 8): i for i, row in enumerate(before["mu"])}
    for i in range(50):
        total = round(float(after["mu"][i].sum()), 8)
        order = np.argsort(known[total])
        np.testing.assert_allclose(after["tall"][i], before["tall"][at[total]][order], rtol=1e-6)
        np.testing.assert_allclose(after["weight"][i], before["weight"][at[total]][order], rtol=1e-6)
    assert str(sorted_.verdict) == str(posterior.verdict) and math.isnan(sorted_.khat)
    again = vr.load(sorted_.save(tmp_path / "sorted.npz"), posterior.guided)
    assert str(again.verdict) == str(sorted_.verdict)
    with pytest.raises(vr.ArgumentError, match="no latent is in such a plate; there are: parts"):
        posterior.relabel("components")
    with pytest.raises(vr.ArgumentError, match="there are: mu, tall"):
        posterior.relabel("parts")


def test_what_is_scored_for_another_figure_is_not_what_modes_are_looked_for_in(module_vr, narrow):
    """The draws behind the figures stay those of the guide as it is, whatever was scored since."""
    ops = module_vr.ops
    before = {n: ops.to_numpy(x) for n, x in _some_draws(narrow, 50).items()}
    narrow.weights(narrow.default_num_weights, 7)
    for name, draws in _some_draws(narrow, 50).items():
        np.testing.assert_array_equal(ops.to_numpy(draws), before[name])
