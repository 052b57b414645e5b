"""Gradient variance at the first step of the 100/40/15 sparse gamma deep exponential family.

Naesseth et al. (2017), table 1, measure it on the NIPS counts over 10 replicates: the variance of
every coordinate of the ELBO's gradient in the guide's shapes and means, entropy in closed form.
Rao-Blackwellization over the model's plates, which the authors' code does not have, is what makes
the difference.

    python benchmarks/def_variance.py DATA_FOLDER [--out benchmarks/results/def_variance.json]

DATA_FOLDER holds nips_counts.npz (shape, train_i, train_j, train_v); without it the digits of
scikit-learn are used.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import jax
import numpy as np
from numpyro import handlers

import vi_reparam_numpyro as vr
from vi_reparam_models import get

AUTHORS = "the authors' code, on the NIPS counts: median 2.7e7, maximum 4.1e14"


def read_counts(folder):
    with np.load(Path(folder) / "nips_counts.npz") as stored:
        counts = np.zeros(stored["shape"])
        counts[stored["train_i"], stored["train_j"]] = stored["train_v"]
    return counts


def start_of(guide, kwargs):
    trace = handlers.trace(handlers.seed(guide, 0)).get_trace(**kwargs)
    return {name: site["value"] for name, site in trace.items() if site["type"] == "param"}


def measure(model, estimator, *, num_particles, replicates, seed):
    """Moments over coordinates of the per-draw variance, and seconds a gradient."""
    program = model.model(vr.host)
    plain = model.guide(vr.host)
    guide = vr.estimate(plain, {"*": estimator})
    kwargs = model.data()[1]
    objective = vr.ELBO(num_particles=num_particles, entropy=model.entropy)
    params = start_of(plain, kwargs)
    gradient = jax.jit(jax.grad(lambda params, key: objective.loss(key, params, program, guide, **kwargs)))
    keys = jax.random.split(jax.random.key(seed), replicates)
    jax.block_until_ready(gradient(params, keys[0]))
    total = {name: np.zeros((2, *value.shape)) for name, value in params.items()}
    started = time.perf_counter()
    for key in keys:
        for name, value in gradient(params, key).items():
            total[name] += np.stack([value, np.square(value)])
    seconds = (time.perf_counter() - started) / replicates
    # The mean of n draws has an n-th of the variance of one; the paper's figure is that of one.
    variance = {
        name: num_particles * (square / replicates - (mean / replicates) ** 2) for name, (mean, square) in total.items()
    }
    flat = np.concatenate([v.ravel() for v in variance.values()])
    return {
        "estimator": repr(estimator),
        "num_particles": num_particles,
        "median": float(np.median(flat)),
        "maximum": float(flat.max()),
        "median_by_parameter": {name: float(np.median(v)) for name, v in variance.items()},
        "maximum_by_parameter": {name: float(v.max()) for name, v in variance.items()},
        "coordinates": flat.size,
        "seconds_per_gradient": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="folder with nips_counts.npz")
    parser.add_argument("--replicates", type=int, default=10)
    parser.add_argument("--num-particles", type=int, default=2, help="of Rejection, whose baseline needs two")
    parser.add_argument("--layers", type=int, nargs="+", default=[100, 40, 15])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    counts = None if options.folder is None else read_counts(options.folder)
    model = get("sparse_gamma_def", layers=options.layers, counts=counts)
    settings = {"replicates": options.replicates, "seed": options.seed}
    rows = []
    for estimator, num_particles in [
        (vr.Implicit(), 1),
        (vr.Rejection(boost=4, baseline=None), 1),
        (vr.Rejection(boost=4, baseline="leave_one_out"), options.num_particles),
    ]:
        rows.append(measure(model, estimator, num_particles=num_particles, **settings))
        row = rows[-1]
        print(
            f"{row['estimator']:45s} particles {num_particles}: median {row['median']:.3g}, "
            f"maximum {row['maximum']:.3g}, {row['seconds_per_gradient']:.2f} s a gradient",
            flush=True,
        )
    print(f"({AUTHORS})")
    if options.out:
        result = {
            "command": "python benchmarks/def_variance.py" + (" DATA_FOLDER" if options.folder else ""),
            "data": "NIPS counts" if options.folder else "digits",
            "layers": options.layers,
            **settings,
            "jax": jax.__version__,
            "machine": f"{platform.machine()}, CPU",
            "authors": AUTHORS,
            "rows": rows,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
