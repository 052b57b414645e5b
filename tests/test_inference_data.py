"""What leaves for ArviZ, in both of its lines: names as MCMC's converters give them, and draws of the posterior.

CONTRIBUTING.md says how to run this file with ArviZ 1.x.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings

import numpy as np
import pytest
import xarray as xr

from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.posterior import arviz_lines
from vi_reparam.posterior.psis import psislw
from vi_reparam.posterior.summary import table_of
from vi_reparam.posterior.weights import Weights

az = arviz_lines.import_arviz()
FIRST_LINE = az.__version__.startswith("0.")
X = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
Y = np.array([-0.7, -0.9, 0.3, 0.8, 1.4])
NAMES = ["north", "south", "east", "west", "here"]


def line_model(vr, *, plain=False):
    """A line with a plate, an event dimension with a name, and a determined quantity; `plain`: without the last two."""
    host, dist = vr.host, vr.host.dist

    def line(x, y=None):
        x, zero, one = host.array(x), host.array(0.0), host.array(1.0)
        a = host.sample("a", dist.Normal(zero, one))
        b = host.array(np.zeros(2))
        if not plain:
            b = host.sample("b", dist.Normal(host.array(np.zeros(2)), one).to_event(1), infer={"event_dims": ["side"]})
        with host.plate("town", len(x)):
            z = host.sample("z", dist.Normal(zero, one))
            mean = a + b[..., 0] * x + b[..., 1] + z
            mean = mean if plain else host.deterministic("mean", mean)
            host.sample("y", dist.Normal(mean, one), obs=None if y is None else host.array(y))

    return line


def hand_written(vr, *, plain=False):
    """A guide by hand."""
    host, dist = vr.host, vr.host.dist

    def guide(x, y=None):
        center = host.param("center", host.array(0.0))
        host.sample("a", dist.Normal(center, host.array(0.7)))
        if not plain:
            host.sample("b", dist.Normal(host.array(np.zeros(2)), host.array(0.8)).to_event(1))
        with host.plate("town", len(x)):
            host.sample("z", dist.Normal(host.array(np.zeros(len(x))), host.array(0.9)))

    return guide


def posterior_of(vr, model, guide, params, *args, **kwargs):
    guided = types.SimpleNamespace(model=model, guide=guide, name="line")
    params = {name: vr.host.array(value) for name, value in params.items()}
    return vr.Posterior(guided, params, args=args, kwargs=kwargs, losses=[], seed=0, record={"num_steps": 1})


@pytest.fixture
def line(vr, few_weights):
    return posterior_of(vr, line_model(vr), hand_written(vr), {"center": 0.0}, X, y=Y)


def names_of(data):
    """By group and variable its dimensions, and by group the labels of those that are named."""
    groups = data.groups() if FIRST_LINE else [name.removeprefix("/") for name in data.groups if name != "/"]
    found = {}
    for group in groups:
        dataset = data[group]
        found[group] = {str(name): tuple(array.dims) for name, array in dataset.data_vars.items()}
    return found


def labels_of(data, group):
    return {str(dim): data[group][dim].values.tolist() for dim in data[group].dims if dim not in ("chain", "draw")}


def nuts(vr, model, num=40):
    """The same model by MCMC, as its framework's users have it."""
    if vr.host.name == "numpyro":
        import jax
        from numpyro.infer import MCMC, NUTS, Predictive

        with jax.numpy_rank_promotion("allow"):
            mcmc = MCMC(NUTS(model), num_warmup=30, num_samples=num, progress_bar=False)
            mcmc.run(jax.random.key(0), X, y=Y)
            data = {"y": Predictive(model, mcmc.get_samples())(jax.random.key(1), X)["y"]}
            prior = Predictive(model, num_samples=num)(jax.random.key(2), X)
            given = {"posterior_predictive": data, "prior": prior, "predictions": data, "log_likelihood": True}
            return az.from_numpyro(mcmc, **given, constant_data={"x": X}, predictions_constant_data={"x": X})
    import pyro
    import torch
    from pyro.infer import MCMC, NUTS, Predictive

    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model), num_samples=num, warmup_steps=30, disable_progbar=True)
    mcmc.run(X, y=torch.as_tensor(Y))
    predictive = Predictive(model, mcmc.get_samples())(X)
    prior = {name: value.reshape(num, -1) for name, value in Predictive(model, num_samples=num)(X).items()}
    prior["a"] = prior["a"].reshape(num)
    return mcmc, {"y": predictive["y"]}, prior


