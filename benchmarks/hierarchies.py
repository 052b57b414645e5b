"""Hierarchies by the default guide against NUTS: hyperparameters, locals, seconds.

python benchmarks/hierarchies.py [--data FOLDER] [--only NAME ...]

For each model: the largest error of a hyperparameter's mean in NUTS's standard deviations, the ratios of the standard
deviations, the same of the locals, and seconds of both, compilation included. NUTS: two chains of 2,000 draws after
1,000. `--data` is a folder with radon_mn.json, radon_all.json and rats_data.json of posteriordb; without it the
simulated models run alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.diagnostics import split_gelman_rubin
from numpyro.infer import MCMC, NUTS

import vi_reparam_numpyro as vr

RESULTS = Path(__file__).parent / "results" / "hierarchies.json"
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


def counts(num: int, spread: float) -> Problem:
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

    return Problem(made(centered=True), made(centered=spread > 0.1), y, ("mu", "tau"), ("theta",))


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


def radon_slopes(folder: Path) -> Problem:
    """Radon in 919 houses of 85 counties, an intercept and a slope each."""
    data = json.loads((folder / "radon_mn.json").read_text())
    county, floor = np.array(data["county_idx"]) - 1, np.array(data["floor_measure"], float)

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
    return Problem(made(centered=True), made(centered=False), np.array(data["log_radon"]), hyper, ("alpha", "beta"))


def radon_states(folder: Path) -> Problem:
    """Radon in 12,573 houses of 386 counties, an intercept each and two common slopes."""
    data = json.loads((folder / "radon_all.json").read_text())
    county, floor = np.array(data["county_idx"]) - 1, np.array(data["floor_measure"], float)
    uranium = np.array(data["log_uppm"])

    def made(*, centered: bool) -> Callable[..., Any]:
        def model(y: Any) -> None:
            b = sample("b", Normal(0.0, 10.0).expand([2]).to_event(1))
            mu, tau = sample("mu", Normal(0.0, 10.0)), sample("tau", dist.HalfNormal(1.0))
            sigma = sample("sigma", dist.HalfNormal(1.0))
            alpha = effects("alpha", data["J"], mu, tau, centered=centered)
            with plate("rows", len(y)):
                sample("y", Normal(alpha[county] + b[0] * uranium + b[1] * floor, sigma), obs=y)

        return model

    y = np.array(data["log_radon"])
    return Problem(made(centered=True), made(centered=False), y, ("b", "mu", "tau", "sigma"), ("alpha",))


SIMULATED: dict[str, Callable[[], Problem]] = {
    "counts_400": lambda: counts(400, 0.5),
    "counts_400_narrow": lambda: counts(400, 0.05),
    "counts_3000": lambda: counts(3_000, 0.5),
    "intercepts_400": lambda: intercepts(400, centered=True),
    "intercepts_400_not_centred": lambda: intercepts(400, centered=False),
}
REAL: dict[str, Callable[[Path], Problem]] = {"radon_mn": radon_slopes, "radon_all": radon_states}


def by_nuts(problem: Problem) -> tuple[dict[str, np.ndarray], float, float]:
    """Draws by site, the largest R-hat of a hyperparameter, seconds."""
    begun = time.perf_counter()
    kernel = NUTS(problem.nuts_model, target_accept_prob=0.9)
    mcmc = MCMC(kernel, num_warmup=1_000, num_samples=2_000, num_chains=2, chain_method="sequential")
    mcmc.run(random.key(0), problem.y)
    draws = {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    seconds = time.perf_counter() - begun
    rhat = max(float(np.max(split_gelman_rubin(draws[name]))) for name in problem.hyper)
    return {name: value.reshape(-1, *value.shape[2:]) for name, value in draws.items()}, rhat, seconds


def row_of(problem: Problem) -> dict[str, Any]:
    """One line of the table."""
    reference, rhat, nuts_seconds = by_nuts(problem)
    begun = time.perf_counter()
    posterior = vr.guide(problem.model).fit(problem.y, progress=False)
    seconds = time.perf_counter() - begun
    draws = posterior.draws(4_000, seed=1)
    row: dict[str, Any] = {"family": posterior.record["family"], "grade": posterior.verdict.grade}
    row |= {"khat": posterior.khat, "seconds": seconds, "nuts_seconds": nuts_seconds, "nuts_rhat": rhat}
    for kind, names in (("hyper", problem.hyper), ("local", problem.local)):
        ours, theirs = ([np.asarray(of[n]) for n in names] for of in (draws, reference))
        pairs = list(zip(ours, theirs, strict=True))
        row[f"{kind}_mean_error"] = max(float(np.max(np.abs(a.mean(0) - b.mean(0)) / b.std(0))) for a, b in pairs)
        ratios = np.concatenate([np.ravel(a.std(0) / b.std(0)) for a, b in pairs])
        row[f"{kind}_sd_ratios"] = [float(ratios.min()), float(ratios.max())]
    return row


def main() -> None:
    """Run, print, and write `RESULTS`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    numpyro.enable_x64()
    problems = dict(SIMULATED)
    if options.data is None:
        print("without --data FOLDER: the simulated models alone")
    else:
        problems |= {name: lambda made=made: made(options.data) for name, made in REAL.items()}
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.only or problems:
        rows[name] = row_of(problems[name]())
        print(name, json.dumps(rows[name]), flush=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
