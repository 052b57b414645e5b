"""The hierarchies of `benchmarks/hierarchies.py`: simulated ones, and real ones of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax

Normal, sample, plate = dist.Normal, numpyro.sample, numpyro.plate


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


def effects(name: str, num: int, loc: Any, scale: Any, *, centered: bool) -> Any:
    """One effect a group, in either form."""
    with plate(f"{name}_groups", num):
        if centered:
            return sample(name, Normal(loc, scale))
        return numpyro.deterministic(name, loc + scale * sample(f"{name}_raw", Normal(0.0, 1.0)))


def counts(num: int, spread: float, *, centered: bool = True) -> Problem:
    """Counts of ten in groups whose logits vary by `spread`."""
    rng = np.random.default_rng(1)
    y = rng.binomial(10, 1.0 / (1.0 + np.exp(0.5 - spread * rng.normal(size=num))))

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            mu, tau = sample("mu", Normal(0.0, 2.0)), sample("tau", dist.HalfNormal(1.0))
            theta = effects("theta", num, mu, tau, centered=centered)
            with plate("rows", num):
                sample("y", dist.Binomial(10, logits=theta), obs=y)

        return model

    return Problem(made(centered=centered), made(centered=spread > 0.1), y, ("mu", "tau"), ("theta",))


def intercepts(num: int, *, centered: bool) -> Problem:
    """Groups of five with their own level, a common slope and unknown noise."""
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(num), 5)
    x = rng.normal(size=len(group))
    y = 1.0 + 0.7 * rng.normal(size=num)[group] + 0.5 * x + rng.normal(size=len(group))

    def model(y: Any) -> None:
        mu, tau = sample("mu", Normal(0.0, 2.0)), sample("tau", dist.HalfNormal(1.0))
        beta, sigma = sample("beta", Normal(0.0, 2.0)), sample("sigma", dist.HalfNormal(1.0))
        alpha = effects("alpha", num, mu, tau, centered=centered)
        with plate("rows", len(y)):
            sample("y", Normal(alpha[group] + beta * x, sigma), obs=y)

    return Problem(model, model, y, ("mu", "tau", "beta", "sigma"), ("alpha",))


def correlated(num: int) -> Problem:
    """Groups of eight with an intercept and a slope each, whose correlation has an LKJ prior."""
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(num), 8)
    x = rng.normal(size=len(group))
    own = rng.normal(size=(num, 2)) @ np.array([[0.8, 0.0], [0.25, 0.4]]).T
    y = 1.0 + own[group, 0] + (0.5 + own[group, 1]) * x + 0.7 * rng.normal(size=len(group))

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            mu = sample("mu", Normal(0.0, 2.0).expand([2]).to_event(1))
            tau = sample("tau", dist.HalfNormal(1.0).expand([2]).to_event(1))
            sigma, root = sample("sigma", dist.HalfNormal(1.0)), sample("root", dist.LKJCholesky(2, 2.0))
            numpyro.deterministic("correlation", root[1, 0])
            with plate("groups", num):
                if centered:
                    effect = sample("effect", dist.MultivariateNormal(mu, scale_tril=tau[:, None] * root))
                else:
                    raw = sample("raw", Normal(0.0, 1.0).expand([2]).to_event(1))
                    effect = numpyro.deterministic("effect", mu + raw @ (tau[:, None] * root).T)
            with plate("rows", len(y)):
                sample("y", Normal(effect[group, 0] + effect[group, 1] * x, sigma), obs=y)

        return model

    return Problem(made(centered=True), made(centered=False), y, ("mu", "tau", "sigma", "correlation"), ("effect",))


def poisson(num: int) -> Problem:
    """Three counts a group, whose rates vary by a log-normal effect."""
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(num), 3)
    x = rng.normal(size=len(group))
    y = rng.poisson(np.exp(0.6 * rng.normal(size=num)[group] + 0.5 + 0.3 * x))

    def model(y: Any) -> None:
        mu, tau = sample("mu", Normal(0.0, 2.0)), sample("tau", dist.HalfNormal(1.0))
        beta = sample("beta", Normal(0.0, 2.0))
        with plate("groups", num):
            rate = sample("rate", dist.LogNormal(mu, tau))
        with plate("rows", len(y)):
            sample("y", dist.Poisson(rate[group] * jnp.exp(beta * x)), obs=y)

    return Problem(model, model, y, ("mu", "tau", "beta"), ("rate",))


def gammas(num: int) -> Problem:
    """A count and an exposure a group, whose rate has a gamma prior with an unknown shape and mean."""
    rng = np.random.default_rng(5)
    exposure = rng.uniform(0.5, 5.0, size=num)
    y = rng.poisson(rng.gamma(2.0, 0.5, size=num) * exposure)

    def model(y: Any) -> None:
        shape, mean = sample("shape", dist.LogNormal(0.0, 1.0)), sample("mean", dist.LogNormal(0.0, 1.0))
        with plate("groups", num):
            rate = sample("rate", dist.Gamma(shape, shape / mean))
            sample("y", dist.Poisson(rate * exposure), obs=y)

    return Problem(model, model, y, ("shape", "mean"), ("rate",))


def betas(num: int) -> Problem:
    """Successes of a few trials in groups, whose chances have a beta prior of unknown mean and size."""
    rng = np.random.default_rng(6)
    trials = rng.integers(3, 30, size=num)
    y = rng.binomial(trials, rng.beta(2.0, 6.0, size=num))

    def model(y: Any) -> None:
        mean, size = sample("mean", dist.Beta(1.0, 1.0)), sample("size", dist.LogNormal(2.0, 1.0))
        with plate("groups", num):
            chance = sample("chance", dist.Beta(mean * size, (1.0 - mean) * size))
            sample("y", dist.Binomial(trials, probs=chance), obs=y)

    return Problem(model, model, y, ("mean", "size"), ("chance",))


def horseshoe(num: int) -> Problem:
    """A regression of 300 rows on `num` columns, of which five matter; coefficients centred."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(300, num))
    y = x[:, :5] @ np.array([2.0, -1.5, 1.0, 0.8, -0.6]) + rng.normal(size=300)

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            tau, sigma = sample("tau", dist.HalfCauchy(0.1)), sample("sigma", dist.HalfNormal(2.0))
            with plate("columns", num):
                own = sample("own", dist.HalfCauchy(1.0))
                if centered:
                    beta = sample("beta", Normal(0.0, tau * own))
                else:
                    beta = numpyro.deterministic("beta", tau * own * sample("raw", Normal(0.0, 1.0)))
            with plate("rows", len(y)):
                sample("y", Normal(x @ beta, sigma), obs=y)

        return model

    return Problem(made(centered=True), made(centered=False), y, ("tau", "sigma"), ("beta",))


