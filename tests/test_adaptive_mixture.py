"""Few latents by adaptive importance sampling; modes that are copies, or rare and far, in both backends."""

import math
from typing import Any

import numpy as np
import pytest

from vi_reparam.posterior.attempt import Attempt
from vi_reparam.posterior.modes import moved_by
from vi_reparam.posterior.verdict import Figures, judge
from vi_reparam.posterior.weights import Weights, shifts

NARROW, WIDE, PRIOR, CENTER = 0.1, 2.0, 5.0, np.array([0.5, 0.0])
SD = np.sqrt(0.5 * (NARROW**2 + WIDE**2 + CENTER**2) - (0.5 * CENTER) ** 2)
FINE: dict[str, Any] = {
    "khat": 0.2,
    "elbo": -10.0,
    "elbo_error": 0.01,
    "log_evidence": -10.0,
    "log_evidence_error": 0.01,
}
FINE |= {"mean_shift": 0.0, "sd_shift": 0.0, "num_weights": 4_000, "num_nan": 0, "num_outside": 0}
FINE |= {"num_latents": 5, "drift": None}


def narrow_inside_wide(vr):
    """Two normals about one place, a twentieth as wide as each other: a search finds the narrow one alone."""
    h, xp = vr.host, vr.ops.xp

    def model():
        x = h.sample("x", h.dist.Normal(h.array(np.zeros(2)), PRIOR).to_event(1))
        narrow = -0.5 * xp.sum((x - h.array(CENTER)) ** 2) / NARROW**2 - 2.0 * math.log(NARROW)
        wide = -0.5 * xp.sum(x * x) / WIDE**2 - 2.0 * math.log(WIDE)
        top = xp.where(narrow > wide, narrow, wide)
        both = top + xp.log(xp.exp(narrow - top) + xp.exp(wide - top))
        h.factor("both", both + 0.5 * xp.sum(x * x) / PRIOR**2)

    return model


@pytest.fixture(scope="module")
def fitted(module_vr):
    vr = module_vr
    return vr.guide(vr.AdaptiveMixture())(narrow_inside_wide(vr)).fit(progress=False)


def test_what_no_climb_sees_is_found(fitted):
    evidence = math.log(2.0) - 2.0 * math.log(PRIOR)
    value, error = fitted.log_evidence()
    assert 0.0 < error < 0.01 and abs(value - evidence) < 4.0 * error
    x = np.asarray(fitted.draws(20_000, seed=1)["x"])
    effective = 4_000  # the weighted draws behind the mixture
    assert (np.abs(x.mean(0) - 0.5 * CENTER) < 4.0 * SD / math.sqrt(effective)).all()
    assert (np.abs(np.log(x.std(0) / SD)) < 4.0 / math.sqrt(effective)).all()
    assert fitted.verdict.grade == "good" and fitted.record["steps"] == "rounds of importance sampling"


@pytest.mark.parametrize("center", [[2.5, 1.0, 0.0], [1.5, 0.6, 0.0]])
def test_a_needle_beside_a_wide_mode_is_found(module_vr, center):
    """A twentieth as wide in three dimensions, with half of the mass: a few points in a hundred thousand meet it."""
    vr = module_vr
    h, xp = vr.host, vr.ops.xp

    def model():
        x = h.sample("x", h.dist.Normal(h.array(np.zeros(3)), PRIOR).to_event(1))
        needle = -0.5 * xp.sum((x - h.array(np.array(center))) ** 2) / 0.05**2 - 3.0 * math.log(0.05)
        wide = -0.5 * xp.sum(x * x)
        top = xp.where(needle > wide, needle, wide)
        both = top + xp.log(xp.exp(needle - top) + xp.exp(wide - top))
        h.factor("both", both + 0.5 * xp.sum(x * x) / PRIOR**2)

    posterior = vr.guide(model).fit(progress=False)
    value, error = posterior.log_evidence()
    assert abs(value - math.log(2.0) + 3.0 * math.log(PRIOR)) < 4.0 * error + 1e-4
    x = np.asarray(posterior.draws(20_000, seed=1)["x"])
    sd = np.sqrt(0.5 * (1.0 + 0.05**2) + 0.25 * np.array(center) ** 2)
    assert (np.abs(x.mean(0) - 0.5 * np.array(center)) < 4.0 * sd / math.sqrt(4_000)).all()
    assert posterior.verdict.grade == "good"


