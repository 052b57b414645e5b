"""The hierarchies of `benchmarks/hierarchies.py`: simulated ones, and real ones of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vi_reparam.backend.host import Host


class Problem(NamedTuple):
    """A model and its data.

    Attributes:
        nuts_model: the same in the form that suits NUTS; `hyper`, `local`: names of its latents and deterministics.
    """

    model: Callable[..., Any]
    nuts_model: Callable[..., Any]
    y: Any
    hyper: tuple[str, ...]
    local: tuple[str, ...]


def walk(host: Host, name: str, step: Any, num: int, *, centered: bool) -> Any:
    """A random walk of normal steps from zero; not centred where the framework has no distribution of it."""
    if centered and hasattr(host.dist, "GaussianRandomWalk"):
        return host.sample(name, host.dist.GaussianRandomWalk(step, num_steps=num))
    raw = host.sample(f"{name}_raw", normals(host, num, 1.0))
    return host.deterministic(name, step * host.xp.cumsum(raw, 0))


def normals(host: Host, num: int, scale: float) -> Any:
    """A vector of independent normals."""
    return host.dist.Normal(0.0, host.array(scale)).expand([num]).to_event(1)


def effects(host: Host, name: str, num: int, loc: Any, scale: Any, *, centered: bool) -> Any:
    """One effect a group, in either form."""
    dist = host.dist
    with host.plate(f"{name}_groups", num):
        if centered:
            return host.sample(name, dist.Normal(loc, scale))
        return host.deterministic(name, loc + scale * host.sample(f"{name}_raw", dist.Normal(0.0, 1.0)))


def counts(host: Host, num: int, spread: float, *, centered: bool = True) -> Problem:
    """Counts of ten in groups whose logits vary by `spread`."""
    dist = host.dist
    rng = np.random.default_rng(1)
    y = host.array(rng.binomial(10, 1.0 / (1.0 + np.exp(0.5 - spread * rng.normal(size=num)))))

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            mu, tau = host.sample("mu", dist.Normal(0.0, 2.0)), host.sample("tau", dist.HalfNormal(1.0))
            theta = effects(host, "theta", num, mu, tau, centered=centered)
            with host.plate("rows", num):
                host.sample("y", dist.Binomial(10, logits=theta), obs=y)

        return model

    return Problem(made(centered=centered), made(centered=spread > 0.1), y, ("mu", "tau"), ("theta",))


def intercepts(host: Host, num: int, *, centered: bool) -> Problem:
    """Groups of five with their own level, a common slope and unknown noise."""
    dist = host.dist
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(num), 5)
    x = rng.normal(size=len(group))
    y = 1.0 + 0.7 * rng.normal(size=num)[group] + 0.5 * x + rng.normal(size=len(group))
    x, y = host.array(x), host.array(y)

    def model(y: Any) -> None:
        mu, tau = host.sample("mu", dist.Normal(0.0, 2.0)), host.sample("tau", dist.HalfNormal(1.0))
        beta, sigma = host.sample("beta", dist.Normal(0.0, 2.0)), host.sample("sigma", dist.HalfNormal(1.0))
        alpha = effects(host, "alpha", num, mu, tau, centered=centered)
        with host.plate("rows", len(y)):
            host.sample("y", dist.Normal(alpha[group] + beta * x, sigma), obs=y)

    return Problem(model, model, y, ("mu", "tau", "beta", "sigma"), ("alpha",))


def correlated(host: Host, num: int) -> Problem:
    """Groups of eight with an intercept and a slope each, whose correlation has an LKJ prior."""
    dist = host.dist
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(num), 8)
    x = rng.normal(size=len(group))
    own = rng.normal(size=(num, 2)) @ np.array([[0.8, 0.0], [0.25, 0.4]]).T
    y = 1.0 + own[group, 0] + (0.5 + own[group, 1]) * x + 0.7 * rng.normal(size=len(group))
    x, y = host.array(x), host.array(y)

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            mu = host.sample("mu", normals(host, 2, 2.0))
            tau = host.sample("tau", dist.HalfNormal(1.0).expand([2]).to_event(1))
            sigma, root = host.sample("sigma", dist.HalfNormal(1.0)), host.sample("root", dist.LKJCholesky(2, 2.0))
            host.deterministic("correlation", root[1, 0])
            with host.plate("groups", num):
                if centered:
                    effect = host.sample("effect", dist.MultivariateNormal(mu, scale_tril=tau[:, None] * root))
                else:
                    raw = host.sample("raw", normals(host, 2, 1.0))
                    effect = host.deterministic("effect", mu + raw @ (tau[:, None] * root).T)
            with host.plate("rows", len(y)):
                host.sample("y", dist.Normal(effect[group, 0] + effect[group, 1] * x, sigma), obs=y)

        return model

    return Problem(made(centered=True), made(centered=False), y, ("mu", "tau", "sigma", "correlation"), ("effect",))


def poisson(host: Host, num: int) -> Problem:
    """Three counts a group, whose rates vary by a log-normal effect."""
    dist = host.dist
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(num), 3)
    x = rng.normal(size=len(group))
    y = rng.poisson(np.exp(0.6 * rng.normal(size=num)[group] + 0.5 + 0.3 * x))
    x, y = host.array(x), host.array(y)

    def model(y: Any) -> None:
        mu, tau = host.sample("mu", dist.Normal(0.0, 2.0)), host.sample("tau", dist.HalfNormal(1.0))
        beta = host.sample("beta", dist.Normal(0.0, 2.0))
        with host.plate("groups", num):
            rate = host.sample("rate", dist.LogNormal(mu, tau))
        with host.plate("rows", len(y)):
            host.sample("y", dist.Poisson(rate[group] * host.xp.exp(beta * x)), obs=y)

    return Problem(model, model, y, ("mu", "tau", "beta"), ("rate",))


def gammas(host: Host, num: int) -> Problem:
    """A count and an exposure a group, whose rate has a gamma prior with an unknown shape and mean."""
    dist = host.dist
    rng = np.random.default_rng(5)
    exposure = rng.uniform(0.5, 5.0, size=num)
    y = rng.poisson(rng.gamma(2.0, 0.5, size=num) * exposure)
    exposure, y = host.array(exposure), host.array(y)

    def model(y: Any) -> None:
        shape, mean = host.sample("shape", dist.LogNormal(0.0, 1.0)), host.sample("mean", dist.LogNormal(0.0, 1.0))
        with host.plate("groups", num):
            rate = host.sample("rate", dist.Gamma(shape, shape / mean))
            host.sample("y", dist.Poisson(rate * exposure), obs=y)

    return Problem(model, model, y, ("shape", "mean"), ("rate",))


def betas(host: Host, num: int) -> Problem:
    """Successes of a few trials in groups, whose chances have a beta prior of unknown mean and size."""
    dist = host.dist
    rng = np.random.default_rng(6)
    trials = rng.integers(3, 30, size=num)
    y = rng.binomial(trials, rng.beta(2.0, 6.0, size=num))
    trials, y = host.array(trials), host.array(y)

    def model(y: Any) -> None:
        mean, size = host.sample("mean", dist.Beta(1.0, 1.0)), host.sample("size", dist.LogNormal(2.0, 1.0))
        with host.plate("groups", num):
            chance = host.sample("chance", dist.Beta(mean * size, (1.0 - mean) * size))
            host.sample("y", dist.Binomial(trials, probs=chance), obs=y)

    return Problem(model, model, y, ("mean", "size"), ("chance",))


def horseshoe(host: Host, num: int) -> Problem:
    """A regression of 300 rows on `num` columns, of which five matter; coefficients centred."""
    dist = host.dist
    rng = np.random.default_rng(7)
    x = rng.normal(size=(300, num))
    y = x[:, :5] @ np.array([2.0, -1.5, 1.0, 0.8, -0.6]) + rng.normal(size=300)
    x, y = host.array(x), host.array(y)

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            tau, sigma = host.sample("tau", dist.HalfCauchy(0.1)), host.sample("sigma", dist.HalfNormal(2.0))
            with host.plate("columns", num):
                own = host.sample("own", dist.HalfCauchy(1.0))
                if centered:
                    beta = host.sample("beta", dist.Normal(0.0, tau * own))
                else:
                    beta = host.deterministic("beta", tau * own * host.sample("raw", dist.Normal(0.0, 1.0)))
            with host.plate("rows", len(y)):
                host.sample("y", dist.Normal(x @ beta, sigma), obs=y)

        return model

    return Problem(made(centered=True), made(centered=False), y, ("tau", "sigma"), ("beta",))


def hilbert(host: Host, num: int) -> Problem:
    """A smooth function of one variable by `num` weights of a Hilbert space Gaussian process (Solin, Sarkka 2020)."""
    dist = host.dist
    rng = np.random.default_rng(8)
    x = np.sort(rng.uniform(-1.0, 1.0, size=250))
    y = np.sin(4.0 * x) + 0.4 * x + 0.3 * rng.normal(size=250)
    edge = 1.5
    roots = np.arange(1, num + 1) * np.pi / (2.0 * edge)
    basis = host.array(np.sin(roots * (x[:, None] + edge)) / np.sqrt(edge))
    roots, y = host.array(roots), host.array(y)

    def model(y: Any) -> None:
        width, height = host.sample("width", dist.InverseGamma(3.0, 1.0)), host.sample("height", dist.HalfNormal(2.0))
        sigma = host.sample("sigma", dist.HalfNormal(1.0))
        spread = height * host.xp.sqrt(np.sqrt(2.0 * np.pi) * width) * host.xp.exp(-0.25 * (width * roots) ** 2)
        with host.plate("basis", num):
            weight = host.sample("weight", dist.Normal(0.0, 1.0))
        with host.plate("rows", len(y)):
            host.sample("y", dist.Normal(basis @ (spread * weight), sigma), obs=y)

    return Problem(model, model, y, ("width", "height", "sigma"), ("weight",))


def volatility(host: Host, num: int) -> Problem:
    """Returns whose log variance is a random walk of `num` days."""
    dist = host.dist
    rng = np.random.default_rng(9)
    y = host.array(np.exp(-1.0 + np.cumsum(0.1 * rng.normal(size=num))) * rng.standard_t(10.0, size=num))

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            step, df = host.sample("step", dist.Exponential(10.0)), host.sample("df", dist.Exponential(0.1))
            level = host.sample("level", dist.Normal(0.0, 2.0))
            log_scale = level + walk(host, "walk", step, num, centered=centered)
            with host.plate("days", num):
                host.sample("y", dist.StudentT(df, 0.0, host.xp.exp(log_scale)), obs=y)

        return model

    return Problem(made(centered=True), made(centered=False), y, ("step", "df", "level"), ("walk",))


def trend(host: Host, num: int) -> Problem:
    """A level whose slope is itself a random walk, seen with noise."""
    dist = host.dist
    rng = np.random.default_rng(10)
    slope = np.cumsum(0.02 * rng.normal(size=num))
    y = host.array(np.cumsum(slope + 0.1 * rng.normal(size=num)) + 0.5 * rng.normal(size=num))

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            steps = [host.sample(name, dist.HalfNormal(s)) for name, s in (("slope_step", 0.1), ("level_step", 0.5))]
            sigma = host.sample("sigma", dist.HalfNormal(1.0))
            slope, level = (
                walk(host, name, step, num, centered=centered)
                for name, step in zip(("slope", "level"), steps, strict=True)
            )
            with host.plate("days", num):
                host.sample("y", dist.Normal(level + host.xp.cumsum(slope, 0), sigma), obs=y)

        return model

    return Problem(
        made(centered=True), made(centered=False), y, ("slope_step", "level_step", "sigma"), ("slope", "level")
    )


def read(folder: Path, name: str) -> dict[str, Any]:
    """A file of the folder, its lists as NumPy arrays."""
    data = json.loads((folder / f"{name}.json").read_text())
    return {key: np.asarray(value) if isinstance(value, list) else value for key, value in data.items()}


def radon_slopes(host: Host, folder: Path) -> Problem:
    """Radon in 919 houses of 85 counties, an intercept and a slope each."""
    dist = host.dist
    data = read(folder, "radon_mn")
    county, floor, seen = data["county_idx"] - 1, host.array(data["floor_measure"]), host.array(data["log_radon"])

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            locs = [host.sample(f"mu_{name}", dist.Normal(0.0, 10.0)) for name in ("alpha", "beta")]
            scales = [host.sample(f"sigma_{name}", dist.HalfNormal(1.0)) for name in ("alpha", "beta", "y")]
            alpha = effects(host, "alpha", data["J"], locs[0], scales[0], centered=centered)
            beta = effects(host, "beta", data["J"], locs[1], scales[1], centered=centered)
            with host.plate("rows", len(y)):
                host.sample("y", dist.Normal(alpha[county] + beta[county] * floor, scales[2]), obs=y)

        return model

    hyper = ("mu_alpha", "mu_beta", "sigma_alpha", "sigma_beta", "sigma_y")
    return Problem(made(centered=True), made(centered=False), seen, hyper, ("alpha", "beta"))


def radon_states(host: Host, folder: Path) -> Problem:
    """Radon in 12,573 houses of 386 counties, an intercept each and two common slopes."""
    dist = host.dist
    data = read(folder, "radon_all")
    county, seen = data["county_idx"] - 1, host.array(data["log_radon"])
    floor, uranium = host.array(data["floor_measure"]), host.array(data["log_uppm"])

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            b = host.sample("b", normals(host, 2, 10.0))
            mu, tau = host.sample("mu", dist.Normal(0.0, 10.0)), host.sample("tau", dist.HalfNormal(1.0))
            sigma = host.sample("sigma", dist.HalfNormal(1.0))
            alpha = effects(host, "alpha", data["J"], mu, tau, centered=centered)
            with host.plate("rows", len(y)):
                host.sample("y", dist.Normal(alpha[county] + b[0] * uranium + b[1] * floor, sigma), obs=y)

        return model

    hyper = ("b", "mu", "tau", "sigma")
    return Problem(made(centered=True), made(centered=False), seen, hyper, ("alpha",))


def election(host: Host, folder: Path) -> Problem:
    """11,566 voters of 1988 by crossed age, education, both, state and region."""
    dist = host.dist
    data = read(folder, "election88")
    of = [data["black"], data["female"], data["v_prev_full"], data["female"] * data["black"]]
    x = host.array(np.stack([np.ones(data["N"]), *of], axis=1))
    groups = {"age": "n_age", "edu": "n_edu", "age_edu": "n_age_edu", "state": "n_state", "region": "n_region_full"}
    rows = {name: data["region_full" if name == "region" else name] - 1 for name in groups}

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            beta = host.sample("beta", normals(host, 5, 100.0))
            logit = x @ beta
            for name, size in groups.items():
                sigma = host.sample(f"sigma_{name}", dist.Uniform(0.0, 100.0))
                logit = logit + effects(host, name, data[size], 0.0, sigma, centered=centered)[rows[name]]
            with host.plate("voters", len(y)):
                host.sample("y", dist.Bernoulli(logits=logit), obs=y)

        return model

    hyper = ("beta", *(f"sigma_{name}" for name in groups))
    return Problem(made(centered=True), made(centered=False), host.array(data["y"]), hyper, tuple(groups))


def items(host: Host, folder: Path) -> Problem:
    """Answers of 100 persons to 20 items: two parameters an item."""
    dist = host.dist
    data = read(folder, "irt_2pl")

    def model(y: Any) -> None:
        spread, slopes = host.sample("s_theta", dist.HalfCauchy(2.0)), host.sample("s_a", dist.HalfCauchy(2.0))
        mu, own = host.sample("mu_b", dist.Normal(0.0, 5.0)), host.sample("s_b", dist.HalfCauchy(2.0))
        with host.plate("persons", data["J"]):
            theta = host.sample("theta", dist.Normal(0.0, spread))
        with host.plate("items", data["I"]):
            a, b = host.sample("a", dist.LogNormal(0.0, slopes)), host.sample("b", dist.Normal(mu, own))
        host.sample("y", dist.Bernoulli(logits=a[:, None] * (theta - b[:, None])).to_event(2), obs=y)

    return Problem(model, model, host.array(data["y"]), ("s_theta", "s_a", "mu_b", "s_b"), ("theta", "a", "b"))


def rats(host: Host, folder: Path) -> Problem:
    """Weights of 30 rats: an intercept and a slope each."""
    dist = host.dist
    data = read(folder, "rats_data")
    rat, x = data["rat"] - 1, host.array(data["x"] - data["xbar"])

    def model(y: Any) -> None:
        locs = [host.sample(f"mu_{name}", dist.Normal(0.0, 100.0)) for name in "ab"]
        scales = [host.sample(f"s_{name}", dist.HalfNormal(50.0)) for name in "aby"]
        alpha = effects(host, "alpha", data["N"], locs[0], scales[0], centered=True)
        beta = effects(host, "beta", data["N"], locs[1], scales[1], centered=True)
        with host.plate("rows", len(y)):
            host.sample("y", dist.Normal(alpha[rat] + beta[rat] * x, scales[2]), obs=y)

    return Problem(model, model, host.array(data["y"]), ("mu_a", "mu_b", "s_a", "s_b", "s_y"), ("alpha", "beta"))


def surgical(host: Host, folder: Path) -> Problem:
    """Deaths in 12 hospitals."""
    dist = host.dist
    data = read(folder, "surgical_data")
    trials = host.array(data["n"])

    def model(r: Any) -> None:
        mu, variance = (
            host.sample("mu", dist.Normal(0.0, 1000.0)),
            host.sample("variance", dist.InverseGamma(0.001, 0.001)),
        )
        with host.plate("hospitals", data["N"]):
            b = host.sample("b", dist.Normal(mu, host.xp.sqrt(variance)))
            host.sample("r", dist.Binomial(trials, logits=b), obs=r)

    return Problem(model, model, host.array(data["r"]), ("mu", "variance"), ("b",))


def years(host: Host, folder: Path) -> Problem:
    """Counts of 40 years: a cubic and an effect a year."""
    dist = host.dist
    data = read(folder, "GLMM_Poisson_data")
    t = host.array(data["year"])

    def model(y: Any) -> None:
        rate = host.sample("a", dist.Uniform(-20.0, 20.0))
        for power in (1, 2, 3):
            rate = rate + host.sample(f"b{power}", dist.Uniform(-10.0, 10.0)) * t**power
        spread = host.sample("s", dist.Uniform(0.0, 5.0))
        with host.plate("years", data["n"]):
            eps = host.sample("eps", dist.Normal(0.0, spread))
            host.sample("y", dist.Poisson(host.xp.exp(rate + eps)), obs=y)

    return Problem(model, model, host.array(data["C"]), ("a", "b1", "b2", "b3", "s"), ("eps",))


def accidents(host: Host, folder: Path) -> Problem:
    """Accidents in 1,921 tracts of New York: an effect a tract, and one that its neighbours share."""
    dist = host.dist
    data = read(folder, "traffic_accident_nyc")
    size, one, two = data["N"], data["node1"] - 1, data["node2"] - 1
    offset, scaling = host.array(np.log(data["E"])), data["scaling_factor"]

    def model(y: Any) -> None:
        b0, sigma = host.sample("b0", dist.Normal(0.0, 1.0)), host.sample("sigma", dist.HalfNormal(1.0))
        rho = host.sample("rho", dist.Beta(0.5, 0.5))
        with host.plate("tracts", size):
            theta = host.sample("theta", dist.Normal(0.0, 1.0))
        phi = host.sample("phi", dist.ImproperUniform(dist.constraints.real_vector, (), (size,)))
        host.factor("smooth", -0.5 * host.xp.sum((phi[one] - phi[two]) ** 2))
        host.factor("sum", dist.Normal(0.0, 0.001 * size).log_prob(host.xp.sum(phi)))
        own = host.xp.sqrt(1.0 - rho) * theta + host.xp.sqrt(rho / scaling) * phi
        with host.plate("rows", size):
            host.sample("y", dist.Poisson(host.xp.exp(offset + b0 + sigma * own)), obs=y)

    return Problem(model, model, host.array(data["y"]), ("b0", "sigma", "rho"), ("theta", "phi"))


def drivers(host: Host, folder: Path) -> Problem:
    """Drivers killed in 192 months: a level that walks, and seasons."""
    dist = host.dist
    data = read(folder, "uk_drivers")
    size = data["n"]
    x, w = host.array(data["x"]), host.array(data["w"])
    season_of = np.eye(size)  # a month and the eleven before it: their sum is its noise
    for month in range(11, size):
        season_of[month] -= season_of[month - 11 : month].sum(0)
    season_of = host.array(season_of)

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            s = host.sample("s", dist.ImproperUniform(dist.constraints.positive_ordered_vector, (), (3,)))
            host.factor("s_prior", host.xp.sum(dist.StudentT(4.0, 0.0, 1.0).log_prob(s)))
            beta, lam = host.sample("beta", dist.Normal(0.0, 10.0)), host.sample("lambda", dist.Normal(0.0, 10.0))
            level0 = host.sample("level0", dist.Normal(0.0, 10.0))
            level = level0 + walk(host, "walk", s[1], size, centered=centered)
            season = host.sample("first", normals(host, 11, 1.0))
            raw = s[0] * host.sample("season_raw", normals(host, size - 11, 1.0))
            season = season_of @ host.xp.concat([season, raw])
            host.deterministic("level", level)
            host.deterministic("season", season)
            with host.plate("months", size):
                host.sample("y", dist.Normal(level + season + beta * x + lam * w, s[2]), obs=y)

        return model

    return Problem(
        made(centered=True), made(centered=False), host.array(data["y"]), ("s", "beta", "lambda"), ("level", "season")
    )


SIMULATED: dict[str, Callable[[Host], Problem]] = {
    "counts_400": lambda host: counts(host, 400, 0.5),
    "counts_400_narrow": lambda host: counts(host, 400, 0.05),
    "counts_400_wide": lambda host: counts(host, 400, 2.0),
    "counts_400_not_centred": lambda host: counts(host, 400, 0.5, centered=False),
    "counts_3000": lambda host: counts(host, 3_000, 0.5),
    "intercepts_400": lambda host: intercepts(host, 400, centered=True),
    "intercepts_400_not_centred": lambda host: intercepts(host, 400, centered=False),
    "correlated_200": lambda host: correlated(host, 200),
    "poisson_300": lambda host: poisson(host, 300),
    "gammas_300": lambda host: gammas(host, 300),
    "betas_300": lambda host: betas(host, 300),
    "horseshoe_200": lambda host: horseshoe(host, 200),
    "hilbert_50": lambda host: hilbert(host, 50),
    "volatility_1000": lambda host: volatility(host, 1_000),
    "trend_250": lambda host: trend(host, 250),
}
REAL: dict[str, Callable[[Host, Path], Problem]] = {
    "radon_mn": radon_slopes,
    "radon_all": radon_states,
    "election": election,
    "items": items,
    "rats": rats,
    "surgical": surgical,
    "years": years,
    "accidents": accidents,
    "drivers": drivers,
}
