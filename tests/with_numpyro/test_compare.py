"""vr.compare_estimators: what it measures, against what is known."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.distributions import constraints

import vi_reparam_numpyro as vr

Y = np.array([3.0, 1.0, 4.0, 1.0])
AT = {"a": 1.5, "b": 2.0}


def model(y):
    z = numpyro.sample("z", dist.Gamma(3.0, 1.0))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Poisson(z), obs=y)


def guide(y):
    a = numpyro.param("a", 1.5, constraint=constraints.positive)
    b = numpyro.param("b", 2.0, constraint=constraints.positive)
    numpyro.sample("z", dist.Gamma(a, b))


def exact():
    """Of KL(Gamma(a, b) || Gamma(12, 5)) up to a constant: the posterior is Gamma(3 + 9, 1 + 4)."""
    from scipy.special import polygamma

    a, b = AT["a"], AT["b"]
    return {
        "a": (a - 12.0) * polygamma(1, a) + 5.0 / b - 1.0,
        "b": 12.0 / b - 5.0 * a / b**2,
    }


class Uncorrected(vr.Rejection):
    """Acceptance-rejection without its score term: biased, as some libraries are."""

    def draw(self, *args, **kwargs):
        return dataclasses.replace(super().draw(*args, **kwargs), score_term=None)


HAND_WRITTEN = vr.Guided(model, guide)
ESTIMATORS = [vr.Implicit(), vr.Rejection(boost=1), vr.ScoreFunction(), Uncorrected(boost=0, min_concentration=1.0)]


def compare(**options):
    return vr.compare_estimators(
        HAND_WRITTEN,
        Y,
        **{"estimators": ESTIMATORS, "num_replicates": 8_000, "num_particles": 2, "stages": ("start",), **options},
    )


@pytest.fixture(scope="module")
def comparison():
    return compare(reference=exact())


def test_unbiased_estimators_agree_with_the_exact_gradient(comparison):
    data = comparison.dataset
    assert list(data.parameter.values) == ["a", "b"] and list(data.stage.values) == ["start"]
    for estimator in ESTIMATORS[:3]:
        one = data.sel(estimator=repr(estimator), stage="start")
        assert np.all(np.abs(one.z) < 4.5)
        error = np.sqrt(one.variance / data.attrs["num_replicates"])
        np.testing.assert_allclose(one.z, (one["mean"] - list(exact().values())) / error, rtol=1e-3, atol=1e-3)
    assert data.attrs["num_replicates"] >= 8_000 and data.attrs["num_particles"] == 2


def test_a_biased_estimator_is_caught(comparison):
    z = comparison.dataset.z.sel(estimator=repr(ESTIMATORS[3]), stage="start", parameter="a")
    assert abs(float(z)) > 8.0


def test_variances_are_ordered_as_they_must_be(comparison):
    variance = comparison.dataset.variance.sel(stage="start", parameter="a")
    implicit, rejection, score = (float(variance.sel(estimator=repr(e))) for e in ESTIMATORS[:3])
    assert implicit < rejection < score
    per_draw = comparison.dataset.variance_per_draw
    np.testing.assert_allclose(per_draw, 2.0 * comparison.dataset.variance)
    assert np.all(comparison.dataset.seconds > 0.0)
    assert np.all(comparison.dataset.variance_error > 0.0)


@pytest.mark.slow
def test_common_random_numbers():
    options = {"estimators": [vr.Implicit()], "num_replicates": 50, "reference": exact()}
    first, same, other = compare(**options), compare(**options), compare(**options, seed=1)
    np.testing.assert_array_equal(first.dataset["mean"], same.dataset["mean"])
    assert np.any(first.dataset["mean"] != other.dataset["mean"])


@pytest.mark.slow
def test_a_guided_model_at_both_stages(tmp_path):
    guided = vr.guide(model)
    found = vr.compare_estimators(
        guided, Y, estimators=[vr.Implicit(), vr.Rejection()], num_replicates=2_000, num_particles=2, fit_steps=400
    )
    data = found.dataset
    assert list(data.stage.values) == ["start", "fitted"]
    assert set(data.parameter.values) == {"rate_concentration", "rate_mean"} or set(data.parameter.values) == {
        "z_concentration",
        "z_mean",
    }
    assert np.all(np.abs(data.z) < 4.5)  # against the reference of its own
    assert "Auto()" in data.attrs["reference"]
    # At the optimum the gradient's mean is small.
    assert np.all(np.abs(data["mean"].sel(stage="fitted")) < np.abs(data["mean"].sel(stage="start")).max())

    frame = found.to_dataframe()
    assert len(frame) == 2 * 2 * 2 and {"estimator", "stage", "parameter", "variance", "z"} <= set(frame.columns)
    found.save(tmp_path / "c.nc")
    with xr.open_dataset(tmp_path / "c.nc", engine="h5netcdf") as loaded:
        xr.testing.assert_allclose(loaded, data)
    found.plot(tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000
    assert "Comparison(2 estimators" in repr(found)


def test_the_table_names_every_estimator(comparison):
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison.table())
    console.print(comparison.table("a"))
    text = console.export_text()
    assert all(repr(e) in text for e in ESTIMATORS)
    assert "variance" in text and "|z|" in text
    with pytest.raises(vr.ArgumentError, match=r"parameter 'nowhere' was not compared: there are 2"):
        comparison.table("nowhere")


@pytest.mark.slow  # the Pyro backend's is not
def test_estimators_serve_only_the_sites_that_they_apply_to():
    def mixed():
        numpyro.sample("g", dist.Gamma(3.0, 1.0))
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    found = vr.compare_estimators(
        vr.guide(mixed), estimators=[vr.Rejection(), vr.Implicit()], num_replicates=20, stages=("start",)
    )
    at_x = found.dataset.sel(parameter="x_loc")
    # Where neither applies both are Auto, under common random numbers: equal.
    assert float(at_x["mean"][0, 0]) == pytest.approx(float(at_x["mean"][1, 0]))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"estimators": []}, r"compare_estimators\(estimators=\[\]\)"),
        ({"estimators": ["implicit"]}, r"expected a list such as"),
        ({"estimators": [vr.Implicit(), vr.Implicit()]}, r"two of the estimators are equal"),
        ({"num_replicates": 1}, r"num_replicates=1\): expected an integer of at least 2"),
        ({"num_particles": 0}, r"num_particles=0\): expected an integer of at least 1"),
        ({"stages": ("end",)}, r"stages=\('end',\)\): expected 'start', 'fitted' or both"),
        ({"stages": ("start", "fitted"), "reference": {"a": 0.0, "b": 0.0}}, r"an exact reference holds at one stage"),
        ({"estimators": [vr.Pathwise()]}, r"Pathwise\(\) applies to no site of the guide \('z': gamma\)"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(vr.ArgumentError, match=match):
        compare(**options)


def test_a_model_without_a_guide_and_bad_data():
    with pytest.raises(vr.ArgumentError, match=r"has no guide: decorate the model with vr.guide"):
        vr.compare_estimators(model, Y, estimators=[vr.Implicit()])
    with pytest.raises(vr.ArgumentError, match=r"argument 0 holds 1 NaN"):
        vr.compare_estimators(HAND_WRITTEN, np.array([1.0, np.nan]), estimators=[vr.Implicit()])
