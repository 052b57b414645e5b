"""What follows a fit: refined draws beside NUTS, the log evidence, weighted means, control variates, calibration.

python benchmarks/trust.py --data FOLDER [--models garch eight] [--parts posteriors regressions calibration]

`posteriors`: of the default fit of ten posteriors with known means and evidence: the log evidence and its error, the
largest error of a mean after `expectation(weighted=True)`, and of the draws of `refine` that of a mean, in reference
sds, and of a log sd, with R-hat; seconds and CPU seconds of `refine`, and of NumPyro's NUTS (1,000 and 1,000).
`regressions`: five with conjugate priors, whose evidence has a closed form (two of Radiata pine, Williams 1959, priors
about Friel and Pettitt's of 2008): the log evidence, and the variance of means by control variates, as part of that by
weights alone. `calibration`: of an exact family and of a narrow one, and seconds of 200 fits as a multiple of one's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from posterior_models import Problem, load
from scipy.special import gammaln

import vi_reparam_numpyro as vr

RESULTS = Path(__file__).parent / "results" / "trust.json"
COMMAND = "python benchmarks/trust.py --data FOLDER"
NUM_DRAWS = 4_000

PINE = """
3040 2470 3610 3480 3810 2330 1800 3110 3160 2310 4360 1880 3670 1740 2250 2650 4970 2620 2900 1670 2540
3840 3800 4600 1900 2530 2920 4990 1670 3310 3450 3600 2850 1590 3770 3850 2480 3570 2620 1890 3030 3030
29.2 24.7 32.3 31.3 31.5 24.5 19.9 27.3 27.1 24.0 33.8 21.5 32.2 22.5 27.5 25.6 34.5 26.2 26.7 21.1 24.1
30.7 32.7 32.6 22.1 25.3 30.8 38.9 22.1 29.2 30.1 31.4 26.7 22.1 30.3 32.0 23.2 30.3 29.9 20.8 33.2 28.2
25.4 22.2 32.2 31.0 30.9 23.9 19.2 27.2 26.3 23.9 33.2 21.0 29.0 22.0 23.8 25.3 34.2 25.7 26.4 20.0 23.9
30.7 32.6 32.5 20.8 23.1 29.8 38.1 21.3 28.5 29.2 31.4 25.9 21.4 29.8 30.6 22.6 30.3 23.8 18.4 29.4 28.2
"""
"""Strength of 42 specimens, then their density, then that adjusted for resin."""


class Clock:
    """Seconds, and CPU seconds, since it was made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def read(self, name: str) -> dict[str, float]:
        now = time.perf_counter(), time.process_time()
        wall, cpu = (b - a for a, b in zip(self._begun, now, strict=True))
        return {f"{name}_seconds": round(wall, 1), f"{name}_cpu": round(cpu, 1)}


def errors(problem: Problem, draws: dict[str, Any]) -> dict[str, float]:
    values = problem.columns(draws)
    mean, sd = values.mean(0), values.std(0)
    return {
        "mean": round(float(np.max(np.abs(mean - problem.mean) / problem.sd)), 4),
        "log_sd": round(float(np.max(np.abs(np.log(sd / problem.sd)))), 4),
    }


def of_posterior(problem: Problem) -> dict[str, Any]:
    clock = Clock()
    posterior = vr.guide(problem.model).fit(progress=False, **problem.data)
    row: dict[str, Any] = {"model": problem.name, "kept": posterior.record["family"], **clock.read("fit")}
    row |= {"grade": posterior.verdict.grade, "khat": round(posterior.khat, 3)}
    value, error = posterior.log_evidence()
    row |= {"evidence_off": round(value - problem.log_evidence, 4), "evidence_error": round(error, 4)}
    mean, _ = posterior.expectation(lambda draw: draw, weighted=True)
    columns = problem.columns({name: np.asarray(x)[None] for name, x in mean.items()})[0]
    row["expectation"] = round(float(np.max(np.abs(columns - problem.mean) / problem.sd)), 4)
    clock = Clock()
    refined = posterior.refine(NUM_DRAWS, progress=False)
    about = refined.record["refined"]
    row |= {f"refined_{k}": v for k, v in errors(problem, refined.draws(20_000)).items()}
    row |= {"rhat": round(about["rhat"], 4), "effective": round(about["effective_draws"]), **clock.read("refine")}
    clock = Clock()
    nuts = MCMC(NUTS(problem.model), num_warmup=1_000, num_samples=1_000, progress_bar=False)
    nuts.run(jax.random.key(0), **problem.data)
    row |= clock.read("nuts")
    return row | {f"nuts_{k}": v for k, v in errors(problem, nuts.get_samples()).items()}