def hilbert(num: int) -> Problem:
    """A smooth function of one variable by `num` weights of a Hilbert space Gaussian process (Solin, Sarkka 2020)."""
    rng = np.random.default_rng(8)
    x = np.sort(rng.uniform(-1.0, 1.0, size=250))
    y = np.sin(4.0 * x) + 0.4 * x + 0.3 * rng.normal(size=250)
    edge = 1.5
    roots = np.arange(1, num + 1) * np.pi / (2.0 * edge)
    basis = np.sin(roots * (x[:, None] + edge)) / np.sqrt(edge)

    def model(y: Any) -> None:
        width, height = sample("width", dist.InverseGamma(3.0, 1.0)), sample("height", dist.HalfNormal(2.0))
        sigma = sample("sigma", dist.HalfNormal(1.0))
        spread = height * jnp.sqrt(jnp.sqrt(2.0 * jnp.pi) * width) * jnp.exp(-0.25 * (width * roots) ** 2)
        with plate("basis", num):
            weight = sample("weight", Normal(0.0, 1.0))
        with plate("rows", len(y)):
            sample("y", Normal(basis @ (spread * weight), sigma), obs=y)

    return Problem(model, model, y, ("width", "height", "sigma"), ("weight",))


def volatility(num: int) -> Problem:
    """Returns whose log variance is a random walk of `num` days."""
    rng = np.random.default_rng(9)
    y = np.exp(-1.0 + np.cumsum(0.1 * rng.normal(size=num))) * rng.standard_t(10.0, size=num)

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            step, df = sample("step", dist.Exponential(10.0)), sample("df", dist.Exponential(0.1))
            level = sample("level", Normal(0.0, 2.0))
            if centered:
                walk = sample("walk", dist.GaussianRandomWalk(step, num_steps=num))
            else:
                raw = sample("raw", Normal(0.0, 1.0).expand([num]).to_event(1))
                walk = numpyro.deterministic("walk", jnp.cumsum(step * raw))
            with plate("days", num):
                sample("y", dist.StudentT(df, 0.0, jnp.exp(level + walk)), obs=y)

        return model

    return Problem(made(centered=True), made(centered=False), y, ("step", "df", "level"), ("walk",))


