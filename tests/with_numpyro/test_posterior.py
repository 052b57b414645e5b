"""vr.Posterior on hand-written guides: figures against closed forms, the verdict, files, predictions."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from jax.scipy.special import gammaln

from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.posterior.verdict import Figures, judge, loss_drift
from vi_reparam_numpyro import MeanField, Posterior, load
from vi_reparam_numpyro import guide as guided_by

SHAPE, RATE = 2.0, 0.5
COUNTS = np.array([3.0, 5.0, 1.0, 4.0, 2.0, 6.0, 3.0, 2.0])
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
SETTLED = np.random.default_rng(0).normal(20.0, 1.0, 2_000)


def counts_model(y=None, num=8):
    rate = numpyro.sample("rate", dist.Gamma(SHAPE, RATE))
    numpyro.deterministic("log_rate", jnp.log(rate))
    with numpyro.plate("days", num if y is None else len(y)):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def counts_guide(y=None, num=8):
    a = numpyro.param("a", jnp.array(1.0), constraint=dist.constraints.positive)
    b = numpyro.param("b", jnp.array(1.0), constraint=dist.constraints.positive)
    numpyro.sample("rate", dist.Gamma(a, b))


def level_model(y=None):
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    numpyro.deterministic("doubled", 2.0 * level)
    with numpyro.plate("days", 8 if y is None else len(y)):
        numpyro.sample("y", dist.Normal(level, 1.0), obs=y)


def level_guide(y=None):
    scale = numpyro.param("scale", jnp.array(1.0), constraint=dist.constraints.positive)
    numpyro.sample("level", dist.Normal(numpyro.param("loc", jnp.array(0.0)), scale))


def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("schools", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_guide(sigma, y=None):
    mu_loc = numpyro.param("mu_loc", jnp.array(0.0))
    mu_scale = numpyro.param("mu_scale", jnp.array(1.0), constraint=dist.constraints.positive)
    numpyro.sample("mu", dist.Normal(mu_loc, mu_scale))
    numpyro.sample("tau", dist.LogNormal(numpyro.param("tau_loc", jnp.array(0.0)), 0.7))
    with numpyro.plate("schools", len(sigma)):
        loc = numpyro.param("theta_loc", jnp.zeros(8), event_dim=0)
        numpyro.sample("theta", dist.Normal(loc, 4.0))


def guided(model, guide, name=None):
    return types.SimpleNamespace(model=model, guide=guide, objective=None, name=name or model.__name__)


def make(model, guide, params, *args, losses=SETTLED, name=None, **kwargs):
    return Posterior(
        guided(model, guide, name), params, args=args, kwargs=kwargs, losses=losses, seed=0, record={"num_steps": 2_000}
    )


def exact_params():
    return {"a": jnp.asarray(SHAPE + COUNTS.sum()), "b": jnp.asarray(RATE + len(COUNTS))}


def level_params():
    precision = 0.25 + len(COUNTS)
    return {"loc": jnp.asarray(COUNTS.sum() / precision), "scale": jnp.asarray(precision**-0.5)}


def level_log_evidence():
    n, precision = len(COUNTS), 0.25 + len(COUNTS)
    square = (COUNTS**2).sum() - COUNTS.sum() ** 2 / precision
    return -0.5 * (n * np.log(2 * np.pi) + np.log(4.0 * precision) + square)


def exact_log_evidence():
    a, b = SHAPE + COUNTS.sum(), RATE + len(COUNTS)
    value = SHAPE * np.log(RATE) - gammaln(SHAPE) + gammaln(a) - a * np.log(b) - gammaln(COUNTS + 1.0).sum()
    return float(value)


@pytest.fixture(scope="module")
def conjugate():
    return make(counts_model, counts_guide, exact_params(), COUNTS)


@pytest.fixture(scope="module")
def level():
    return make(level_model, level_guide, level_params(), COUNTS)


@pytest.fixture(scope="module")
def schools():
    params = {"mu_loc": 4.0, "mu_scale": 3.0, "tau_loc": 1.0, "theta_loc": jnp.linspace(6.0, 3.0, 8)}
    return make(eight_schools, eight_schools_guide, jax.tree.map(jnp.asarray, params), ERRORS, y=EFFECTS)


# the exact posterior


def test_exact_guide_has_the_log_evidence_as_elbo(conjugate):
    truth = exact_log_evidence()
    for value, error in (conjugate.elbo(), conjugate.elbo(500, seed=3), conjugate.log_evidence()):
        assert value == pytest.approx(truth, abs=1e-4)
        assert error < 1e-4
    assert conjugate.khat == 0.0
    assert conjugate.verdict.grade == "good"
    assert conjugate.verdict.reasons == ()
    assert conjugate.log_weights.shape == (conjugate.default_num_weights,)


def test_expectations_of_the_exact_posterior(conjugate):
    a, b = (float(x) for x in exact_params().values())

    def moments(z):
        return {"mean": z["rate"], "square": z["rate"] ** 2, "both": jnp.stack([z["log_rate"], z["rate"]])}

    for weighted in (False, True):
        mean, error = conjugate.expectation(moments, num_draws=20_000, seed=5, weighted=weighted)
        assert abs(mean["mean"] - a / b) < 4 * error["mean"]
        assert abs(mean["square"] - a * (a + 1) / b**2) < 4 * error["square"]
        assert mean["both"].shape == error["both"].shape == (2,)
        assert error["mean"] == pytest.approx(np.sqrt(a) / b / np.sqrt(20_000), rel=0.05)
    with pytest.raises(ArgumentError, match="reads values in Python"):
        conjugate.expectation(lambda z: float(z["rate"]))


@pytest.mark.slow  # the Pyro backend's is not
def test_importance_weights_correct_a_guide_that_is_off():
    a, b = (float(x) for x in exact_params().values())
    posterior = make(counts_model, counts_guide, {"a": jnp.asarray(0.8 * a), "b": jnp.asarray(0.85 * b)}, COUNTS)
    plain, plain_error = posterior.expectation(lambda z: z["rate"], num_draws=20_000)
    mean, error = posterior.expectation(lambda z: z["rate"], num_draws=20_000, weighted=True)
    assert abs(plain - a / b) > 10 * plain_error
    assert abs(mean - a / b) < 4 * error
    value, error = posterior.log_evidence()
    assert abs(value - exact_log_evidence()) < 4 * error
    assert posterior.elbo()[0] < value
    assert posterior.khat < 0.5


# draws


def test_draws_hold_latents_and_deterministics_and_repeat(level):
    draws = level.draws(200, seed=1)
    assert set(draws) == {"level", "doubled"}
    assert draws["level"].shape == (200,)
    np.testing.assert_allclose(draws["doubled"], 2.0 * draws["level"], rtol=1e-5)
    np.testing.assert_array_equal(draws["level"], level.draws(200, seed=jax.random.key(1))["level"])
    np.testing.assert_array_equal(draws["level"][:50], level.draws(50, seed=1)["level"])
    assert not np.array_equal(draws["level"], level.draws(200, seed=2)["level"])
    for bad in (0, -1, 2.5, True):
        with pytest.raises(ArgumentError, match="num_draws"):
            level.draws(bad)
    with pytest.raises(ArgumentError, match="seed"):
        level.draws(10, seed="x")


def test_repeated_calls_compile_once():
    traced = []

    def model(y):
        traced.append(1)
        level_model(y)

    posterior = make(model, level_guide, level_params(), COUNTS)
    fn = jnp.sin

    def calls(seed):
        posterior.draws(30, seed=seed)
        posterior.elbo(30, seed=seed)
        posterior.predict(COUNTS, num_draws=30, seed=seed)
        posterior.expectation(pick, num_draws=30, seed=seed)

    def pick(z):
        return fn(z["level"])

    calls(1)
    count = len(traced)
    posterior.draws(30, seed=2), posterior.expectation(pick, num_draws=30, seed=2)
    assert len(traced) == count
    posterior.elbo(30, seed=2)
    assert len(traced) <= count + 1  # whether the model has changed is a trace, not a compilation
    posterior.predict(COUNTS + 1.0, num_draws=30, seed=2)
    assert len(traced) <= count + 2  # the check of new arguments is one, too


def test_chunks_give_the_same_draws(level, monkeypatch):
    whole = level.draws(101, seed=4)["level"]
    monkeypatch.setattr("vi_reparam_numpyro.engine.engine.CHUNK_BUDGET", 200)
    chunked = make(level_model, level_guide, level_params(), COUNTS).draws(101, seed=4)["level"]
    np.testing.assert_allclose(whole, chunked, rtol=1e-6)


# scoring


def test_log_weight_is_log_p_minus_log_q_site_by_site(schools):
    draws, log_weights = schools.draws(20), schools.log_weights[:20]
    p, mu, tau, theta = schools.params, draws["mu"], draws["tau"], draws["theta"]
    log_p = dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfNormal(5.0).log_prob(tau)
    log_p += dist.Normal(mu[:, None], tau[:, None]).log_prob(theta).sum(-1)
    log_p += dist.Normal(theta, ERRORS[None]).log_prob(EFFECTS[None]).sum(-1)
    log_q = dist.Normal(p["mu_loc"], p["mu_scale"]).log_prob(mu) + dist.LogNormal(p["tau_loc"], 0.7).log_prob(tau)
    log_q += dist.Normal(p["theta_loc"][None], 4.0).log_prob(theta).sum(-1)
    np.testing.assert_allclose(log_weights, log_p - log_q, rtol=1e-4, atol=1e-4)


def test_subsampled_plates_run_over_all_of_the_data():
    x = np.random.default_rng(1).normal(2.0, 1.0, 50)

    def model(x, size=None):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(x), subsample_size=size) as rows:
            z = numpyro.sample("z", dist.Normal(mu, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x, size=None):
        numpyro.sample("mu", dist.Normal(numpyro.param("loc", jnp.array(1.0)), 0.2))
        with numpyro.plate("rows", len(x), subsample_size=size):
            numpyro.sample("z", dist.Normal(numpyro.param("z_loc", jnp.ones(len(x)), event_dim=0), 0.7))

    params = {"loc": jnp.asarray(2.0), "z_loc": jnp.asarray(x)}
    part = make(model, guide, params, jnp.asarray(x), size=5)
    whole = make(model, guide, params, jnp.asarray(x))
    assert part.draws(10)["z"].shape == (10, 50)
    np.testing.assert_allclose(part.log_weights, whole.log_weights, rtol=1e-5)
    assert part.predict(jnp.asarray(x), size=5, num_draws=7)["x"].shape == (7, 50)
    assert part.to_arviz(20, resample=False).log_likelihood["x"].dims == ("chain", "draw", "rows")


def test_masks_factors_scales_params_and_auxiliary_sites():
    mask = np.array([True, False] * 4)

    def model(y):
        offset = numpyro.param("offset", jnp.array(0.0))
        level = numpyro.sample("level", dist.Normal(0.0, 2.0))
        numpyro.factor("bonus", 2.0 * offset)
        with numpyro.plate("days", len(y)), numpyro.handlers.mask(mask=mask), numpyro.handlers.scale(scale=3.0):
            numpyro.sample("y", dist.Normal(level, 1.0), obs=y)

    def guide(y):
        noise = numpyro.sample("noise", dist.Normal(3.0, 0.5), infer={"is_auxiliary": True})
        numpyro.sample("level", dist.Delta(noise))

    posterior = make(model, guide, {"offset": jnp.asarray(1.5)}, COUNTS)
    level = posterior.draws(10)["level"]
    likelihood = 3.0 * dist.Normal(level[:, None], 1.0).log_prob(COUNTS[None, mask]).sum(-1)
    expected = dist.Normal(0.0, 2.0).log_prob(level) + 3.0 + likelihood - dist.Normal(3.0, 0.5).log_prob(level)
    np.testing.assert_allclose(posterior.log_weights[:10], expected, rtol=1e-4, atol=1e-4)
    assert set(posterior.draws(3)) == {"level"}
    assert set(posterior.predict(COUNTS, num_draws=3)) == {"y"}
    assert not posterior.verdict.figures.points


def test_the_guides_own_distribution_scores_the_draw():
    class Precise(dist.Normal):
        """Remembers what it drew, as this library's distributions do."""

        def sample(self, key, sample_shape=()):
            self.drawn = super().sample(key, sample_shape)
            return jnp.round(self.drawn)

        def log_prob(self, value):
            return super().log_prob(self.drawn)

    def model():
        numpyro.sample("z", dist.Normal(0.0, 3.0))

    def guide():
        numpyro.sample("z", Precise(0.0, 3.0))

    posterior = make(model, guide, {})
    records, drawn = posterior.scorer.pair.run(jax.random.key(0), (), {}, {})
    assert drawn["z"].log_prob() != records["z"].log_prob()
    assert np.isfinite(posterior.log_weights).all()


