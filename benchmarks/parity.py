"""The two backends on the same models: ELBO after the same fit, and the comparison's variances.

Eight schools and the digits factorization are fitted in both with the same seeds, steps, particles
and Adam. A factorization has many optima, and the noise of the gradient decides in which of them a fit
ends: two seeds of one backend end further apart than the Monte Carlo error of either ELBO tells. So the
standard error of each backend's mean ELBO is that over its seeds, and with it the Monte Carlo error of one
ELBO, whose draws have the same noise for every seed. The variances of the gradient estimators are compared
at the same parameters, each with its standard error over batches. Families over all latents are fitted to
eight schools by their own defaults.

    python benchmarks/parity.py [--seeds 10] [--parts variances fits families] [--out benchmarks/results/parity.json]
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import optax
import torch

import vi_reparam_numpyro as jax_vr
import vi_reparam_pyro as torch_vr
from vi_reparam_models import get

FITS = {"eight_schools": (2_000, 16, 0.02), "digits": (800, 1, 0.05)}
DRAWS = {"eight_schools": 100_000, "digits": 200}
BATCHES, REPLICATES = 10, 1_000


def numpyro_adam(rate):
    return optax.adam(rate)


def pyro_adam(rate):
    return lambda leaves: torch.optim.Adam(leaves, lr=rate)


BACKENDS = {"numpyro": (jax_vr, numpyro_adam), "pyro": (torch_vr, pyro_adam)}


def over_seeds(rows):
    elbos = np.asarray([row["elbo"] for row in rows])
    sd = float(elbos.std(ddof=1))
    error = math.hypot(sd / math.sqrt(len(rows)), max(row["error"] for row in rows))
    return {"mean": float(elbos.mean()), "sd": sd, "error": error}


def compared(name, draws, seeds, fit):
    """ELBOs of both backends.

    Args:
        draws: that an ELBO rests on.
        fit: ``fit(vr, adam, seed)`` gives a posterior.
    """
    rows = {backend: [] for backend in BACKENDS}
    for backend, (vr, adam) in BACKENDS.items():
        for seed in range(seeds):
            begun = time.perf_counter()
            posterior = fit(vr, adam, seed)
            seconds = time.perf_counter() - begun
            value, error = posterior.elbo(draws)
            rows[backend].append({"elbo": float(value), "error": float(error), "seconds": seconds})
            print(name, backend, seed, json.dumps(rows[backend][-1]), flush=True)
    summary = {backend: over_seeds(own) for backend, own in rows.items()}
    one, other = summary["numpyro"], summary["pyro"]
    summary["z"] = (one["mean"] - other["mean"]) / math.hypot(one["error"], other["error"])
    print(name, json.dumps(summary, indent=2), flush=True)
    return {"seeds": seeds, **summary, "fits": rows}


def fits(seeds):
    """Gamma mean fields by the same plain Adam."""
    found = {}
    for name, (steps, particles, rate) in FITS.items():
        model = get(name)
        args, kwargs = model.data()
        guides = {
            vr: vr.guide(vr.MeanField(), estimators=vr.Implicit(), objective=vr.ELBO(particles))(model.model(vr.host))
            for vr, _ in BACKENDS.values()
        }

        def fit(vr, adam, seed, guides=guides, steps=steps, rate=rate, args=args, kwargs=kwargs):
            return guides[vr].fit(
                *args, **kwargs, num_steps=steps, optimizer=adam(rate), seed=seed, progress=False
            )  # fmt: skip

        found[name] = compared(name, DRAWS[name], seeds, fit)
    return found


def families(seeds):
    """The families over all latents, on eight schools by their own defaults, as training left them.

    Tails are upcast after training where k-hat is above a bound, which single fits of one program are
    on either side of; a wider tail costs some thousandths of a nat.
    """
    model, found = get("eight_schools"), {}
    args, kwargs = model.data()

    def as_trained(vr, posterior, seed):
        params = {name: 0.0 * value if name.endswith("_tail") else value for name, value in posterior.params.items()}
        return vr.Posterior(
            posterior.guided,
            params,
            args=args,
            kwargs=kwargs,
            losses=posterior.losses,
            seed=seed,
            record=posterior.record,
        )

    for name in ("FullRank", "LowRank", "Flow"):
        guides = {vr: vr.guide(getattr(vr, name)())(model.model(vr.host)) for vr, _ in BACKENDS.values()}

        def fit(vr, adam, seed, guides=guides):
            posterior = guides[vr].fit(*args, **kwargs, num_steps=2_000, seed=seed, progress=False)
            return as_trained(vr, posterior, seed)

        found[name] = compared(name, 20_000, seeds, fit)
    return found


def variances():
    """Per estimator: the gradient's total variance, its standard error over batches, and the z of the pair."""
    model = get("eight_schools")
    args, kwargs = model.data()
    names = ("Implicit", "Rejection", "ScoreFunction")
    start, found = None, {}
    for backend, (vr, _) in BACKENDS.items():
        guided = vr.guide(vr.MeanField())(model.model(vr.host))
        if start is None:
            start = {n: np.asarray(v) for n, v in guided.start(*args, **kwargs).items()}
        batches = []
        for seed in range(BATCHES):
            made = [getattr(vr, n)() for n in names]
            compared = vr.compare_estimators(
                guided, *args, **kwargs, estimators=made, num_replicates=REPLICATES, num_particles=2,
                stages=("start",), params=start, seed=seed,
            )  # fmt: skip
            batches.append(compared.dataset["variance"].sel(stage="start"))
        stacked = np.stack([b.sum("parameter").values for b in batches])  # the gradient's total variance
        found[backend] = {
            "estimators": [str(e) for e in batches[0]["estimator"].values],
            "mean": stacked.mean(0),
            "error": stacked.std(0, ddof=1) / np.sqrt(BATCHES),
        }
    one, other = found["numpyro"], found["pyro"]
    record = {}
    for i, estimator in enumerate(one["estimators"]):
        pair = {b: {"variance": float(f["mean"][i]), "error": float(f["error"][i])} for b, f in found.items()}
        gap = pair["numpyro"]["variance"] - pair["pyro"]["variance"]
        record[estimator] = {**pair, "z": gap / float(np.hypot(*(p["error"] for p in pair.values())))}
    assert one["estimators"] == other["estimators"]
    print("variances", json.dumps(record, indent=2), flush=True)
    return record


PARTS = {
    "variances": lambda options: variances(),
    "fits": lambda options: fits(options.seeds),
    "families": lambda options: families(max(2, options.seeds // 2)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--seeds", type=int, default=10, help="of each backend's fits; half of them for `families`")
    parser.add_argument("--out", type=Path, help="JSON file to write; parts that are in it already are kept")
    options = parser.parse_args()
    record = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    record["command"] = "python benchmarks/parity.py"
    for part in options.parts:
        record[part] = PARTS[part](options)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(record, indent=2, default=float) + "\n")


if __name__ == "__main__":
    main()