@pytest.mark.parametrize("vr", ["numpyro"], indirect=True)
def test_names_are_those_of_from_numpyro(vr, line):
    mcmc = nuts(vr, line_model(vr))
    ours = line.to_arviz(40, prior=True, posterior_predictive=True, predictions={"x": X})
    theirs = names_of(mcmc)
    theirs.pop("sample_stats")
    found = names_of(ours)
    assert found.pop("sample_stats") == dict.fromkeys(("lp", "log_q", "log_weight", "weight"), ("chain", "draw"))
    assert found == theirs
    assert theirs["posterior"]["z"] == ("chain", "draw", "town")
    assert theirs["posterior"]["b"] == ("chain", "draw", "side")
    for group in theirs:
        assert labels_of(ours, group) == labels_of(mcmc, group), group
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 40 draws are few
        table = az.compare({"nuts": mcmc, "vi": ours})
    assert set(table.index) == {"nuts", "vi"}


@pytest.mark.skipif(not FIRST_LINE, reason="ArviZ 1.x has no from_pyro")
@pytest.mark.parametrize("vr", ["pyro"], indirect=True)
def test_names_are_those_of_from_pyro(vr, few_weights):
    """It does not read plates: the posterior tells it their names."""
    model = line_model(vr, plain=True)  # Pyro's Predictive, at once, serves no others
    line = posterior_of(vr, model, hand_written(vr, plain=True), {"center": 0.0}, X, y=Y)
    mcmc, predictive, prior = nuts(vr, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = az.from_pyro(
            mcmc,
            dims=line.dims,
            pred_dims=line.dims,
            posterior_predictive=predictive,
            predictions=predictive,
            prior=prior,
            constant_data={"x": X},
            predictions_constant_data={"x": X},
        )
    ours = line.to_arviz(40, prior=True, posterior_predictive=True, predictions={"x": X})
    expected, found = names_of(theirs), names_of(ours)
    for names in (expected, found):
        names.pop("sample_stats")
    assert found == expected
    for group in expected:
        assert labels_of(ours, group) == labels_of(theirs, group), group
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert set(az.compare({"nuts": theirs, "vi": ours}).index) == {"nuts", "vi"}


def test_the_users_own_names_and_labels_chains_and_new_data(line):
    options = {"prior": 7, "posterior_predictive": True, "log_prior": True, "resample": False}
    new = {"x": X[:3], "y": Y[:3]}
    data = line.to_arviz(
        6,
        num_chains=2,
        dims={"z": ["place"], "x": ["town"]},
        coords={"town": NAMES, "place": NAMES},
        predictions=new,
        pred_coords={"town": NAMES[:3]},
        **options,
    )
    assert data.posterior["z"].dims == ("chain", "draw", "place")
    assert data.posterior["a"].shape == (2, 6)
    assert data.posterior["mean"].sel(town="here").shape == (2, 6)
    assert data.prior["a"].shape == (1, 7)
    assert data.constant_data["x"].sel(town="west") == 0.5
    assert data["predictions"]["y"].sel(town="east").shape == (2, 6)
    assert data["predictions_constant_data"]["x"].shape == (3,)
    np.testing.assert_array_equal(data["observed_data"]["y"], Y)
    flat = {name: data.posterior[name].values.reshape(12, -1) for name in ("a", "b", "z", "mean")}
    scale = -0.5 * np.log(2 * np.pi)
    normal = lambda at, value: scale - 0.5 * (value - at) ** 2  # noqa: E731
    np.testing.assert_allclose(data.log_prior["z"].values.reshape(12, -1), normal(0.0, flat["z"]))
    np.testing.assert_allclose(data.log_likelihood["y"].values.reshape(12, -1), normal(flat["mean"], Y))
    mean = flat["a"] + flat["b"][:, :1] * X[:3] + flat["b"][:, 1:]
    assert data["predictions_log_likelihood"]["y"].shape == (2, 6, 3)  # its z are new, so only the form is known
    assert mean.shape == (12, 3)
    draws = line.draws(12)
    np.testing.assert_array_equal(flat["a"][:, 0], np.asarray(draws["a"]))
    for options, message in (
        ({"dims": {"w": ["place"]}}, "dims names w; there are"),
        ({"dims": {"a": ["place"]}}, "names 1 dimensions, and it has 0"),
        ({"coords": {"town": NAMES[:2]}}, r"coords\['town'\] has shape \(2,\)"),
        ({"coords": {"village": NAMES}}, "coords names village"),
        ({"predictions": X}, "a tuple, or a dict by name"),
        ({"num_chains": 0}, "num_chains is 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            line.to_arviz(3, **options)


def test_log_likelihood_of_new_data(line):
    """The same latents as in `draws`, where they fit."""
    new = np.array([2.0, 0.0, 1.0, -1.0, 0.5])
    found = np.asarray(line.log_likelihood(X, y=new, num_draws=30)["y"])
    mean = np.asarray(line.draws(30)["mean"])
    np.testing.assert_allclose(found, -0.5 * np.log(2 * np.pi) - 0.5 * (new - mean) ** 2)
    assert set(line.log_likelihood(num_draws=3)) == {"y"}


def level_posterior(vr, center, scale):
    """y ~ N(level, 1) eight times, level ~ N(0, 2), whose posterior is N(2.99, 0.348); the guide is off."""
    host, dist = vr.host, vr.host.dist

    def model(y=None):
        level = host.sample("level", dist.Normal(host.array(0.0), host.array(2.0)))
        with host.plate("days", 8):
            host.sample("y", dist.Normal(level, host.array(1.0)), obs=None if y is None else host.array(y))

    def guide(y=None):
        at = host.param("at", host.array(0.0))
        host.sample("level", dist.Normal(at, host.array(scale)))

    y = np.array([3.0, 5.0, 1.0, 4.0, 2.0, 6.0, 3.0, 0.7])
    return posterior_of(vr, model, guide, {"at": center}, y), y.sum() / 8.25, 8.25**-0.5


def test_a_guide_that_is_off_is_resampled_and_loo_is_right(vr, few_weights):
    posterior, mean, sd = level_posterior(vr, 2.5, 0.5)
    assert posterior.khat < 0.7
    num = 1_000
    raw, mended = (posterior.to_arviz(num, resample=resample) for resample in (False, True))
    found = mended.posterior["level"].values.ravel()
    error = sd / np.sqrt(num) * 2.0  # draws may come more than once
    assert abs(found.mean() - mean) < 4 * error < abs(raw.posterior["level"].values.mean() - mean)
    assert abs(found.std() - sd) < 4 * error
    assert mended.posterior.attrs["resampled"] == 1
    np.testing.assert_allclose(mended["sample_stats"]["weight"], 1 / num)
    weights = raw["sample_stats"]["weight"].values.ravel()
    assert weights.sum() == pytest.approx(1.0)
    assert abs((weights * raw.posterior["level"].values.ravel()).sum() - mean) < 4 * error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elpd = {
            name: float(getattr(az.loo(data), "elpd_loo" if FIRST_LINE else "elpd"))
            for name, data in {"raw": raw, "mended": mended}.items()
        }
    y = posterior.args[0] if not hasattr(posterior.args[0], "numpy") else np.asarray(posterior.args[0])
    exact = 0.0
    for i in range(8):  # the normal's leave-one-out density in closed form
        rest = np.delete(np.asarray(y), i)
        at, var = rest.sum() / 7.25, 1 / 7.25 + 1.0
        exact += -0.5 * np.log(2 * np.pi * var) - 0.5 * (y[i] - at) ** 2 / var
    exact = float(exact)
    assert abs(elpd["mended"] - exact) < 0.15 < abs(elpd["raw"] - exact)


def test_where_no_weights_can_mend_it_the_export_says_so(vr, few_weights):
    posterior, _, _ = level_posterior(vr, 6.0, 0.1)
    assert posterior.khat > 0.7
    with pytest.warns(UserWarning, match=r"k-hat is .*loo, compare"):
        data = posterior.to_arviz(20)
    assert data.posterior.attrs["resampled"] == 0
    assert posterior.to_arviz(20, log_likelihood=False).posterior["level"].shape == (1, 20)


def test_a_good_guide_is_exported_as_it_is(vr, few_weights):
    posterior, _, _ = level_posterior(vr, 24.7 / 8.25, 8.25**-0.5)
    data = posterior.to_arviz(50)
    assert data.posterior.attrs["resampled"] == 0
    np.testing.assert_allclose(data.posterior["level"].values[0], np.asarray(posterior.draws(50)["level"]), rtol=1e-12)


def test_it_goes_to_a_file_and_back(line, tmp_path):
    data = line.to_arviz(10, prior=True, posterior_predictive=True, resample=False)
    path = tmp_path / "line.nc"
    data.to_netcdf(str(path), engine="h5netcdf") if FIRST_LINE else data.to_netcdf(path, engine="h5netcdf")
    back = xr.open_dataset(path, group="posterior", engine="h5netcdf")
    np.testing.assert_array_equal(back["z"], data.posterior["z"])
    assert back["z"].dims == ("chain", "draw", "town")


def test_smoothing_is_the_same_in_both_lines():
    """Figures of ArviZ 0.23 and of 1.3 differ in the second digit of k-hat, by their priors on it."""
    weights = Weights(2.0 * np.random.default_rng(0).normal(size=20_000), np.zeros(20_000))
    smoothed, khat = weights.smoothed
    assert khat == pytest.approx(0.54, abs=0.01)
    assert smoothed.max() <= weights.log.max() + 1e-9
    ordinary = weights.log < np.quantile(weights.log, 0.9)
    np.testing.assert_allclose(smoothed[ordinary], weights.log[ordinary], rtol=0.0, atol=1e-9)
    assert weights.log_evidence()[0] == pytest.approx(2.0, abs=0.1)


# prior and predictive draws


def test_draws_of_the_prior(vr):
    guided = vr.guide(vr.MeanField())(line_model(vr))
    found = {name: np.asarray(value) for name, value in guided.prior(4_000, X, y=Y, seed=3).items()}
    assert {name: value.shape[1:] for name, value in found.items()} == {
        "a": (), "b": (2,), "z": (5,), "mean": (5,), "y": (5,)
    }  # fmt: skip
    assert not np.array_equal(found["y"][0], Y)
    variance = 1 + X**2 + 1 + 1 + 1  # of the data, by the model
    error = variance * np.sqrt(2 / 4_000)
    assert (np.abs(found["y"].var(0) - variance) < 4 * error).all()
    again = guided.prior(10, X, seed=3)
    np.testing.assert_array_equal(np.asarray(again["a"]), found["a"][:10])
    with pytest.raises(ArgumentError, match="num_draws"):
        guided.prior(0, X)


def test_an_improper_prior_is_refused(vr):
    host, dist = vr.host, vr.host.dist

    def model(y):
        z = host.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        host.sample("y", dist.Normal(z, host.array(1.0)), obs=host.array(y))

    with pytest.raises(SiteError, match="improper prior"):
        vr.guide(vr.MeanField())(model).prior(3, 1.0)


def test_predictions_in_chunks_and_to_a_file(vr, line, tmp_path):
    whole = np.asarray(line.predict(X[:3], num_draws=11)["y"])
    parts = list(line.predict_in_chunks(X[:3], num_draws=11, chunk_size=4))
    assert [len(part["y"]) for part in parts] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate([part["y"] for part in parts]), whole)
    path = line.predict_to(tmp_path / "p.nc", X[:3], num_draws=11, chunk_size=4, return_sites=["y", "b"])
    stored = xr.open_dataset(path, group="predictions", engine="h5netcdf")
    np.testing.assert_array_equal(stored["y"].values[0], whole)
    assert stored["y"].dims == ("chain", "draw", "town")
    assert stored["b"].dims == ("chain", "draw", "side")
    for name in ("p.nc", "p.zarr"):
        with pytest.raises(ArgumentError, match=r"cannot write|asks for zarr"):
            line.predict_to(tmp_path / "none" / name, X[:3], num_draws=2)


def test_predictions_to_a_zarr_store(vr, line, tmp_path):
    zarr = pytest.importorskip("zarr")
    whole = np.asarray(line.predict(X[:3], num_draws=11)["y"])
    for _ in range(2):  # the second replaces the first
        path = line.predict_to(tmp_path / "p.zarr", X[:3], num_draws=11, chunk_size=4)
    stored = zarr.open_group(path, mode="r")["predictions/y"]
    np.testing.assert_array_equal(stored[0], whole)
    assert stored.chunks == (1, 4, 3) and stored.metadata.dimension_names == ("chain", "draw", "town")
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "notes").touch()
    with pytest.raises(ArgumentError, match="cannot write"):
        line.predict_to(tmp_path / "mine.zarr", X[:3], num_draws=2)


def test_a_store_without_zarr_is_refused(vr, line, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ArgumentError, match=r"asks for zarr: pip install") as caught:
        line.predict_to(tmp_path / "p.zarr", X[:3], num_draws=2)
    assert len(str(caught.value)) <= 300


def test_later_draws_of_a_program_that_reads_its_values(vr):
    """Programs that run one draw at a time number their draws in the same way."""
    importlib.import_module(vr.__name__)
    host, dist = vr.host, vr.host.dist

    def model(y=None):
        z = host.sample("z", dist.Normal(host.array(0.0), host.array(1.0)))
        host.sample("y", dist.Normal(z, host.array(1.0)), obs=None if y is None else host.array(y))

    def guide(y=None):
        host.sample("z", dist.Normal(host.array(0.0), host.array(1.0)))

    posterior = posterior_of(vr, model, guide, {}, 1.0)
    posterior.scorer.at_once = False
    whole = np.asarray(posterior.predict(num_draws=5)["y"])
    parts = list(posterior.predict_in_chunks(num_draws=5, chunk_size=2))
    np.testing.assert_array_equal(np.concatenate([part["y"] for part in parts]), whole)


@pytest.mark.skipif(not FIRST_LINE, reason="1.x has another prior on k-hat")
@pytest.mark.parametrize("num", [25, 2_000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
@pytest.mark.filterwarnings("ignore")
def test_smoothing_is_arviz_s(num, spread):
    log_weights = spread * np.random.default_rng(num).standard_t(3, size=num)
    smoothed, khat = psislw(log_weights)
    theirs, their_khat = az.psislw(log_weights.copy())
    assert khat == pytest.approx(float(their_khat), abs=1e-10)
    lowest = log_weights.argmin()
    assert np.allclose(smoothed - smoothed[lowest], theirs - theirs[lowest], atol=1e-10)


@pytest.mark.skipif(not FIRST_LINE, reason="1.x has another interval")
def test_the_summary_is_arviz_s():
    x = np.random.default_rng(0).gamma(1.0, size=(2, 4_001))
    own = table_of({"a": x[0], "b[1]": x[1]}, 0.9)
    theirs = az.summary({"a": x[:1], "b": x[1:]}, kind="stats", round_to="none", hdi_prob=0.9)
    assert list(own.columns) == list(theirs.columns) and list(own.index) == ["a", "b[1]"]
    assert np.allclose(own.to_numpy(), theirs.to_numpy(), rtol=1e-12)
