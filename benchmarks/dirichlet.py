"""The figure of the rejection-sampling paper, and past it: gradient variance on its Dirichlet problem.

100 counts among 100 categories, flat prior, Dirichlet guide at shape 2.0 and 1.01, entropy in closed
form; variance per draw of the gradient in component 1, from repeats of 16 particles. The authors'
code gives 45, 3.4 and 0.231 for boosts 1, 3 and 10 at shape 2.0, 1.2e5 for the score function, and
has no baseline.

    python benchmarks/dirichlet.py [--replicates 20000] [--out benchmarks/results/dirichlet.json]

It is `vi-reparam compare dirichlet_multinomial --set shape=2.0 --replicates 20000 --stages start`
with `--num-particles 16`, for both shapes.
"""

import argparse
import json
import platform
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

import vi_reparam_numpyro as vr
from vi_reparam_models import get

LIMITS = {
    2.0: {
        "Rejection(boost=1, baseline=None)": 50.0,
        "Rejection(boost=3, baseline=None)": 3.5,
        "Rejection(boost=10, baseline=None)": 0.25,
        "Rejection(boost=0, baseline='leave_one_out')": 0.75,
        "Rejection(boost=1, baseline='leave_one_out')": 0.27,
        "Rejection(boost=3, baseline='leave_one_out')": 0.22,
    },
    1.01: {
        "Rejection(boost=1, baseline='leave_one_out')": 8.0,
        "Rejection(boost=3, baseline='leave_one_out')": 2.6,
    },
}


def label(estimator):
    if not isinstance(estimator, vr.Rejection):
        return repr(estimator)
    return f"Rejection(boost={estimator.boost}, baseline={estimator.baseline!r})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=20_000)
    parser.add_argument("--num-particles", type=int, default=16)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--picture", type=Path, help="picture of the comparison at shape 2.0")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rows = []
    for shape, limits in LIMITS.items():
        model = get("dirichlet_multinomial", shape=shape)
        args, kwargs = model.data()
        guided = vr.Guided(model.model(vr.host), model.guide(vr.host), objective=vr.ELBO(entropy=model.entropy))
        guided.name = f"{model.name}, shape {shape}"
        comparison = vr.compare_estimators(
            guided,
            *args,
            **kwargs,
            estimators=list(model.estimators),
            num_replicates=options.replicates,
            num_particles=options.num_particles,
            stages=("start",),
        )
        Console(width=150).print(comparison.table("shape[0]"))
        if shape == 2.0 and options.picture:
            comparison.plot(options.picture)
        data = comparison.dataset.sel(stage="start")
        for estimator in model.estimators:
            one = data.sel(estimator=repr(estimator))
            first = one.sel(parameter="shape[0]")
            name = label(estimator)
            rows.append(
                {
                    "shape": shape,
                    "estimator": name,
                    "variance_per_draw_of_component_1": float(first.variance_per_draw),
                    "standard_error": float(first.variance_error) * options.num_particles,
                    "limit": limits.get(name),
                    "z_of_component_1": float(first.z),
                    "largest_absolute_z": float(np.abs(one.z).max()),
                    "seconds_per_gradient": float(one.seconds),
                }
            )
    result = {
        "command": "python benchmarks/dirichlet.py",
        "replicates": options.replicates,
        "num_particles": options.num_particles,
        "authors": "without a baseline, shape 2.0: 45.4, 3.37, 0.231 for boosts 1, 3, 10; score function 1.2e5",
        "jax": jax.__version__,
        "machine": f"{platform.machine()}, CPU, float64",
        "rows": rows,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        limit = "" if row["limit"] is None else f"(limit {row['limit']})"
        print(f"{row['shape']:5} {row['estimator']:48s} {row['variance_per_draw_of_component_1']:.4g} {limit}")


if __name__ == "__main__":
    main()