def test_a_model_that_reads_its_data_in_python_is_served():
    def model(y):
        level = numpyro.sample("level", dist.Normal(0.0, 2.0 if float(y.sum()) > 0 else 1.0))
        numpyro.sample("y", dist.Normal(level, 1.0).expand([len(y)]).to_event(1), obs=y)

    posterior = make(model, level_guide, level_params(), COUNTS)
    assert posterior.elbo()[0] == pytest.approx(level_log_evidence(), abs=1e-4)
    assert posterior.predict(COUNTS, num_draws=4)["y"].shape == (4, 8)


def test_guide_and_model_must_agree():
    def lacks(y):
        numpyro.sample("other", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    def extra(y):
        level_guide(y)
        numpyro.sample("other", dist.Normal(0.0, 1.0))

    def wide(y):
        numpyro.sample("level", dist.Normal(0.0, 1.0).expand([1]))

    for guide, message in ((lacks, "does not draw"), (extra, "other, not in the model"), (wide, r"shape \(1,\)")):
        with pytest.raises(SiteError, match=message):
            make(level_model, guide, level_params(), COUNTS)
    with pytest.raises(ArgumentError, match="parameters scale"):
        make(level_model, level_guide, {"loc": jnp.asarray(1.0)}, COUNTS)


# the verdict


def test_a_bad_guide_is_not_good():
    posterior = make(level_model, level_guide, {"loc": jnp.asarray(4.0), "scale": jnp.asarray(0.1)}, COUNTS)
    assert posterior.khat >= 0.7
    assert posterior.verdict.grade == "poor"
    assert "are to be trusted" in str(posterior.verdict)


def test_nan_weights_are_counted_never_dropped():
    def model(y):
        level = numpyro.sample("level", dist.Normal(0.0, 2.0))
        numpyro.factor("fault", jnp.where(level > 4.2, jnp.nan, 0.0))
        numpyro.sample("y", dist.Normal(level, 1.0).expand([8]).to_event(1), obs=y)

    posterior = make(model, level_guide, level_params(), COUNTS)
    count = int(np.isnan(posterior.log_weights).sum())
    assert 0 < count < len(posterior.log_weights)
    assert posterior.verdict.grade == "poor"
    assert posterior.verdict.figures.num_nan == count
    assert f"{count:,} of {len(posterior.log_weights):,} log weights are NaN" in str(posterior.summary())
    assert np.isnan([posterior.khat, *posterior.elbo(), *posterior.log_evidence()]).all()
    with pytest.raises(ArgumentError, match="NaN"):
        posterior.expectation(lambda z: z["level"], weighted=True)
    posterior.plot()


def test_draws_outside_the_support_and_points_are_poor():
    def truncated(y):
        level = numpyro.sample("level", dist.Normal(0.0, 2.0))
        numpyro.factor("edge", jnp.where(level > 4.0, -jnp.inf, 0.0))
        numpyro.sample("y", dist.Normal(level, 1.0).expand([8]).to_event(1), obs=y)

    posterior = make(truncated, level_guide, level_params(), COUNTS)
    assert posterior.verdict.figures.num_outside > 0
    assert posterior.verdict.grade == "poor"
    assert posterior.elbo()[0] == -np.inf
    assert np.isfinite(posterior.log_evidence()[0])

    def point(y):
        numpyro.sample("level", dist.Delta(numpyro.param("loc", jnp.array(1.0))))

    assert make(level_model, point, {"loc": jnp.asarray(3.0)}, COUNTS).verdict.grade == "poor"


def figures(**changes):
    base = {"khat": 0.2, "elbo": -10.0, "elbo_error": 0.01, "log_evidence": -9.9, "log_evidence_error": 0.01}
    base |= {"mean_shift": 0.01, "sd_shift": 0.02}
    base |= {"num_weights": 4_000, "num_nan": 0, "num_outside": 0, "num_latents": 5, "drift": None}
    return Figures(**(base | changes))


def test_grades():
    assert judge(figures()).grade == "good"
    for changes in ({"khat": 0.6}, {"elbo_error": 0.5}, {"log_evidence": -7.0}, {"sd_shift": 0.3}, {"rivals": (3.5,)}):
        assert judge(figures(**changes)).grade == "fair"
    for changes in ({"khat": 0.7}, {"khat": float("nan")}, {"khat": float("inf")}, {"num_nan": 1}, {"rivals": (0.0,)}):
        assert judge(figures(**changes)).grade == "poor"
    many = judge(figures(khat=9.0, num_latents=30_000))
    assert many.grade == "poor"
    assert "all 30,000 latents at once" in str(many)
    assert "posterior.refine() says how far means and sds are off" in str(many)


def test_losses_that_still_fall_are_seen():
    noise = np.random.default_rng(0).normal(0.0, 1.0, 1_000)
    flat, falling = loss_drift(noise.tolist()), loss_drift((noise - 0.02 * np.arange(1_000)).tolist())
    assert flat.is_settled
    assert not falling.is_settled
    assert falling.amount == pytest.approx(2.0, abs=0.5)
    assert loss_drift([1.0, 2.0]) is None
    assert judge(figures(drift=falling)).grade == "fair"


# tables and pictures


def test_summary_has_the_table_and_the_verdict(schools):
    summary = schools.summary()
    assert list(summary.table.index[:3]) == ["mu", "tau", "theta[0]"]
    assert summary.table.loc["mu", "mean"] == pytest.approx(4.0, abs=0.3)
    assert summary.table.loc["mu", "sd"] == pytest.approx(3.0, abs=0.3)
    assert "verdict: " + summary.verdict.grade in str(summary)


@pytest.mark.parametrize(
    ("rows", "hidden"), [(3, "110"), pytest.param(30, "1,190", marks=pytest.mark.slow)], ids=["120", "1200"]
)
def test_summary_says_what_it_leaves_out(rows, hidden):
    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0).expand([rows, 40]).to_event(2))

    summary = make(model, model, {}).summary()
    assert len(summary.table) == 10
    assert summary.table.index[3] == "z[0, 3]"
    assert summary.num_hidden == {"z": 40 * rows - 10}
    assert f"{hidden} more rows not shown (z {hidden})" in str(summary)


