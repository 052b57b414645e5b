"""Does the default ever give a wrong mode a good verdict? Twenty seeds on models with several.

python benchmarks/wrong_modes.py --data FOLDER [--seeds 20] [--models hmm lotka]

For each fit: the largest error of a mean, in reference deviations, and the verdict. A fit with an
error above 0.5 and the verdict "good" would be a silent wrong mode. References are the folder's; the
Lotka-Volterra model's, whose data are simulated here, is NUTS begun at the truth.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import arviz as az
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer import MCMC, NUTS, init_to_value
from posterior_models import Problem, load

import vi_reparam_numpyro as vr

RESULTS = Path(__file__).parent / "results" / "wrong_modes.json"
WRONG = 0.5
TRUTH = {"rates": np.array([0.55, 0.028, 0.80, 0.024]), "start": np.array([30.0, 5.0]), "noise": np.array([0.2, 0.2])}
YEARS = np.arange(21.0)
SUBSTEPS = 10


def paths(rates: Any, start: Any) -> Any:
    """Prey and predators at `YEARS`, by Runge-Kutta steps in log populations. Shape ``[21, 2]``."""
    birth, eaten, death, fed = rates

    def slope(u: Any) -> Any:
        prey, predators = jnp.exp(u)
        return jnp.stack([birth - eaten * predators, fed * prey - death])

    def year(u: Any, _: Any) -> Any:
        def substep(_: Any, u: Any) -> Any:
            h = 1.0 / SUBSTEPS
            k1 = slope(u)
            k2 = slope(u + 0.5 * h * k1)
            k3 = slope(u + 0.5 * h * k2)
            return u + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + slope(u + h * k3))

        after = lax.fori_loop(0, SUBSTEPS, substep, u)
        return after, after

    first = jnp.log(start)
    _, rest = lax.scan(year, first, None, length=len(YEARS) - 1)
    return jnp.exp(jnp.concatenate([first[None], rest]))


def lotka_volterra(y):
    rates = numpyro.sample(
        "rates",
        dist.TruncatedNormal(jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05] * 2), low=0.0).to_event(1),
    )
    start = numpyro.sample("start", dist.LogNormal(jnp.log(10.0), 1.0).expand([2]).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.LogNormal(jnp.log(paths(rates, start)), noise).to_event(2), obs=y)


def simulated() -> Problem:
    """Lotka-Volterra on simulated data, with its reference posterior."""
    noise = np.random.default_rng(3).normal(size=(len(YEARS), 2))
    y = np.asarray(paths(TRUTH["rates"], TRUTH["start"])) * np.exp(TRUTH["noise"] * noise)

    def columns(draws: dict[str, Any]) -> np.ndarray:
        return np.concatenate([np.asarray(draws[name]) for name in TRUTH], axis=-1)

    kernel = NUTS(lotka_volterra, init_strategy=init_to_value(values=TRUTH))
    sampler = MCMC(
        kernel, num_warmup=1_000, num_samples=4_000, num_chains=2, progress_bar=False, chain_method="sequential"
    )
    sampler.run(random.key(0), y)
    whole = az.summary(az.from_numpyro(sampler))
    assert float(whole["r_hat"].max()) < 1.01, whole
    values = columns(sampler.get_samples())
    return Problem("lotka_volterra", lotka_volterra, {"y": y}, columns, np.nan, values.mean(0), values.std(0))


def study(problem: Problem, num_seeds: int) -> list[dict[str, Any]]:
    guided = vr.guide(problem.model)
    rows = []
    for seed in range(num_seeds):
        begun = time.perf_counter()
        posterior = guided.fit(seed=seed, progress=False, **problem.data)
        values = problem.columns(posterior.draws(10_000, seed=seed))
        error = float(np.max(np.abs(values.mean(0) - problem.mean) / problem.sd))
        verdict = posterior.verdict
        row = {
            "model": problem.name,
            "seed": seed,
            "error": round(error, 3),
            "grade": verdict.grade,
            "silent": bool(error > WRONG and verdict.grade == "good"),
            "khat": round(float(verdict.figures.khat), 3),
            "elbo": round(float(verdict.figures.elbo), 3),
            "kept": posterior.record["family"],
            "rivals": [round(float(x), 2) for x in verdict.figures.rivals],
            "seconds": round(time.perf_counter() - begun, 1),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the ten posteriors as JSON files")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--models", nargs="*", default=["hmm", "low_dim", "lotka"], help="parts of names")
    options = parser.parse_args()
    numpyro.enable_x64()
    chosen = [p for p in load(options.data) if any(part in p.name for part in options.models)]
    if any(part in "lotka_volterra" for part in options.models):
        chosen.append(simulated())
    kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for problem in chosen:
        rows = study(problem, options.seeds)
        kept = [r for r in kept if r["model"] != problem.name] + rows
        RESULTS.write_text(json.dumps({"command": "python benchmarks/wrong_modes.py", "rows": kept}, indent=1))
    for model in dict.fromkeys(r["model"] for r in kept):
        own = [r for r in kept if r["model"] == model]
        wrong = [r for r in own if r["error"] > WRONG]
        silent = sum(r["silent"] for r in own)
        print(f"{model}: {len(own)} fits, {len(wrong)} with an error above {WRONG}, of these {silent} called good")


if __name__ == "__main__":
    main()
