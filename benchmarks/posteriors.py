"""Ten posteriors with known means, deviations and evidence: our families, NumPyro's guides, and NUTS.

python benchmarks/posteriors.py --data FOLDER [--seeds 5] [--only default NUTS] [--models eight garch]

For each: log evidence minus ELBO, the largest error of a mean (in reference deviations), the largest
error of a log deviation, k-hat of 40,000 draws, seconds with compilation, and gradients of log p.
NUTS is given 1,000 warm-up steps, and as many draws as 1,000 effective ones take.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz as az
import jax
import numpy as np
import optax
from jax import random
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, autoguide
from posterior_models import Problem, load

import vi_reparam_numpyro as vr

RESULTS = Path(__file__).parent / "results" / "posteriors.json"
NUM_DRAWS = 40_000
NUM_EFFECTIVE = 1_000
STOCK_STEPS, STOCK_PARTICLES = 8_000, 8

OURS: dict[str, Any] = {
    "default": vr.Escalate(),
    "MeanField": vr.MeanField(),
    "FullRank": vr.FullRank(),
    "LowRank": vr.LowRank(rank=2),
    "Flow": vr.Flow(),
    "Flow(coupling)": vr.Flow(kind="coupling"),
    "Flow(spline_coupling)": vr.Flow(kind="spline_coupling"),
}
STOCK: dict[str, Callable[[Any], Any]] = {
    "AutoNormal": lambda m: autoguide.AutoNormal(m),
    "AutoMultivariateNormal": lambda m: autoguide.AutoMultivariateNormal(m),
    "AutoIAFNormal": lambda m: autoguide.AutoIAFNormal(m, num_flows=3, hidden_dims=[32, 32]),
}


def figures(problem: Problem, draws: dict[str, Any], log_weights: np.ndarray | None) -> dict[str, float]:
    values = problem.columns(draws)
    mean, sd = values.mean(0), values.std(0)
    found = {
        "mean_error": float(np.max(np.abs(mean - problem.mean) / problem.sd)),
        "log_sd_error": float(np.max(np.abs(np.log(sd / problem.sd)))),
    }
    if log_weights is not None:
        found["gap"] = float(problem.log_evidence - log_weights.mean())
        found["khat"] = float(az.psislw(log_weights)[1])
    return found


def ours(problem: Problem, family: Any, seed: int) -> dict[str, Any]:
    begun = time.perf_counter()
    posterior = vr.guide(family)(problem.model).fit(seed=seed, progress=False, **problem.data)
    seconds = time.perf_counter() - begun
    draws, log_weights = posterior.draws(NUM_DRAWS, seed=1_000 + seed, with_weights=True)
    gradients = sum(a["gradients"] for a in posterior.tried) or posterior.record["gradients"]
    kept = posterior.record["family"].split("(")[0]
    more = {"seconds": seconds, "gradients": gradients, "kept": kept, "grade": posterior.verdict.grade}
    return {**figures(problem, draws, log_weights), **more, "why": posterior.why}


def stock(problem: Problem, make: Callable[[Any], Any], seed: int) -> dict[str, Any]:
    """NumPyro's guide by Adam, its rate falling over the second half, scored by its own trace."""
    begun = time.perf_counter()
    guide = make(problem.model)
    rate = optax.join_schedules(
        [optax.constant_schedule(0.01), optax.exponential_decay(0.01, STOCK_STEPS // 2, 0.01)], [STOCK_STEPS // 2]
    )
    svi = SVI(problem.model, guide, optax.adam(rate), Trace_ELBO(num_particles=STOCK_PARTICLES))
    result = svi.run(random.key(seed), STOCK_STEPS, progress_bar=False, stable_update=True, **problem.data)
    jax.block_until_ready(result.losses)
    seconds = time.perf_counter() - begun
    posterior = vr.Posterior(
        vr.Guided(problem.model, guide),
        result.params,
        args=(),
        kwargs=problem.data,
        losses=np.asarray(result.losses),
        seed=seed,
        record={},
    )
    draws, log_weights = posterior.draws(NUM_DRAWS, seed=1_000 + seed, with_weights=True)
    gradients = STOCK_STEPS * STOCK_PARTICLES
    return {**figures(problem, draws, log_weights), "seconds": seconds, "gradients": gradients}


def nuts(problem: Problem, seed: int) -> dict[str, Any]:
    begun = time.perf_counter()
    sampler = MCMC(NUTS(problem.model), num_warmup=1_000, num_samples=1_000, progress_bar=False)
    sampler.warmup(random.key(seed), extra_fields=("num_steps",), collect_warmup=True, **problem.data)
    warm = int(np.sum(sampler.get_extra_fields()["num_steps"]))
    draws, steps, effective = None, 0, 0.0
    while effective < NUM_EFFECTIVE and (draws is None or len(draws) < 64_000):
        sampler.run(random.key(seed + 1 + steps), extra_fields=("num_steps",), **problem.data)
        steps += int(np.sum(sampler.get_extra_fields()["num_steps"]))
        new = problem.columns(jax.tree.map(np.asarray, sampler.get_samples()))
        draws = new if draws is None else np.concatenate([draws, new])
        sampler.post_warmup_state = sampler.last_state
        effective = float(min(az.ess(draws[None, :, j]) for j in range(draws.shape[1])))
    seconds = time.perf_counter() - begun
    mean, sd = draws.mean(0), draws.std(0)
    return {
        "mean_error": float(np.max(np.abs(mean - problem.mean) / problem.sd)),
        "log_sd_error": float(np.max(np.abs(np.log(sd / problem.sd)))),
        "seconds": seconds,
        "gradients": warm + steps,
        "effective": effective,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the ten posteriors as JSON files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="methods, such as default FullRank NUTS")
    parser.add_argument("--models", nargs="*", default=[""], help="parts of names")
    options = parser.parse_args()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    methods = options.only or ["default", "NUTS", *list(OURS)[1:], *STOCK]
    for problem in load(options.data):
        if not any(part in problem.name for part in options.models):
            continue
        for method in methods:
            for seed in range(options.seeds):
                jax.clear_caches()  # each pays for its own compilation
                if method in OURS:
                    row = ours(problem, OURS[method], seed)
                else:
                    row = nuts(problem, seed) if method == "NUTS" else stock(problem, STOCK[method], seed)
                row = {"model": problem.name, "method": method, "seed": seed, **row}
                print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
                same = (row["model"], row["method"], row["seed"])
                rows = [r for r in rows if (r["model"], r["method"], r["seed"]) != same] + [row]
                RESULTS.write_text(json.dumps({"command": "python benchmarks/posteriors.py", "rows": rows}, indent=1))
    table(rows)
    picture(rows)


def table(rows: list[dict[str, Any]]) -> None:
    """Medians over the seeds."""
    head = f"{'model':30s} {'method':22s} {'gap':>8s} {'mean':>6s} {'log sd':>6s} {'k-hat':>6s} {'s':>6s}"
    print(f"{head} {'gradients':>10s}")
    for model in dict.fromkeys(r["model"] for r in rows):
        for method in dict.fromkeys(r["method"] for r in rows):
            own = [r for r in rows if (r["model"], r["method"]) == (model, method)]
            if own:
                values = [
                    np.median([r.get(k, np.nan) for r in own])
                    for k in ("gap", "mean_error", "log_sd_error", "khat", "seconds", "gradients")
                ]
                print(
                    f"{model.split('-')[-1][:30]:30s} {method:22s} {values[0]:8.3f} {values[1]:6.3f} {values[2]:6.3f} "
                    f"{values[3]:6.2f} {values[4]:6.1f} {values[5]:10,.0f}"
                )


def picture(rows: list[dict[str, Any]]) -> None:
    """Gap to the evidence against seconds, a panel a posterior."""
    import matplotlib.pyplot as plt

    models, methods = dict.fromkeys(r["model"] for r in rows), list(dict.fromkeys(r["method"] for r in rows))
    figure, axes = plt.subplots(2, 5, figsize=(17, 7), sharey=True, layout="constrained")
    for ax, model in zip(axes.flat, models, strict=False):
        for i, method in enumerate(methods):
            own = [r for r in rows if (r["model"], r["method"]) == (model, method) and "gap" in r]
            if own:
                gaps = np.clip([r["gap"] for r in own], 1e-3, None)
                ax.scatter([r["seconds"] for r in own], gaps, s=16, color=f"C{i}", label=method)
        ax.set(title=model.split("-")[-1], xscale="log", yscale="log", xlabel="seconds")
        ax.axhline(0.05, color="0.7", lw=0.8)
    axes[0, 0].set_ylabel("log evidence minus ELBO, nats")
    axes[1, 0].set_ylabel("log evidence minus ELBO, nats")
    handles = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(RESULTS.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