@pytest.mark.slow  # the Pyro backend's is not
def test_plot_writes_a_picture(schools, tmp_path):
    figure = schools.plot(tmp_path / "schools.png")
    assert (tmp_path / "schools.png").stat().st_size > 10_000
    assert len(figure.axes) == 2 + 8
    with pytest.raises(ArgumentError, match="cannot write"):
        schools.plot(tmp_path / "none" / "schools.png")


# predictions


def test_predictions_are_the_negative_binomial(conjugate):
    a, b = (float(x) for x in exact_params().values())
    draws = np.asarray(conjugate.predict(None, num=2, num_draws=20_000)["y"])
    assert draws.shape == (20_000, 2)
    mean, var = a / b, a / b * (1 + 1 / b)
    assert abs(draws[:, 0].mean() - mean) < 4 * np.sqrt(var / 20_000)
    assert draws[:, 0].var() == pytest.approx(var, rel=0.05)
    # the rate is shared by the days
    assert np.cov(draws.T)[0, 1] == pytest.approx(a / b**2, rel=0.25)


def test_observed_sites_are_drawn_afresh(level):
    draws = level.predict(num_draws=50)
    assert set(draws) == {"y"}
    assert draws["y"].shape == (50, 8)
    assert not np.array_equal(draws["y"][0], COUNTS)
    both = level.predict(COUNTS, num_draws=50, return_sites=["y", "doubled", "level"])
    np.testing.assert_allclose(both["doubled"], 2.0 * both["level"], rtol=1e-5)
    with pytest.raises(ArgumentError, match="return_sites names x"):
        level.predict(COUNTS, return_sites=["x"])