def trend(num: int) -> Problem:
    """A level whose slope is itself a random walk, seen with noise."""
    rng = np.random.default_rng(10)
    slope = np.cumsum(0.02 * rng.normal(size=num))
    y = np.cumsum(slope + 0.1 * rng.normal(size=num)) + 0.5 * rng.normal(size=num)

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            steps = [sample(name, dist.HalfNormal(s)) for name, s in (("slope_step", 0.1), ("level_step", 0.5))]
            sigma = sample("sigma", dist.HalfNormal(1.0))
            if centered:
                slope, level = (
                    sample(name, dist.GaussianRandomWalk(step, num_steps=num))
                    for name, step in zip(("slope", "level"), steps, strict=True)
                )
            else:
                raws = [
                    sample(f"{name}_raw", Normal(0.0, 1.0).expand([num]).to_event(1)) for name in ("slope", "level")
                ]
                slope, level = (
                    numpyro.deterministic(name, jnp.cumsum(step * raw))
                    for name, step, raw in zip(("slope", "level"), steps, raws, strict=True)
                )
            with plate("days", num):
                sample("y", Normal(level + jnp.cumsum(slope), sigma), obs=y)

        return model

    return Problem(
        made(centered=True), made(centered=False), y, ("slope_step", "level_step", "sigma"), ("slope", "level")
    )


def read(folder: Path, name: str) -> dict[str, Any]:
    """A file of the folder, its lists as arrays."""
    data = json.loads((folder / f"{name}.json").read_text())
    return {key: np.asarray(value) if isinstance(value, list) else value for key, value in data.items()}


def radon_slopes(folder: Path) -> Problem:
    """Radon in 919 houses of 85 counties, an intercept and a slope each."""
    data = read(folder, "radon_mn")
    county, floor = data["county_idx"] - 1, data["floor_measure"].astype(float)

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            locs = [sample(f"mu_{name}", Normal(0.0, 10.0)) for name in ("alpha", "beta")]
            scales = [sample(f"sigma_{name}", dist.HalfNormal(1.0)) for name in ("alpha", "beta", "y")]
            alpha = effects("alpha", data["J"], locs[0], scales[0], centered=centered)
            beta = effects("beta", data["J"], locs[1], scales[1], centered=centered)
            with plate("rows", len(y)):
                sample("y", Normal(alpha[county] + beta[county] * floor, scales[2]), obs=y)

        return model

    hyper = ("mu_alpha", "mu_beta", "sigma_alpha", "sigma_beta", "sigma_y")
    return Problem(made(centered=True), made(centered=False), data["log_radon"], hyper, ("alpha", "beta"))


def radon_states(folder: Path) -> Problem:
    """Radon in 12,573 houses of 386 counties, an intercept each and two common slopes."""
    data = read(folder, "radon_all")
    county, floor, uranium = data["county_idx"] - 1, data["floor_measure"].astype(float), data["log_uppm"]

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            b = sample("b", Normal(0.0, 10.0).expand([2]).to_event(1))
            mu, tau = sample("mu", Normal(0.0, 10.0)), sample("tau", dist.HalfNormal(1.0))
            sigma = sample("sigma", dist.HalfNormal(1.0))
            alpha = effects("alpha", data["J"], mu, tau, centered=centered)
            with plate("rows", len(y)):
                sample("y", Normal(alpha[county] + b[0] * uranium + b[1] * floor, sigma), obs=y)

        return model

    hyper = ("b", "mu", "tau", "sigma")
    return Problem(made(centered=True), made(centered=False), data["log_radon"], hyper, ("alpha",))


