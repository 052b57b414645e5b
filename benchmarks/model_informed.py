"""The five models of model-informed flows (Ko and Domke 2025) by the default guide, beside these flows.

python benchmarks/model_informed.py [--data FOLDER] [--peer FOLDER] [--theirs FILE] [--pyro] [--only NAME ...]

`--data`: a folder with `sonar.npz` and `ionosphere.npz` (UCI), each of `X`, shape ``[N, D]``, and `y` of 0 and 1;
without it the other models run alone. `--peer`: a checkout of the authors' code, run from where its own `data/` lies:
our log joint is compared with theirs at 100 points. `--theirs`: a JSON file, name to ELBO and seconds of their
`train.py --model NAME --family mif --num_layers 5` (100,000 steps).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro
from numpyro.infer.util import log_density

import vi_reparam_numpyro as vr_numpyro

RESULTS = Path(__file__).parent / "results" / "model_informed.json"
NUM_POINTS, CLOSE = 100, 1e-8

EFFECT, SIGMA = [28.0, 8, -3, 7, -1, 1, 18, 12], [15.0, 10, 16, 11, 9, 11, 10, 18]
GERMINATED = [10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3]
SEEDS = [39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7]
FIRST, SECOND = [0] * 11 + [1] * 10, [0] * 5 + [1] * 6 + [0] * 5 + [1] * 5


def schools(host: Any) -> Callable[[], None]:
    """Rubin (1981), with the logarithm of the scale normal."""
    y, sigma, dist, xp = host.array(np.array(EFFECT)), host.array(np.array(SIGMA)), host.dist, host.xp

    def model() -> None:
        log_tau, mu = (host.sample(name, dist.Normal(0.0, 5.0)) for name in ("log_tau", "mu"))
        with host.plate("schools", 8):
            theta = host.sample("theta", dist.Normal(mu, xp.exp(log_tau)))
            host.sample("y", dist.Normal(theta, sigma), obs=y)

    return model


def seeds(host: Any) -> Callable[[], None]:
    """Crowder (1978), with the logarithm of the precision normal."""
    dist, xp = host.dist, host.xp
    count, total, first, second = (host.array(np.array(x, float)) for x in (GERMINATED, SEEDS, FIRST, SECOND))

    def model() -> None:
        log_tau = host.sample("log_tau", dist.Normal(0.0, 10.0))
        a0, a1, a2, a12 = (host.sample(name, dist.Normal(0.0, 10.0)) for name in ("a0", "a1", "a2", "a12"))
        with host.plate("plates", 21):
            b = host.sample("b", dist.Normal(0.0, xp.exp(-0.5 * log_tau)))
            logits = a0 + a1 * first + a2 * second + a12 * first * second + b
            host.sample("r", dist.Binomial(total, logits=logits), obs=count)

    return model


def logistic(file: Path) -> Callable[[Any], Callable[[], None]]:
    """Of standardized columns, with standard normal weights."""
    with np.load(file) as found:
        columns, y = found["X"], found["y"]
    sds = columns.std(0)
    columns = (columns - columns.mean(0)) / np.where(sds == 0.0, 1.0, sds)
    columns = np.concatenate([np.ones((len(y), 1)), columns], axis=1)

    def made(host: Any) -> Callable[[], None]:
        x, outcome, dist = host.array(columns), host.array(y), host.dist

        def model() -> None:
            w = host.sample("w", dist.Normal(0.0, host.array(1.0)).expand([x.shape[1]]).to_event(1))
            host.sample("y", dist.Bernoulli(logits=x @ w).to_event(1), obs=outcome)

        return model

    return made


def funnel(size: int) -> Callable[[Any], Callable[[], None]]:
    """Neal (2003). Its log evidence is 0."""

    def made(host: Any) -> Callable[[], None]:
        dist = host.dist

        def model() -> None:
            first = host.sample("x0", dist.Normal(0.0, 3.0))
            with host.plate("others", size - 1):
                host.sample("x", dist.Normal(0.0, host.xp.exp(0.5 * first)))

        return model

    return made


def largest_difference(model: Callable[[], None], name: str, peer: Path) -> float:
    """Of both log joints at points, the largest absolute difference in nats."""
    spec = importlib.util.spec_from_file_location("peer_models", peer / "model_informed_flow" / "models.py")
    assert spec is not None and spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    other, logpdf = theirs.get_model(name), theirs.logpdf
    rng, worst = np.random.default_rng(0), 0.0
    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
    latents = {n: s["value"] for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
    for _ in range(NUM_POINTS):
        ours = {n: jax.numpy.asarray(rng.normal(size=np.shape(v))) for n, v in latents.items()}
        rows = list(ours.values())
        if name == "funnel":  # theirs has one coordinate a latent
            rows = [rows[0], *rows[1]]
        prior = sum(
            logpdf(z, loc=other.f_i(rows[:i], i), scale=other.g_i(rows[:i], i)).sum() for i, z in enumerate(rows)
        )
        value = prior + other.compute_log_p_input(rows).sum()
        worst = max(worst, abs(float(log_density(model, (), {}, ours)[0] - value)))
    return worst


def main() -> None:
    """Run, print, and write `RESULTS`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--theirs", type=Path)
    parser.add_argument("--pyro", action="store_true")
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    numpyro.enable_x64()
    vr: Any = vr_numpyro
    if options.pyro:
        vr = importlib.import_module("vi_reparam_pyro")
        importlib.import_module("torch").set_default_dtype(importlib.import_module("torch").float64)
    models = {"8schools": schools, "seeds": seeds, "funnel": funnel(10), "funnel of 100": funnel(100)}
    if options.data is not None:
        models |= {name: logistic(options.data / f"{name}.npz") for name in ("sonar", "ionosphere")}
    theirs = json.loads(options.theirs.read_text()) if options.theirs else {}
    table = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.only or models:
        made = models[name]
        begun = time.perf_counter()
        posterior = vr.guide(made(vr.host)).fit(progress=False)
        seconds = time.perf_counter() - begun
        elbo, error = posterior.elbo()
        row = {"family": posterior.record["family"], "grade": posterior.verdict.grade, "khat": posterior.khat}
        row |= {"elbo": elbo, "elbo_error": error, "seconds": seconds}
        if name in theirs:
            row["their_elbo"], row["their_seconds"] = theirs[name]
        if options.peer is not None and "of" not in name:
            row["log_joint_difference"] = largest_difference(made(vr_numpyro.host), name, options.peer)
            assert row["log_joint_difference"] < CLOSE, (name, row)
        table[f"{name}/pyro" if options.pyro else name] = row
        print(name, row, flush=True)
        RESULTS.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
