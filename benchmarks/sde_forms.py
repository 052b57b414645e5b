"""Data against noise: the two forms of the solver with exact scores, and guides trained in either.

Samples: the exact drift of the nine-mode mixture and of Gaussians of several widths, by order, steps and tau;
sliced Wasserstein distance to exact draws (its noise floor, between two sets of exact draws, is given); the
same on the mixture with a corrector.
Guides: parameterization x variance form on the funnel and the mixture, one seed, ELBO of 20,000 draws. Gradients: the
total variance of the path gradient and of plain reparameterization at the same parameters.

The picture, beside the JSON file: the samples' distances at the fewest steps, by tau.

    python benchmarks/sde_forms.py [--parts samples corrected ...] [--out benchmarks/results/sde_forms.json]
"""

import argparse
import itertools
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

import vi_reparam_numpyro as vr
from vi_reparam.objectives.run import first_params
from vi_reparam.sde import Adams, Constant, UniformLogSNR, sample
from vi_reparam_numpyro.backend import backend
from vi_reparam_numpyro.ops.ops import ops

sys.path.insert(0, str(Path(__file__).parent))
from sde import TARGETS, WIDE

SCHEDULE = UniformLogSNR(-2.5, 5.0)
ORDERS, STEPS, TAUS = (1, 2, 3, 4), (10, 20, 40), (0.0, 0.5, 1.0, 1.5)
CORRECTED = ((1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4))  # orders of predictor and corrector
SCALE = 4.1  # of the mixture: the process runs in its units
NUM = 20_000


def mixture(means, variance):
    """The exact drift of a mixture of equal Gaussians, and its draws."""
    means = jnp.asarray(means) / SCALE
    own = variance / SCALE**2

    def predict(x, row):
        a, s = row["alpha"], row["sigma"]
        total = a * a * own + s * s
        gaps = x[:, None, :] - a * means[None]
        weights = jax.nn.softmax(-0.5 * jnp.sum(gaps * gaps, axis=-1) / total, axis=1)
        return jnp.sum(weights[..., None] * (means[None] + a * own / total * gaps), axis=1)

    def draws(key):
        first, second = random.split(key)
        chosen = random.randint(first, (NUM,), 0, len(means))
        return means[chosen] + math.sqrt(own) * random.normal(second, (NUM, means.shape[1]))

    return predict, draws


def exact_targets():
    side = np.asarray([-5.0, 0.0, 5.0])
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    found = {"gmm9": mixture(grid, 0.3)}
    for width in (0.05, 0.3, 1.0, 3.0):  # standard deviations, in the process's units
        found[f"normal, sd {width}"] = mixture(np.zeros((1, 2)), (width * SCALE) ** 2)
    return found


@jax.jit
def sliced_wasserstein(a, b):
    """Mean over 64 directions of the one-dimensional distance, in the units of the process."""
    angles = jnp.arange(64) * (jnp.pi / 64)
    way = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    return jnp.mean(jnp.abs(jnp.sort(a @ way, axis=0) - jnp.sort(b @ way, axis=0)))


def distances(predict, truth, *, order, steps, tau, corrector=0):
    """Sliced Wasserstein distance of each form's samples; None where they are not finite."""
    found = {}
    for form in ("data", "noise"):

        @jax.jit
        def run(key, form=form):
            first, second = random.split(key)
            return sample(
                ops,
                predict,
                random.normal(first, (NUM, 2)),
                random.normal(second, (steps, NUM, 2)),
                schedule=SCHEDULE,
                grid=SCHEDULE.grid(steps),
                adams=Adams(order=order, corrector=corrector, form=form),
                tau=Constant(tau),
            )

        distance = float(sliced_wasserstein(run(random.key(0)), truth))
        found[form] = distance if math.isfinite(distance) else None
    return found


def samples():
    rows = []
    for name, (predict, draws) in exact_targets().items():
        truth = draws(random.key(1))
        floor = float(sliced_wasserstein(truth, draws(random.key(2))))
        for order, steps, tau in itertools.product(ORDERS, STEPS, TAUS):
            row = {"target": name, "order": order, "steps": steps, "tau": tau, "floor": floor}
            rows.append(row | distances(predict, truth, order=order, steps=steps, tau=tau))
        print(name, len(rows), flush=True)
    return rows