def election(folder: Path) -> Problem:
    """11,566 voters of 1988 by crossed age, education, both, state and region."""
    data = read(folder, "election88")
    of = [data["black"], data["female"], data["v_prev_full"], data["female"] * data["black"]]
    x = np.stack([np.ones(data["N"]), *of], axis=1).astype(float)
    groups = {"age": "n_age", "edu": "n_edu", "age_edu": "n_age_edu", "state": "n_state", "region": "n_region_full"}
    rows = {name: data["region_full" if name == "region" else name] - 1 for name in groups}

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            beta = sample("beta", Normal(0.0, 100.0).expand([5]).to_event(1))
            logit = x @ beta
            for name, size in groups.items():
                sigma = sample(f"sigma_{name}", dist.Uniform(0.0, 100.0))
                logit = logit + effects(name, data[size], 0.0, sigma, centered=centered)[rows[name]]
            with plate("voters", len(y)):
                sample("y", dist.Bernoulli(logits=logit), obs=y)

        return model

    hyper = ("beta", *(f"sigma_{name}" for name in groups))
    return Problem(made(centered=True), made(centered=False), data["y"], hyper, tuple(groups))


def items(folder: Path) -> Problem:
    """Answers of 100 persons to 20 items: two parameters an item."""
    data = read(folder, "irt_2pl")

    def model(y: Any) -> None:
        spread, slopes = sample("s_theta", dist.HalfCauchy(2.0)), sample("s_a", dist.HalfCauchy(2.0))
        mu, own = sample("mu_b", Normal(0.0, 5.0)), sample("s_b", dist.HalfCauchy(2.0))
        with plate("persons", data["J"]):
            theta = sample("theta", Normal(0.0, spread))
        with plate("items", data["I"]):
            a, b = sample("a", dist.LogNormal(0.0, slopes)), sample("b", Normal(mu, own))
        sample("y", dist.Bernoulli(logits=a[:, None] * (theta - b[:, None])).to_event(2), obs=y)

    return Problem(model, model, data["y"], ("s_theta", "s_a", "mu_b", "s_b"), ("theta", "a", "b"))


def rats(folder: Path) -> Problem:
    """Weights of 30 rats: an intercept and a slope each."""
    data = read(folder, "rats_data")
    rat, x = data["rat"] - 1, data["x"] - data["xbar"]

    def model(y: Any) -> None:
        locs = [sample(f"mu_{name}", Normal(0.0, 100.0)) for name in "ab"]
        scales = [sample(f"s_{name}", dist.HalfNormal(50.0)) for name in "aby"]
        alpha = effects("alpha", data["N"], locs[0], scales[0], centered=True)
        beta = effects("beta", data["N"], locs[1], scales[1], centered=True)
        with plate("rows", len(y)):
            sample("y", Normal(alpha[rat] + beta[rat] * x, scales[2]), obs=y)

    return Problem(model, model, data["y"].astype(float), ("mu_a", "mu_b", "s_a", "s_b", "s_y"), ("alpha", "beta"))


def surgical(folder: Path) -> Problem:
    """Deaths in 12 hospitals."""
    data = read(folder, "surgical_data")

    def model(r: Any) -> None:
        mu, variance = sample("mu", Normal(0.0, 1000.0)), sample("variance", dist.InverseGamma(0.001, 0.001))
        with plate("hospitals", data["N"]):
            b = sample("b", Normal(mu, jnp.sqrt(variance)))
            sample("r", dist.Binomial(data["n"], logits=b), obs=r)

    return Problem(model, model, data["r"], ("mu", "variance"), ("b",))


def years(folder: Path) -> Problem:
    """Counts of 40 years: a cubic and an effect a year."""
    data = read(folder, "GLMM_Poisson_data")
    t = data["year"]

    def model(y: Any) -> None:
        rate = sample("a", dist.Uniform(-20.0, 20.0))
        for power in (1, 2, 3):
            rate = rate + sample(f"b{power}", dist.Uniform(-10.0, 10.0)) * t**power
        spread = sample("s", dist.Uniform(0.0, 5.0))
        with plate("years", data["n"]):
            eps = sample("eps", Normal(0.0, spread))
            sample("y", dist.Poisson(jnp.exp(rate + eps)), obs=y)

    return Problem(model, model, data["C"], ("a", "b1", "b2", "b3", "s"), ("eps",))


