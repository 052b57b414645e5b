"""Models side by side: evidence in closed form, and each datum left out exactly."""

import math
import warnings

import numpy as np
import pytest

from vi_reparam.posterior.arviz_lines import import_arviz
from vi_reparam.posterior.loo import loo

RNG = np.random.default_rng(3)
X = np.column_stack([np.ones(40), np.linspace(-0.9, 1.9, 40)])
Y = X @ np.array([1.0, -0.5]) + RNG.uniform(-1.5, 1.5, size=40)
PRIOR_SD = 2.0


def regression(vr, site="y"):
    h = vr.host

    def line(x, y=None):
        b = h.sample("b", h.dist.Normal(h.array(np.zeros(x.shape[1])), h.array(PRIOR_SD)).to_event(1))
        with h.plate("data", x.shape[0]):
            h.sample(site, h.dist.Normal((x * b[None, :]).sum(-1), h.array(1.0)), obs=y)

    return line


@pytest.fixture(scope="module")
def fits(module_vr):
    """A line by a guide that is a quarter too wide, so that the weights have something to correct, and a constant."""
    vr = module_vr
    y = vr.host.array(Y)
    right = vr.guide(vr.FullRank())(regression(vr)).fit(vr.host.array(X), y, progress=False)
    params = {**right.params, "gaussian_root": 1.25 * right.params["gaussian_root"]}
    fields = {"losses": right.losses, "seed": 0, "record": right.record}
    line = vr.Posterior(right.guided, params, args=right.args, kwargs=right.kwargs, **fields)
    constant = vr.guide(vr.FullRank())(regression(vr, "outcome")).fit(vr.host.array(X[:, :1]), y, progress=False)
    return line, constant


def log_normal(y, covariance):
    return -0.5 * (
        len(y) * math.log(2 * math.pi) + np.linalg.slogdet(covariance)[1] + y @ np.linalg.solve(covariance, y)
    )


def evidence(x):
    return log_normal(Y, np.eye(len(Y)) + PRIOR_SD**2 * x @ x.T)


def left_out(x):
    """Exact log predictive densities of each datum given the others."""
    found = []
    for i in range(len(Y)):
        rest = np.arange(len(Y)) != i
        covariance = np.linalg.inv(x[rest].T @ x[rest] + np.eye(x.shape[1]) / PRIOR_SD**2)
        mean, var = x[i] @ covariance @ x[rest].T @ Y[rest], 1.0 + x[i] @ covariance @ x[i]
        found.append(-0.5 * (math.log(2 * math.pi * var) + (Y[i] - mean) ** 2 / var))
    return np.array(found)


def is_mean(values, exact):
    return abs(np.mean(values) - exact) < 4.0 * np.std(values, ddof=1) / math.sqrt(len(values)) + 1e-3


def test_models_of_the_same_data(module_vr, fits):
    line, constant = fits
    study = module_vr.compare_models({"constant": constant, "line": line})
    exact = {"line": evidence(X), "constant": evidence(X[:, :1])}
    for row in study:
        x = X if row.model == "line" else X[:, :1]
        assert abs(row.log_evidence - exact[row.model]) < 4.0 * row.evidence_error + 1e-6
        assert abs(row.elpd_loo - left_out(x).sum()) < 0.1 and row.loo_khat < 0.7
        assert abs(row.p_loo - x.shape[1]) < 1.5
    assert study[0].model == max(exact, key=exact.get) and study[0].log_bayes_factor == 0.0
    factor = min(exact.values()) - max(exact.values())
    assert abs(study[1].log_bayes_factor - factor) < 4.0 * line.log_evidence()[1] + 1e-6
    assert sum(row.probability for row in study) == pytest.approx(1.0)
    apart = left_out(X[:, :1]) - left_out(X)
    worse = min(study, key=lambda row: row.elpd_loo)
    assert abs(worse.elpd_difference + abs(apart.sum())) < 0.15
    assert worse.difference_error == pytest.approx(apart.std(ddof=1) * math.sqrt(len(Y)), rel=0.1)
    assert "probability" in str(study) and "<table>" in study._repr_html_()