def conjugate(x: Any, y: Any, center: Any, precision: Any, shape: float, rate: float) -> float:
    """Log evidence: b ~ Normal(center, 1 / (tau precision)), tau ~ Gamma(shape, rate), y ~ Normal(x b, 1 / tau)."""
    precision = np.diag(precision)
    whole = x.T @ x + precision
    b = np.linalg.solve(whole, x.T @ y + precision @ center)
    left = 0.5 * (y @ y + center @ precision @ center - b @ whole @ b)
    last, num = shape + 0.5 * len(y), len(y)
    volumes = 0.5 * (np.linalg.slogdet(precision)[1] - np.linalg.slogdet(whole)[1])
    scale = shape * math.log(rate) - last * math.log(rate + left)
    return float(volumes + scale + gammaln(last) - gammaln(shape) - 0.5 * num * math.log(2.0 * math.pi))


def regressions() -> dict[str, tuple[Any, ...]]:
    """Design, data, and the prior's center, precision, shape and rate, by name."""
    strength, density, adjusted = np.array(PINE.split(), float).reshape(3, 42)
    found: dict[str, tuple[Any, ...]] = {}
    for name, column in (("pine, density", density), ("pine, adjusted", adjusted)):
        x = np.column_stack([np.ones(42), column - column.mean()])
        found[name] = x, strength, np.array([3000.0, 185.0]), np.array([0.06, 6.0]), 3.0, 2.0 * 300.0**2
    for name, size, num, related in (("two", 2, 30, 0.0), ("five, related", 5, 60, 0.9), ("ten", 10, 100, 0.5)):
        rng = np.random.default_rng(size)
        x = math.sqrt(1.0 - related) * rng.normal(size=(num, size)) + math.sqrt(related) * rng.normal(size=(num, 1))
        y = x @ rng.normal(size=size) + rng.normal(size=num)
        found[name] = x, y, np.zeros(size), np.full(size, 0.5), 2.0, 2.0
    return found


def line(x: Any, center: Any, precision: Any, shape: float, rate: float, y: Any = None) -> None:
    tau = numpyro.sample("tau", dist.Gamma(shape, rate))
    b = numpyro.sample("b", dist.Normal(center, 1.0 / jnp.sqrt(tau * precision)).to_event(1))
    numpyro.sample("y", dist.Normal(x @ b, 1.0 / jnp.sqrt(tau)).to_event(1), obs=y)


def of_regression(name: str, x: Any, y: Any, *prior: Any) -> dict[str, Any]:
    guided = vr.guide(line)
    posterior = guided.fit(x, *prior, y=y, progress=False)
    value, error = posterior.log_evidence()
    exact = conjugate(x, y, *prior)
    row = {"regression": name, "kept": posterior.record["family"], "log_evidence": round(exact, 4)}
    row |= {"evidence_off": round(value - exact, 5), "evidence_error": round(error, 5)}

    def means(draw: dict[str, Any]) -> Any:
        return draw

    plain, controlled = (posterior.expectation(means, weighted=True, control=c)[1] for c in (False, True))
    parts = [np.ravel((np.asarray(controlled[n]) / np.asarray(plain[n])) ** 2) for n in ("b", "tau")]
    return row | {"variance_left": round(float(np.max(np.concatenate(parts))), 6)}


def calibration() -> list[dict[str, Any]]:
    x = np.column_stack([np.ones(8), 2.0 + np.linspace(0.0, 1.0, 8)])

    def coefficients(x: Any, y: Any = None) -> None:
        b = numpyro.sample("b", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(x @ b, 1.0).to_event(1), obs=y)

    rows = []
    for family in (vr.FullRank(), vr.MeanField()):
        guided, data = vr.guide(family)(coefficients), {"y": np.arange(8.0)}
        clock = Clock()
        guided.fit(x, progress=False, **data).draws(1)
        one = clock.read("one")
        clock = Clock()
        found = vr.calibrate(guided, x, num_fits=200, progress=False, **data)
        row = {"family": repr(family), **one, **clock.read("all"), "calibrated": found.is_calibrated}
        row["times"] = round(row["all_seconds"] / row["one_seconds"], 1)
        rows.append(row | {"least_ks": float(f"{min(r.ks for r in found):.3g}")})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the ten posteriors as JSON files")
    parser.add_argument("--models", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--parts", nargs="*", default=["regressions", "calibration", "posteriors"])
    options = parser.parse_args()
    numpyro.enable_x64()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}

    def keep(part: str, row: dict[str, Any], key: str) -> None:
        print(json.dumps(row), flush=True)
        known[part] = [*(r for r in known.get(part, []) if r[key] != row[key]), row]
        RESULTS.write_text(json.dumps({"command": COMMAND, **known}, indent=1) + "\n")

    if "regressions" in options.parts:
        for name, given in regressions().items():
            keep("regressions", of_regression(name, *given), "regression")
    if "calibration" in options.parts:
        for row in calibration():
            keep("calibration", row, "family")
    if "posteriors" in options.parts and options.data:
        for problem in load(options.data):
            if any(part in problem.name for part in options.models):
                keep("posteriors", of_posterior(problem), "model")


if __name__ == "__main__":
    main()
