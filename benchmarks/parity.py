"""The two backends on the same models: ELBO after the same fit, and the comparison's variances.

Eight schools and the digits factorization are fitted in both with the same seed, steps, particles
and Adam; the ELBOs are compared in standard errors. The variances of the gradient estimators are
compared at the same parameters, each with its standard error over batches.

    python benchmarks/parity.py [--out benchmarks/results/parity.json]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import optax
import torch

import vi_reparam_numpyro as jax_vr
import vi_reparam_pyro as torch_vr
from vi_reparam_models import get

FITS = {"eight_schools": (2_000, 16, 0.02), "digits": (800, 1, 0.05)}
BATCHES, REPLICATES = 10, 1_000


def numpyro_adam(rate):
    return optax.adam(rate)


def pyro_adam(rate):
    return lambda leaves: torch.optim.Adam(leaves, lr=rate)


BACKENDS = {"numpyro": (jax_vr, numpyro_adam), "pyro": (torch_vr, pyro_adam)}


def fits():
    found = {}
    for name, (steps, particles, rate) in FITS.items():
        model = get(name)
        args, kwargs = model.data()
        for backend, (vr, adam) in BACKENDS.items():
            guided = vr.guide(vr.MeanField(), estimators=vr.Implicit(), objective=vr.ELBO(particles))(
                model.model(vr.host)
            )
            begun = time.perf_counter()
            posterior = guided.fit(*args, **kwargs, num_steps=steps, optimizer=adam(rate), seed=0, progress=False)
            seconds = time.perf_counter() - begun
            value, error = posterior.elbo(4_000 if name == "eight_schools" else 200)
            found.setdefault(name, {})[backend] = {"elbo": float(value), "error": float(error), "seconds": seconds}
        pair = list(found[name].values())
        gap = pair[0]["elbo"] - pair[1]["elbo"]
        found[name]["z"] = gap / float(np.hypot(pair[0]["error"], pair[1]["error"]))
        print(name, json.dumps(found[name], indent=2), flush=True)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    record = {"command": "python benchmarks/parity.py", "variances": variances(), "fits": fits()}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=2, default=float) + "\n")


if __name__ == "__main__":
    main()