def test_leave_one_out_corrects_for_the_guide(fits):
    line = fits[0]
    assert line.khat < 0.7 and line.verdict.grade != "good"
    found = [loo(line, 4_000, seed, order=lambda given: [given["y"]]) for seed in range(12)]
    assert all(own.is_weighted for own in found)
    exact = left_out(X).sum()
    assert is_mean([own.elpd[0] for own in found], exact)
    record, line.record = line.record, {**line.record, "refined": {}}  # its draws taken for the posterior's
    plain = [loo(line, 4_000, seed, order=lambda given: [given["y"]]).elpd[0] for seed in range(12)]
    line.record = record
    assert not is_mean(plain, exact)


def test_arviz_leaves_out_what_the_posterior_would(fits):
    """Draws are resampled by the weights on their way to ArviZ, which knows of none."""
    line, arviz = fits[0], import_arviz()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [getattr(arviz.loo(line.to_arviz(2_000, seed)), "elpd_loo", None) for seed in range(8)]
        if found[0] is None:  # ArviZ 1.x
            found = [arviz.loo(line.to_arviz(2_000, seed)).elpd for seed in range(8)]
    assert is_mean(found, left_out(X).sum())


def test_what_cannot_be_compared_is_refused(module_vr, fits):
    vr, (line, constant) = module_vr, fits
    with pytest.raises(vr.ArgumentError, match="two posteriors at least"):
        vr.compare_models({"one": line})
    with pytest.raises(vr.ArgumentError, match="expected one of"):
        vr.compare_models({"line": line, "constant": constant}, evidence="laplace")
    shorter = line.guided.fit(vr.host.array(X[:15]), vr.host.array(Y[:15]), num_steps=1, progress=False)
    with pytest.raises(vr.ArgumentError, match=r"different data: .y. of shape \(40,\), and .y. of shape \(15,\)"):
        vr.compare_models({"line": line, "shorter": shorter})


def test_control_variates_are_exact_on_a_normal_posterior(fits):
    """Of quadratic functions; of others the error is smaller, and right."""
    line = fits[0]
    covariance = np.linalg.inv(X.T @ X + np.eye(2) / PRIOR_SD**2)
    mean = covariance @ X.T @ Y

    def moments(draw):
        b = draw["b"]
        return {"square": b * b, "cube": b**3}

    exact = {"square": mean**2 + np.diag(covariance), "cube": mean**3 + 3.0 * mean * np.diag(covariance)}
    plain, plain_error = line.expectation(moments, 2_000, weighted=True)
    value, error = line.expectation(moments, 2_000, control=True)
    np.testing.assert_allclose(value["square"], exact["square"], rtol=1e-9)
    assert (error["cube"] ** 2 < 0.1 * plain_error["cube"] ** 2).all()
    assert (np.abs(value["cube"] - exact["cube"]) < 4.0 * error["cube"]).all()
    assert (np.abs(plain["cube"] - exact["cube"]) < 4.0 * plain_error["cube"]).all()


def test_control_variates_serve_where_the_noise_is_unknown(module_vr):
    vr, h = module_vr, module_vr.host

    def line(x, y=None):
        b = h.sample("b", h.dist.Normal(h.array(np.zeros(2)), h.array(PRIOR_SD)).to_event(1))
        sigma = h.sample("sigma", h.dist.HalfNormal(h.array(2.0)))
        with h.plate("data", x.shape[0]):
            h.sample("y", h.dist.Normal((x * b[None, :]).sum(-1), sigma), obs=y)

    posterior = vr.guide(vr.FullRank())(line).fit(h.array(X), h.array(Y), progress=False)
    chosen = lambda draw: (draw["b"], draw["sigma"])  # noqa: E731  (one object, so that it compiles once)
    plain = posterior.expectation(chosen, weighted=True)[1]
    value, error = posterior.expectation(chosen, control=True)
    for before, after in zip(plain, error, strict=True):
        assert (after**2 < 0.1 * before**2).all()
    grid = np.exp(np.linspace(-2.0, 1.5, 2_001))  # of sigma; b given it is normal
    heights = [log_normal(Y, s**2 * np.eye(len(Y)) + PRIOR_SD**2 * X @ X.T) - s**2 / 8.0 + math.log(s) for s in grid]
    weight = np.exp(heights - np.max(heights))
    given = [np.linalg.solve(X.T @ X / s**2 + np.eye(2) / PRIOR_SD**2, X.T @ Y / s**2) for s in grid]
    exact = np.average(given, axis=0, weights=weight), np.average(grid, weights=weight)
    for i in range(2):
        assert (np.abs(value[i] - exact[i]) < 4.0 * error[i] + 1e-6).all()