def corrected():
    """With a corrector, on the mixture in the fewest steps."""
    predict, draws = exact_targets()["gmm9"]
    truth, rows = draws(random.key(1)), []
    for (order, corrector), tau in itertools.product(CORRECTED, TAUS):
        row = {"target": "gmm9", "order": order, "corrector": corrector, "steps": STEPS[0], "tau": tau}
        rows.append(row | distances(predict, truth, order=order, corrector=corrector, steps=STEPS[0], tau=tau))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def picture(rows, path):
    """Distances at the fewest steps by tau: a row of panels a target, a panel an order."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = ("gmm9", "normal, sd 0.05", "normal, sd 1.0", "normal, sd 3.0")
    figure, axes = plt.subplots(
        len(shown), len(ORDERS), figsize=(11, 9), sharex=True, sharey="row", layout="constrained"
    )
    for panels, target in zip(axes, shown, strict=True):
        for ax, order in zip(panels, ORDERS, strict=True):
            found = [r for r in rows if (r["target"], r["order"], r["steps"]) == (target, order, STEPS[0])]
            for form, color in (("data", "#16425b"), ("noise", "#c8553d")):
                ax.plot(TAUS, [math.nan if r[form] is None else r[form] for r in found], "o-", color=color, label=form)
            ax.axhline(found[0]["floor"], color="0.6", linewidth=0.8, linestyle="--")
            ax.set(yscale="log", title=f"{target}, order {order}" if target == "gmm9" else f"{target}")
            ax.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("sliced Wasserstein")
    for ax in axes[-1]:
        ax.set_xlabel("tau")
    axes[0, 0].legend(title="form", frameon=False)
    figure.suptitle(f"Exact scores, {STEPS[0]} steps; dashed: two sets of exact draws")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def specification(target, **options):
    return vr.SDE(**{**(WIDE if target == "gmm9" else {}), **options})


def guides(num_steps):
    rows = []
    for target in ("funnel", "gmm9"):
        model, args = TARGETS[target](None)
        for parameterization, variance in itertools.product(("data", "noise"), ("learned", "data", "noise")):
            guided = vr.guide(specification(target, parameterization=parameterization, variance=variance))(model)
            begun = time.perf_counter()
            posterior = guided.fit(*args, num_steps=num_steps, progress=False)
            value, error = posterior.elbo(NUM)
            rows.append({"target": target, "parameterization": parameterization, "variance": variance})
            rows[-1].update(elbo=value, error=error, seconds=time.perf_counter() - begun)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def gradients(num_steps):
    """Total variance of one path's gradient at the start and after training."""
    rows = []
    model, args = TARGETS["funnel"](None)
    fitted = vr.guide(specification("funnel"))(model)
    params = {
        "start": first_params(backend, jax.random.key(0), fitted.model, fitted.guide, args, {}),
        "fitted": {n: jnp.asarray(p) for n, p in fitted.fit(*args, num_steps=num_steps, progress=False).params.items()},
    }
    for gradient in ("path", "reparameterization"):
        guided = vr.guide(specification("funnel", gradient=gradient))(model)

        @jax.jit
        def slopes(params, keys, guided=guided):
            one = lambda key: jax.grad(lambda p: vr.ELBO(1).loss(key, p, guided.model, guided.guide, *args))(params)  # noqa: E731
            found = jax.vmap(one)(keys)
            return {name: jnp.sum(jnp.var(g.reshape(len(keys), -1), axis=0)) for name, g in found.items()}

        for stage, held in params.items():
            by_name = {name: float(v) for name, v in slopes(held, random.split(random.key(0), 2_000)).items()}
            rows.append({"gradient": gradient, "stage": stage, "total": sum(by_name.values()), "by_parameter": by_name})
            print(gradient, stage, rows[-1]["total"], flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("samples", "corrected", "gradients", "guides")
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
    parser.add_argument("--steps", type=int, default=1_500, help="of each guide's training")
    parser.add_argument("--out", type=Path, help="JSON file to write; parts that are in it already are kept")
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    result.update(
        command="python benchmarks/sde_forms.py",
        machine=f"{platform.machine()}, {os.cpu_count()} CPU cores, shared with other work",
        num_steps=options.steps,
    )
    for part in options.parts:
        result[part] = globals()[part](*(() if part in ("samples", "corrected") else (options.steps,)))
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
            if part == "samples":
                picture(result["samples"], options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