@pytest.mark.slow  # the Pyro backend's is not
def test_new_groups_come_from_the_model(schools):
    new = schools.predict(np.array([1.0, 1.0, 1.0]), num_draws=4_000, return_sites=["mu", "theta", "y"])
    assert new["theta"].shape == new["y"].shape == (4_000, 3)
    assert abs(float((new["theta"][:, 0] - new["mu"]).mean())) < 0.5
    kept = schools.predict(ERRORS, num_draws=4_000, return_sites="theta")["theta"]
    np.testing.assert_allclose(kept.mean(0), schools.params["theta_loc"], atol=0.3)
    fresh = schools.predict(ERRORS, num_draws=4_000, return_sites="theta", fresh_sites=["theta"])["theta"]
    np.testing.assert_allclose(fresh.mean(0), 4.0, atol=0.7)
    with pytest.raises(ArgumentError, match="fresh_sites"):
        schools.predict(ERRORS, fresh_sites=["y"])


def test_inputs_of_another_form_are_refused():
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    def guide(x, y=None):
        numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))

    posterior = make(model, guide, {}, np.ones((6, 3)), y=np.zeros(6))
    assert posterior.predict(np.ones((4, 3)), num_draws=5)["y"].shape == (5, 4)
    with pytest.raises(SiteError, match=r"'w' has shape \(4,\)"):
        posterior.predict(np.ones((4, 4)), num_draws=5)