# Strength of 42 specimens of pine, by density and by density adjusted for resin (Williams 1959).
# fmt: off
STRENGTH = np.array([
    3040, 2470, 3610, 3480, 3810, 2330, 1800, 3110, 3160, 2310, 4360, 1880, 3670, 1740, 2250, 2650, 4970, 2620,
    2900, 1670, 2540, 3840, 3800, 4600, 1900, 2530, 2920, 4990, 1670, 3310, 3450, 3600, 2850, 1590, 3770, 3850,
    2480, 3570, 2620, 1890, 3030, 3030,
])
DENSITY = np.array([
    29.2, 24.7, 32.3, 31.3, 31.5, 24.5, 19.9, 27.3, 27.1, 24.0, 33.8, 21.5, 32.2, 22.5, 27.5, 25.6, 34.5, 26.2,
    26.7, 21.1, 24.1, 30.7, 32.7, 32.6, 22.1, 25.3, 30.8, 38.9, 22.1, 29.2, 30.1, 31.4, 26.7, 22.1, 30.3, 32.0,
    23.2, 30.3, 29.9, 20.8, 33.2, 28.2,
])
ADJUSTED = np.array([
    25.4, 22.2, 32.2, 31.0, 30.9, 23.9, 19.2, 27.2, 26.3, 23.9, 33.2, 21.0, 29.0, 22.0, 23.8, 25.3, 34.2, 25.7,
    26.4, 20.0, 23.9, 30.7, 32.6, 32.5, 20.8, 23.1, 29.8, 38.1, 21.3, 28.5, 29.2, 31.4, 25.9, 21.4, 29.8, 30.6,
    22.6, 30.3, 23.8, 18.4, 29.4, 28.2,
])
# fmt: on
MEAN, PRECISION, SHAPE, RATE = np.array([3_000.0, 185.0]), np.array([0.06, 6.0]), 3.0, 2.0 * 300.0**2


def conjugate_evidence(x):
    """Of a line whose coefficients' prior precision is `PRECISION` times that of the noise, which is a gamma."""
    x = np.column_stack([np.ones(len(x)), x - x.mean()])
    after = x.T @ x + np.diag(PRECISION)
    center = np.linalg.solve(after, x.T @ STRENGTH + PRECISION * MEAN)
    shape = SHAPE + 0.5 * len(x)
    rate = RATE + 0.5 * (float(STRENGTH @ STRENGTH) + PRECISION @ MEAN**2 - center @ after @ center)
    found = 0.5 * (np.log(PRECISION).sum() - np.linalg.slogdet(after)[1]) - 0.5 * len(x) * math.log(2.0 * math.pi)
    return found + SHAPE * math.log(RATE) - shape * math.log(rate) + math.lgamma(shape) - math.lgamma(SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("module_vr", ["numpyro"], indirect=True)  # in Pyro the same chains take minutes
def test_the_evidence_of_two_lines_through_pines(module_vr):
    vr, h = module_vr, module_vr.host

    def pines(x, y=None):
        precision = h.sample("precision", h.dist.Gamma(h.array(SHAPE), h.array(RATE)))
        scale = precision**-0.5
        line = h.sample("line", h.dist.Normal(h.array(MEAN), scale * h.array(PRECISION**-0.5)).to_event(1))
        with h.plate("specimens", len(STRENGTH)):
            h.sample("y", h.dist.Normal(line[0] + line[1] * x, scale), obs=y)

    guided = vr.guide(vr.FullRank())(pines)
    data = {"density": DENSITY, "adjusted": ADJUSTED}
    fitted = {n: guided.fit(h.array(x - x.mean()), h.array(STRENGTH), progress=False) for n, x in data.items()}
    for method in ("importance", "bridge", "harmonic"):
        for row in vr.compare_models(fitted, evidence=method):
            assert abs(row.log_evidence - conjugate_evidence(data[row.model])) < 4.0 * row.evidence_error
            assert row.evidence_error < 0.05
