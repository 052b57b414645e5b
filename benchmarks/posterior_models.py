"""Ten posteriors of posteriordb as NumPyro models: densities as in their Stan programs, flat priors kept flat."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jax.nn import logsumexp
from numpyro.distributions import constraints


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model with its data and what is known of its posterior.

    Attributes:
        columns: takes draws by site to an array whose columns are the reference's parameters.
    """

    name: str
    model: Callable[..., Any]
    data: dict[str, Any]
    columns: Callable[[dict[str, Any]], np.ndarray]
    log_evidence: float
    mean: np.ndarray
    sd: np.ndarray


def flat(support: Any, *shape: int) -> dist.Distribution:
    return dist.ImproperUniform(support, (), shape)


def regression(x, y, prior=None, noise=None):
    beta = numpyro.sample("beta", prior or flat(constraints.real_vector, x.shape[1]))
    sigma = numpyro.sample("sigma", noise or flat(constraints.positive))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def kidscore(x, y):
    regression(x, y, noise=dist.HalfCauchy(2.5))


def bayesian_regression(x, y):
    regression(x, y, prior=dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1), noise=dist.HalfNormal(10.0))


def autoregression(lags, y):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([lags.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("time", len(y)):
        numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def centered(y, sigma):
    mu, tau = numpyro.sample("mu", dist.Normal(0.0, 5.0)), numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def noncentered(y, sigma):
    mu, tau = numpyro.sample("mu", dist.Normal(0.0, 5.0)), numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def garch(y, first):
    mu = numpyro.sample("mu", flat(constraints.real))
    alpha0 = numpyro.sample("alpha0", flat(constraints.positive))
    alpha1 = numpyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    share = numpyro.sample("share", dist.Uniform(0.0, 1.0))
    numpyro.factor("volume", jnp.log1p(-alpha1))  # beta1 = share (1 - alpha1), flat as alpha1 is
    beta1 = numpyro.deterministic("beta1", share * (1.0 - alpha1))

    def step(variance, value):
        return alpha0 + alpha1 * (value - mu) ** 2 + beta1 * variance, variance

    _, variances = lax.scan(step, jnp.asarray(first**2), y)
    numpyro.factor("y", dist.Normal(mu, jnp.sqrt(variances)).log_prob(y).sum())


def hidden_markov(y):
    rows = [numpyro.sample(f"theta{k}", dist.Dirichlet(jnp.ones(2))) for k in (1, 2)]
    mu = numpyro.sample("mu", flat(constraints.positive_ordered_vector, 2))
    numpyro.factor("prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum())
    log_transition, emitted = jnp.log(jnp.stack(rows)), dist.Normal(mu, 1.0).log_prob(y[:, None])

    def step(forward, now):
        return logsumexp(forward[:, None] + log_transition, axis=0) + now, None

    forward, _ = lax.scan(step, emitted[0], emitted[1:])
    numpyro.factor("y", logsumexp(forward))


def gaussian_process(x, y):
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))  # a variance
    kernel = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) + sigma * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(0.0, kernel), obs=y)


def mixture(y):
    mu = numpyro.sample("mu", flat(constraints.ordered_vector, 2))
    numpyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = jnp.log(jnp.stack([theta, 1.0 - theta]))
    numpyro.factor("y", logsumexp(weights + dist.Normal(mu, sigma).log_prob(y[:, None]), axis=1).sum())


def load(folder: Path) -> list[Problem]:
    """The problems in a folder of ``<name>.json`` files.

    Raises:
        SystemExit: if one is missing.
    """
    found = []
    for name, (model, arrange, sites) in _TABLE.items():
        path = folder / f"{name}.json"
        if not path.exists():
            raise SystemExit(f"{path} is missing: --data takes the folder of the ten posteriors, as JSON files")
        record = json.loads(path.read_text())
        reference = record["reference"]
        data = {k: jnp.asarray(v) if np.ndim(v) else v for k, v in arrange(record["data"]).items()}
        found.append(
            Problem(
                name,
                model,
                data,
                _columns(sites),
                reference["log_evidence"]["value"],
                np.array(reference["mean"]),
                np.array(reference["sd"]),
            )
        )
    return found


def _columns(sites: str) -> Callable[[dict[str, Any]], np.ndarray]:
    def columns(draws: dict[str, Any]) -> np.ndarray:
        return np.column_stack([np.asarray(draws[s]).reshape(len(draws[s]), -1) for s in sites.split()])

    return columns


def _floats(*names: str) -> Callable[[dict], dict]:
    return lambda d: {n.lower(): np.asarray(d[n], float) for n in names}


def _kidscore(d: dict) -> dict:
    x = np.column_stack([np.ones(d["N"]), d["mom_hs"], d["mom_iq"]])
    return {"x": x, "y": np.asarray(d["kid_score"], float)}


def _earnings(d: dict) -> dict:
    height, male = np.asarray(d["height"], float), np.asarray(d["male"], float)
    return {"x": np.column_stack([np.ones(d["N"]), height, male, height * male]), "y": np.log(d["earn"])}


def _lags(d: dict) -> dict:
    y, k = np.asarray(d["y"], float), d["K"]
    return {"lags": np.column_stack([y[k - 1 - j : len(y) - 1 - j] for j in range(k)]), "y": y[k:]}


def _garch(d: dict) -> dict:
    return {"y": np.asarray(d["y"], float), "first": float(d["sigma1"])}


_TABLE: dict[str, tuple[Callable[..., Any], Callable[[dict], dict], str]] = {
    "eight_schools-eight_schools_centered": (centered, _floats("y", "sigma"), "theta mu tau"),
    "eight_schools-eight_schools_noncentered": (noncentered, _floats("y", "sigma"), "theta mu tau"),
    "kidiq-kidscore_momhsiq": (kidscore, _kidscore, "beta sigma"),
    "earnings-logearn_interaction": (regression, _earnings, "beta sigma"),
    "sblrc-blr": (bayesian_regression, _floats("X", "y"), "beta sigma"),
    "arK-arK": (autoregression, _lags, "alpha beta sigma"),
    "garch-garch11": (garch, _garch, "mu alpha0 alpha1 beta1"),
    "hmm_example-hmm_example": (hidden_markov, _floats("y"), "theta1 theta2 mu"),
    "gp_pois_regr-gp_regr": (gaussian_process, _floats("x", "y"), "rho alpha sigma"),
    "low_dim_gauss_mix-low_dim_gauss_mix": (mixture, _floats("y"), "mu sigma theta"),
}
"""Name -> model, what makes its arguments of the data, and the sites in the reference's order."""

jax.config.update("jax_enable_x64", True)