def test_an_observation_wider_than_its_distribution_keeps_its_shape():
    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("level", dist.Normal(0.0, 2.0)), 1.0), obs=y)

    posterior = make(model, level_guide, level_params(), COUNTS)
    assert posterior.predict(num_draws=3)["y"].shape == (3, 8)


# ArviZ


@pytest.mark.slow  # the Pyro backend's is not
def test_to_arviz_survives_netcdf(schools, tmp_path):
    import arviz as az

    data = schools.to_arviz(100, posterior_predictive=True, resample=False)
    data.to_netcdf(str(tmp_path / "schools.nc"), engine="h5netcdf")
    back = az.from_netcdf(str(tmp_path / "schools.nc"), engine="h5netcdf")
    assert back.posterior["theta"].dims == ("chain", "draw", "schools")
    assert back.posterior["theta"].shape == back.log_likelihood["y"].shape == (1, 100, 8)
    assert back.posterior_predictive["y"].shape == (1, 100, 8)
    np.testing.assert_allclose(back.posterior["theta"][0], schools.draws(100)["theta"], rtol=1e-12)
    np.testing.assert_array_equal(back.observed_data["y"], EFFECTS)
    np.testing.assert_array_equal(back.constant_data["sigma"], ERRORS)
    assert list(back.constant_data.data_vars) == ["sigma"]
    stats = back.sample_stats
    np.testing.assert_allclose(stats["log_weight"][0], schools.log_weights[:100], rtol=1e-5)
    np.testing.assert_allclose(stats["log_weight"], stats["lp"] - stats["log_q"], rtol=1e-5)
    assert back.posterior.attrs["inference_library"] == "vi-reparam"
    assert "log_likelihood" not in schools.to_arviz(10, log_likelihood=False).groups()