def test_it_is_stored(fitted, module_vr, tmp_path):
    vr = module_vr
    fitted.save(tmp_path / "posterior.npz")
    for family in (vr.AdaptiveMixture(), vr.Escalate()):
        again = vr.load(tmp_path / "posterior.npz", vr.guide(family)(narrow_inside_wide(vr)))
        np.testing.assert_array_equal(np.asarray(again.draws(3)["x"]), np.asarray(fitted.draws(3)["x"]))


def test_what_it_cannot_do_is_refused(module_vr):
    vr, h = module_vr, module_vr.host
    guided = vr.guide(vr.AdaptiveMixture())
    with pytest.raises(vr.ArgumentError, match="without steps"):
        guided(narrow_inside_wide(vr)).fit(num_steps=10, progress=False)

    def many():
        h.sample("x", h.dist.Normal(h.array(np.zeros(13)), 1.0).to_event(1))

    with pytest.raises(vr.SiteError, match="13 latents are too many"):
        guided(many).fit(progress=False)


def test_plates_without_globals_are_fitted(module_vr):
    """Latents of a plate whose priors depend on each other, and nothing outside of it."""
    vr, h = module_vr, module_vr.host

    def model(y=None):
        with h.plate("rows", 3):
            scale = h.sample("scale", h.dist.HalfNormal(h.array(1.0)))
            x = h.sample("x", h.dist.Normal(h.array(0.0), scale))
            h.sample("y", h.dist.Normal(x, 1.0), obs=y)

    posterior = vr.guide(vr.Structured())(model).fit(np.array([0.1, 1.0, 4.0]), num_steps=20, progress=False)
    assert math.isfinite(posterior.elbo()[0])


def test_modes_in_either_order_are_said_to_be_the_same(module_vr):
    vr, h = module_vr, module_vr.host
    y = np.array([-2.3, -1.9, -1.6, -2.2, 1.7, 2.4, 2.0, 1.9]) + 1.0

    def model(y=None):
        mu = h.sample("mu", h.dist.Normal(h.array(np.zeros(2)), 4.0).to_event(1))
        first, second = -2.0 * (y - mu[0]) ** 2, -2.0 * (y - mu[1]) ** 2
        top = h.xp.where(first > second, first, second)
        h.factor("y", h.xp.sum(top + h.xp.log(h.xp.exp(first - top) + h.xp.exp(second - top))))

    verdict = vr.guide(model).fit(h.array(y), progress=False).verdict
    assert verdict.grade == "good" and "order of the elements of 'mu'" in str(verdict)
    assert "posterior.relabel(plate)" in str(verdict)


def test_a_rare_mode_counts_by_how_far_it_is():
    mean, sd = moved_by(np.array([[20.0, 0.0]]), np.array([math.log(99.0)]), np.array([1.0, 1.0]))
    assert mean == pytest.approx(0.2) and sd == pytest.approx(0.5 * math.log1p(0.01 * 0.99 * 400.0))
    assert judge(Figures(**FINE)).grade == "good"
    rare = judge(Figures(**FINE, rivals=(4.8,), far=(0.2, 0.8)))
    assert rare.grade == "poor" and "use vr.Mixture()" in str(rare)
    assert judge(Figures(**FINE, rivals=(4.8,), far=(0.05, 0.2))).grade == "fair"
    assert judge(Figures(**FINE, crowded=24)).grade == "poor"
    told = judge(Figures(**FINE, copies="modes differ"))
    assert told.grade == "good" and told.reasons == ("modes differ",)


def test_of_two_families_with_one_bound_the_good_one_is_better():
    near = {"elbo": -3.0, "error": 0.001, "gap": 0.001, "steps": 1}
    off, good = Attempt("A", khat=0.1, shift=1.0, **near), Attempt("B", khat=0.5, shift=0.01, **near)
    assert good.is_better_than(off) and not off.is_better_than(good)


def test_the_lowest_weight_does_not_round_the_others():
    log_p = np.append(np.random.default_rng(0).normal(size=999), -1e19)
    weights = Weights(log_p, np.zeros(1_000))
    assert weights.log_evidence()[0] == pytest.approx(float(np.log(np.exp(log_p).mean())), abs=0.02)


def test_a_latent_without_a_variance_is_judged_between_quantiles():
    """Draws of a half-Cauchy's bulk, against one with a little more of its tail: only the tail differs."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_cauchy(20_000))
    weights = np.where(x > 200.0, 0.2, 1.0)
    _, sd = shifts(np.stack([x, np.minimum(x, 5.0)], axis=1), weights / weights.sum())
    assert abs(math.log(x.std() / np.sqrt(np.cov(x, aweights=weights)))) > 0.3
    assert sd[0] < 0.15 and sd[1] < 0.05
