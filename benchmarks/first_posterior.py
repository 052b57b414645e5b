"""From an empty process to a posterior: the default guide against NUTS and NumPyro's guides, a fresh process each.

python benchmarks/first_posterior.py --data FOLDER [--models eight garch] [--only default NUTS] [--repeats 3] [--warm]

For each: seconds of import, tracing (one within another counts twice), lowering, compilation and the rest; CPU seconds
of all threads, which other processes on the machine change less; programs that were compiled; gradients of log p in
the steps (NUTS: for 1,000 effective draws of the worst parameter too; the search's Newton steps are not among them).
``--warm`` runs each row twice more with `vr.cache()`, and keeps the second.
Without ``--data`` only the ready models are fitted. ``--pyro``: those and the default in Pyro.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "first_posterior.json"
COMMAND = "python benchmarks/first_posterior.py --data FOLDER"
METHODS = ("default", "NUTS", "AutoNormal", "AutoMultivariateNormal")
STEPS = 3_000
"""Of NumPyro's guides."""

READY: dict[str, dict[str, Any]] = {"eight_schools": {}, "breast_cancer": {}, "gamma_poisson": {}, "digits": {}}
DIGITS_STEPS = 800
PHASES = {"trace": "jaxpr_trace", "lower": "jaxpr_to_mlir_module", "compile": "backend_compile"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the ten posteriors as JSON files")
    parser.add_argument("--models", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--only", nargs="*", default=METHODS, help="methods")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warm", action="store_true", help="also with a cache that an earlier process filled")
    parser.add_argument("--pyro", action="store_true")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)  # model, method, seed: this process is one row
    options = parser.parse_args()
    if options.row:
        name, method, seed = options.row
        print(json.dumps(row(name, method, int(seed), options.data, options.pyro)))
        return
    posteriors = sorted(path.stem for path in options.data.glob("*-*.json")) if options.data else []
    models = [m for m in (*([] if options.pyro else posteriors), *READY) if any(part in m for part in options.models)]
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for repeat in range(options.repeats):
        for model in models:
            for method in ("default",) if options.pyro else options.only:
                if method != "default" and model == "digits":
                    continue
                for found in measured(model, method, repeat, options):
                    same = ("model", "method", "backend", "cache", "repeat")
                    rows = [r for r in rows if any(r[k] != found[k] for k in same)] + [found]
                    print(json.dumps(found), flush=True)
                    text = json.dumps({"command": COMMAND, "rows": rows}, indent=1)
                    RESULTS.write_text(text + "\n")
    table(rows)