def test_names_with_slashes_are_written(tmp_path):
    def model():
        with numpyro.handlers.scope(prefix="net"), numpyro.plate("units", 3):
            numpyro.sample("w", dist.Normal(0.0, 1.0))

    data = make(model, model, {}).to_arviz(10)
    data.to_netcdf(str(tmp_path / "net.nc"), engine="h5netcdf")
    assert list(data.posterior.data_vars) == ["net.w"]


# files


def test_save_and_load(schools, tmp_path):
    path = schools.save(tmp_path / "schools.npz")
    back = load(path, schools.guided)
    np.testing.assert_array_equal(back.draws(50)["theta"], schools.draws(50)["theta"])
    np.testing.assert_array_equal(back.log_weights, schools.log_weights)
    np.testing.assert_array_equal(back.losses, schools.losses)
    assert back.record == schools.record
    assert str(back.verdict) == str(schools.verdict)
    with np.load(path, allow_pickle=False) as file:
        assert all(not file[name].dtype.hasobject for name in file.files)


def test_nested_parameters_and_arguments_survive(tmp_path):
    def model(data, names, *, size, flag=True, key=None):
        numpyro.param("net$params", {"layer": {"w": jnp.ones(2)}})
        numpyro.sample("z", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        numpyro.sample("y", dist.Normal(0.0, 1.0).expand([2]).to_event(1), obs=data["y"][0])

    def guide(*args, size, **kwargs):
        numpyro.sample("z", dist.Normal(0.0, 1.0).expand([size]).to_event(1))

    params = {"net$params": {"layer": {"w": jnp.asarray([1.0, 2.0], dtype=jnp.bfloat16)}}}
    args = ({"y": [np.zeros(2), 1.5]}, ("a", None))
    posterior = make(model, guide, params, *args, size=3, key=jax.random.key(4))
    back = load(posterior.save(tmp_path / "file"), posterior.guided)
    assert back.args[1] == ("a", None)
    assert back.args[0]["y"][1] == 1.5
    assert back.kwargs["size"] == 3
    np.testing.assert_array_equal(jax.random.key_data(back.kwargs["key"]), jax.random.key_data(jax.random.key(4)))
    np.testing.assert_array_equal(back.params["net$params"]["layer"]["w"], params["net$params"]["layer"]["w"])


def test_an_autoguide_that_learned_nothing_yet_loads(tmp_path):
    from numpyro.infer.autoguide import AutoNormal

    guide = AutoNormal(level_model)
    with numpyro.handlers.seed(rng_seed=0):
        guide(COUNTS)
    params = {"level_auto_loc": level_params()["loc"], "level_auto_scale": level_params()["scale"]}
    path = make(level_model, guide, params, COUNTS).save(tmp_path / "auto.npz")
    back = load(path, guided(level_model, AutoNormal(level_model)))
    assert back.verdict.grade == "good"


def test_files_of_other_models_are_refused(level, schools, tmp_path):
    path = level.save(tmp_path / "counts.npz")
    with pytest.raises(ArgumentError, match="of 'level_model', not of 'eight_schools'"):
        load(path, schools.guided)

    def other_guide(y=None):
        numpyro.sample("level", dist.Normal(numpyro.param("c", jnp.array(1.0)), 1.0))

    def other_model(y=None):
        level = numpyro.sample("level", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(level[0], 1.0).expand([8]).to_event(1), obs=y)

    def renamed(y=None):
        level = numpyro.sample("level", dist.Normal(0.0, 2.0))
        numpyro.sample("x", dist.Normal(level, 1.0).expand([8]).to_event(1), obs=y)

    for model, guide in ((level_model, other_guide), (other_model, level_guide), (renamed, level_guide)):
        with pytest.raises(ArgumentError, match="another 'level_model' than the given 'level_model'") as raised:
            load(path, guided(model, guide, "level_model"))
        assert "\n" not in str(raised.value)
    with pytest.raises(ArgumentError, match="guided model"):
        load(path, level_model)


def test_files_that_are_none_are_refused(level, tmp_path):
    whole = level.save(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("no numbers here")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    np.save(tmp_path / "array.npy", np.ones(3))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object))
    bent = bytearray(whole)
    bent[60:80] = bytes(20)
    (tmp_path / "bent.npz").write_bytes(bytes(bent))
    names = ("half.npz", "text.npz", "empty.npz", "other.npz", "array.npy", "pickle.npy", "bent.npz", "none.npz", "")
    for name in names:
        with pytest.raises(ArgumentError) as raised:
            load(tmp_path / name, level.guided)
        assert "\n" not in str(raised.value)


def test_what_cannot_be_stored_is_named(level, tmp_path):
    posterior = make(lambda f: level_model(COUNTS), lambda f: level_guide(), level_params(), object(), name="m")
    with pytest.raises(ArgumentError, match=r"args\[0\] is of type object"):
        posterior.save(tmp_path / "file.npz")
    with pytest.raises(ArgumentError, match="cannot write"):
        level.save(tmp_path / "none" / "file.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_posterior_of_a_scan_is_not_said_to_have_changed(recwarn):
    def model(y, first):
        mu, own = numpyro.sample("mu", dist.Normal(0.0, 1.0)), numpyro.sample("own", dist.Uniform(0.0, 1.0))

        def step(variance, value):
            return 0.1 + own * (value - mu) ** 2, variance

        _, variances = lax.scan(step, jnp.asarray(first**2), y)
        numpyro.factor("y", dist.Normal(mu, jnp.sqrt(variances)).log_prob(y).sum())

    posterior = guided_by(MeanField())(model).fit(jnp.arange(5.0), 0.5, num_steps=2, progress=False)
    posterior.elbo(20)
    assert not [w for w in recwarn if "another model" in str(w.message)]
