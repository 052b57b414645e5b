"""Hierarchies by the default guide against NUTS: hyperparameters, locals, seconds.

python benchmarks/hierarchies.py [--data FOLDER] [--only NAME ...] [--references FOLDER] [--pyro]

For each model: the largest error of a hyperparameter's mean in NUTS's standard deviations, the ratios of the standard
deviations, the same of the locals, and seconds of both, compilation included. NUTS: two chains of 2,000 draws after
1,000. `--data` is a folder with data of posteriordb (the names are in hierarchy_models.py); without it the simulated
models run alone. `--references` keeps NUTS's draws. `--pyro`: the same models in Pyro, against NumPyro's NUTS.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpyro
from hierarchy_models import REAL, SIMULATED, Problem
from jax import random
from numpyro.diagnostics import split_gelman_rubin
from numpyro.infer import MCMC, NUTS

import vi_reparam_numpyro as vr_numpyro

RESULTS = Path(__file__).parent / "results" / "hierarchies.json"


def by_nuts(problem: Problem) -> tuple[dict[str, np.ndarray], float, float]:
    """Draws by site, the largest R-hat of a hyperparameter, seconds."""
    begun = time.perf_counter()
    kernel = NUTS(problem.nuts_model, target_accept_prob=0.9)
    mcmc = MCMC(
        kernel, num_warmup=1_000, num_samples=2_000, num_chains=2, chain_method="sequential", progress_bar=False
    )
    mcmc.run(random.key(0), problem.y)
    draws = {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    seconds = time.perf_counter() - begun
    rhat = max(float(np.max(split_gelman_rubin(draws[name]))) for name in problem.hyper)
    return {name: value.reshape(-1, *value.shape[2:]) for name, value in draws.items()}, rhat, seconds


def kept(problem: Problem, file: Path | None) -> tuple[dict[str, np.ndarray], float, float]:
    """The same, of a file where it is there."""
    if file is not None and file.exists():
        with np.load(file) as found:
            draws = dict(found)
        return draws, float(draws.pop("_rhat")), float(draws.pop("_seconds"))
    draws, rhat, seconds = by_nuts(problem)
    own = {name: draws[name] for name in (*problem.hyper, *problem.local)}
    if file is not None:
        np.savez(file, _rhat=rhat, _seconds=seconds, **own)
    return own, rhat, seconds


def row_of(made: Callable[[Any], Problem], file: Path | None, vr: Any) -> dict[str, Any]:
    """One line of the table; the model is made of a backend's host."""
    reference, rhat, nuts_seconds = kept(made(vr_numpyro.host), file)
    problem = made(vr.host)
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
    parser.add_argument("--references", type=Path)
    parser.add_argument("--pyro", action="store_true")
    options = parser.parse_args()
    numpyro.enable_x64()
    vr = vr_numpyro
    if options.pyro:
        vr = importlib.import_module("vi_reparam_pyro")
        importlib.import_module("torch").set_default_dtype(importlib.import_module("torch").float64)
    problems = dict(SIMULATED)
    if options.data is None:
        print("without --data FOLDER: the simulated models alone")
    else:
        problems |= {name: lambda host, made=made: made(host, options.data) for name, made in REAL.items()}
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.only or problems:
        file = options.references and options.references / f"{name}.npz"
        key = f"{name}/pyro" if options.pyro else name
        rows[key] = row_of(problems[name], file, vr)
        print(key, json.dumps(rows[key]), flush=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