def measured(model: str, method: str, repeat: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row, or two with a cache: each of a process of its own."""
    command = [sys.executable, __file__, "--row", model, method, "0", *(["--pyro"] if options.pyro else [])]
    command += ["--data", str(options.data)] if options.data else []
    backend = "pyro" if options.pyro else "numpyro"

    def run(cache: str) -> dict[str, Any]:
        out = subprocess.run(command, env={**os.environ, "VI_REPARAM_CACHE": cache}, stdout=subprocess.PIPE, check=True)
        return json.loads(out.stdout.decode().splitlines()[-1])

    about = {"model": model, "method": method, "backend": backend, "repeat": repeat}
    found = [{**about, "cache": "cold", **run("0")}]
    if options.warm:
        with tempfile.TemporaryDirectory() as folder:
            run(folder)
            found.append({**about, "cache": "warm", **run(folder)})
    return found


def row(name: str, method: str, seed: int, data: Path | None, in_pyro: bool) -> dict[str, Any]:
    """What one fit takes in this process, which did nothing before."""
    begun = time.perf_counter()
    vr: Any = importlib.import_module(f"vi_reparam_{'pyro' if in_pyro else 'numpyro'}")
    events: dict[str, list[float]] = collections.defaultdict(list)
    if in_pyro:
        importlib.import_module("torch").set_default_dtype(importlib.import_module("torch").float64)
    else:
        importlib.import_module("numpyro").enable_x64()
        monitoring = importlib.import_module("jax").monitoring
        monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: events[event].append(seconds))
    imported = time.perf_counter() - begun
    if data is not None and "-" in name:
        problem = next(p for p in importlib.import_module("posterior_models").load(data) if p.name == name)
        model, args, kwargs = problem.model, (), problem.data
    else:
        ready = importlib.import_module("vi_reparam_models").get(
            name, **READY[name], **({"batch_size": 128} if name == "digits" else {})
        )
        model, (args, kwargs) = ready.model(vr.host), ready.data()
    events.clear()
    begun, cpu = time.perf_counter(), cpu_seconds()
    found = fit(vr, model, args, kwargs, name, method, seed)
    seconds, cpu = time.perf_counter() - begun, cpu_seconds() - cpu
    if "draws" in found:
        found |= effective(found.pop("draws"), found["gradients"])
    each = {key: events[f"/jax/core/compile/{word}_duration"] for key, word in PHASES.items()}
    phases = {key: sum(own) for key, own in each.items()}
    known = {
        "import": imported,
        "seconds": seconds,
        "cpu": cpu,
        **phases,
        "run": max(seconds - sum(phases.values()), 0.0),
    }
    return {**{k: round(v, 2) for k, v in known.items()}, "programs": len(each["compile"]), **found}


def fit(vr: Any, model: Any, args: Any, kwargs: Any, name: str, method: str, seed: int) -> dict[str, Any]:
    """Fit, and say what it took."""
    if method == "default":
        family, steps = (vr.MeanField(), DIGITS_STEPS) if name == "digits" else (vr.Escalate(), None)
        one = {"num_particles": 1} if steps else {}
        posterior = vr.guide(family)(model).fit(*args, num_steps=steps, seed=seed, progress=False, **one, **kwargs)
        verdict = posterior.verdict
        gradients = sum(t["gradients"] for t in posterior.tried) or posterior.record["gradients"]
        return {
            "gradients": gradients,
            "kept": posterior.record["family"],
            "grade": verdict.grade,
            "khat": round(posterior.khat, 3),
        }
    import jax
    import optax
    from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, autoguide

    if method == "NUTS":
        sampler = MCMC(NUTS(model), num_warmup=1_000, num_samples=1_000, progress_bar=False)
        key = jax.random.key(seed)
        sampler.warmup(key, *args, extra_fields=("num_steps",), collect_warmup=True, **kwargs)
        warm = int(np.sum(sampler.get_extra_fields()["num_steps"]))
        sampler.run(key, *args, extra_fields=("num_steps",), **kwargs)
        drawn = int(np.sum(sampler.get_extra_fields()["num_steps"]))
        return {"gradients": [warm, drawn], "draws": jax.tree.map(np.asarray, sampler.get_samples())}
    svi = SVI(model, getattr(autoguide, method)(model), optax.adam(0.01), Trace_ELBO())
    result = svi.run(jax.random.key(seed), STEPS, *args, progress_bar=False, **kwargs)
    jax.block_until_ready(result.losses)
    return {"gradients": STEPS}


def effective(draws: dict[str, Any], gradients: list[int]) -> dict[str, Any]:
    """Gradients of the run, and of one that has 1,000 effective draws of each parameter."""
    import arviz as az

    least = min(
        float(np.min(az.ess(value[None].reshape(1, len(value), -1)[..., j])))
        for value in draws.values()
        for j in range(int(np.prod(value.shape[1:])))
    )
    warm, drawn = gradients
    return {"gradients": warm + drawn, "gradients_effective": round(warm + drawn * 1_000.0 / least)}


def cpu_seconds() -> float:
    """Of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def table(rows: list[dict[str, Any]]) -> None:
    """Medians over the repeats; `of NUTS`: CPU seconds over those of NUTS."""
    keys = ("seconds", "cpu", "trace", "lower", "compile", "run", "programs", "gradients")
    print(f"{'model':28s} {'method':24s} {'cache':6s}" + "".join(f"{key:>11s}" for key in (*keys, "of NUTS")))
    for kind in dict.fromkeys((r["model"], r["method"], r["backend"], r["cache"]) for r in rows):
        own = [r for r in rows if (r["model"], r["method"], r["backend"], r["cache"]) == kind]
        values = {key: float(np.median([r[key] for r in own])) for key in keys}
        nuts = [r["cpu"] for r in rows if (r["model"], r["method"]) == (kind[0], "NUTS") and r["cache"] == "cold"]
        share = f"{values['cpu'] / np.median(nuts):11.2f}" if nuts else f"{'':11s}"
        shown = "".join(f"{v:11,.0f}" if k in keys[-2:] else f"{v:11.1f}" for k, v in values.items())
        method = kind[1] + (" (Pyro)" if kind[2] == "pyro" else "")
        print(f"{kind[0].split('-')[-1][:28]:28s} {method:24s} {kind[3]:6s}{shown}{share}")


if __name__ == "__main__":
    main()
