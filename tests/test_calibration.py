"""Calibration on data that the model draws, and fits from several seeds."""

import numpy as np
import pytest
from test_comparison import regression

from vi_reparam.study.calibration import ks_p

X = np.column_stack([np.ones(8), 2.0 + np.linspace(0.0, 1.0, 8)])


def test_ks_p_values_are_uniform():
    rng = np.random.default_rng(0)
    found = [ks_p(rng.uniform(size=50)) for _ in range(400)]
    assert ks_p(found) > 0.01
    assert ks_p(rng.beta(0.5, 0.5, size=200)) < 0.01


@pytest.mark.parametrize(
    "vr", ["numpyro", pytest.param("pyro", marks=pytest.mark.slow)], indirect=True
)  # the loop is the core's
def test_an_exact_family_is_calibrated(vr, tmp_path):
    guided = vr.guide(vr.FullRank())(regression(vr))
    found = vr.calibrate(guided, vr.host.array(X), y=vr.host.array(np.arange(8.0)), num_fits=40, progress=False)
    assert found.is_calibrated and all(row.ks > 0.01 for row in found) and "calibrated: over 40" in str(found)
    assert list(found.ranks) == ["b[0]", "b[1]"] and found.ranks["b[0]"].shape == (40,)
    found.plot(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 1_000


def test_a_narrow_family_is_not(vr):
    """A mean field, of a line whose coefficients are correlated by -0.98."""
    guided = vr.guide(vr.MeanField())(regression(vr))
    options = {"num_steps": 200, "num_fits": 40, "num_draws": 99, "progress": False}
    found = vr.calibrate(guided, vr.host.array(X), y=vr.host.array(np.arange(8.0)), **options)
    assert not found.is_calibrated and all(row.spread > 1.5 for row in found)
    assert "is too narrow" in found.verdict


def test_what_cannot_be_calibrated_is_refused(vr):
    h, y = vr.host, np.arange(4.0)

    def hidden(x):
        z = h.sample("z", h.dist.Normal(h.array(0.0), h.array(1.0)))
        with h.plate("data", 4):
            h.sample("y", h.dist.Normal(z, h.array(1.0)), obs=h.array(y) + x)

    guided = vr.guide(vr.MeanField())(hidden)
    with pytest.raises(vr.ArgumentError, match="'y' observes is no argument"):
        vr.calibrate(guided, h.array(0.0), num_steps=2, progress=False)
    with pytest.raises(vr.ArgumentError, match="20 fits at least"):
        vr.calibrate(guided, h.array(0.0), num_fits=3, progress=False)


def test_fits_from_several_seeds(vr):
    guided = vr.guide(vr.MeanField())(regression(vr))
    same = vr.compare_fits(guided, vr.host.array(X), vr.host.array(np.arange(8.0)), seeds=2, progress=False)
    assert [row.seed for row in same] == ["0", "1"] and len(same.posteriors) == 2
    assert same.agree and "the fits agree" in str(same)
    with pytest.raises(vr.ArgumentError, match="two different seeds"):
        vr.compare_fits(guided, vr.host.array(X), seeds=1)
    options = {"num_steps": 30, "num_particles": 1, "progress": False}
    apart = vr.compare_fits(guided, vr.host.array(X), vr.host.array(np.arange(8.0)), seeds=[3, 4, 5], **options)
    assert not apart.agree and "the fits differ" in apart.verdict