def accidents(folder: Path) -> Problem:
    """Accidents in 1,921 tracts of New York: an effect a tract, and one that its neighbours share."""
    data = read(folder, "traffic_accident_nyc")
    size, one, two = data["N"], data["node1"] - 1, data["node2"] - 1
    offset, scaling = np.log(data["E"]), data["scaling_factor"]

    def model(y: Any) -> None:
        b0, sigma = sample("b0", Normal(0.0, 1.0)), sample("sigma", dist.HalfNormal(1.0))
        rho = sample("rho", dist.Beta(0.5, 0.5))
        with plate("tracts", size):
            theta = sample("theta", Normal(0.0, 1.0))
        phi = sample("phi", dist.ImproperUniform(dist.constraints.real_vector, (), (size,)))
        numpyro.factor("smooth", -0.5 * jnp.sum((phi[one] - phi[two]) ** 2))
        numpyro.factor("sum", Normal(0.0, 0.001 * size).log_prob(jnp.sum(phi)))
        own = jnp.sqrt(1.0 - rho) * theta + jnp.sqrt(rho / scaling) * phi
        with plate("rows", size):
            sample("y", dist.Poisson(jnp.exp(offset + b0 + sigma * own)), obs=y)

    return Problem(model, model, data["y"], ("b0", "sigma", "rho"), ("theta", "phi"))


def drivers(folder: Path) -> Problem:
    """Drivers killed in 192 months: a level that walks, and seasons."""
    data = read(folder, "uk_drivers")
    size = data["n"]

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            s = sample("s", dist.ImproperUniform(dist.constraints.positive_ordered_vector, (), (3,)))
            numpyro.factor("s_prior", jnp.sum(dist.StudentT(4.0, 0.0, 1.0).log_prob(s)))
            beta, lam = sample("beta", Normal(0.0, 10.0)), sample("lambda", Normal(0.0, 10.0))
            level0 = sample("level0", Normal(0.0, 10.0))
            if centered:
                walk = sample("walk", dist.GaussianRandomWalk(s[1], num_steps=size))
            else:
                walk = s[1] * jnp.cumsum(sample("walk_raw", Normal(0.0, 1.0).expand([size]).to_event(1)))
            first = sample("first", Normal(0.0, 1.0).expand([11]).to_event(1))
            raw = sample("season_raw", Normal(0.0, 1.0).expand([size - 11]).to_event(1))

            def step(last: Any, n: Any) -> tuple[Any, Any]:
                new = -jnp.sum(last) + s[0] * n
                return jnp.concatenate([last[1:], new[None]]), new

            season = jnp.concatenate([first, lax.scan(step, first, raw)[1]])
            numpyro.deterministic("level", level0 + walk)
            numpyro.deterministic("season", season)
            mean = level0 + walk + season + beta * data["x"] + lam * data["w"]
            with plate("months", size):
                sample("y", Normal(mean, s[2]), obs=y)

        return model

    return Problem(made(centered=True), made(centered=False), data["y"], ("s", "beta", "lambda"), ("level", "season"))


SIMULATED: dict[str, Callable[[], Problem]] = {
    "counts_400": lambda: counts(400, 0.5),
    "counts_400_narrow": lambda: counts(400, 0.05),
    "counts_400_wide": lambda: counts(400, 2.0),
    "counts_400_not_centred": lambda: counts(400, 0.5, centered=False),
    "counts_3000": lambda: counts(3_000, 0.5),
    "intercepts_400": lambda: intercepts(400, centered=True),
    "intercepts_400_not_centred": lambda: intercepts(400, centered=False),
    "correlated_200": lambda: correlated(200),
    "poisson_300": lambda: poisson(300),
    "gammas_300": lambda: gammas(300),
    "betas_300": lambda: betas(300),
    "horseshoe_200": lambda: horseshoe(200),
    "hilbert_50": lambda: hilbert(50),
    "volatility_1000": lambda: volatility(1_000),
    "trend_250": lambda: trend(250),
}
REAL: dict[str, Callable[[Path], Problem]] = {
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
