"""Quality of the SDE guide on targets of public diffusion-sampler benchmarks, beside stock guides.

The folder holds `seeds.json` (r, n, x1, x2) and `german.data-numeric` (UCI, Statlog German credit); the
funnel and the nine-mode mixture need none. Each guide trains for at most two minutes on this machine, in
float32; the ELBO is that of 20,000 fresh draws, mean and spread over the seeds. A stock guide gets the seconds
that ours took on the same target (two minutes at most), half for each of two learning rates; the better is kept.

    python benchmarks/sde.py FOLDER [--targets funnel gmm9 ...] [--seeds 3] [--out benchmarks/results/sde.json]
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDAIS, AutoMultivariateNormal, AutoNormal

import vi_reparam_numpyro as vr

DEMANDED = {"funnel": -0.95, "gmm9": -0.40, "gmm9 log-variance": -0.36, "seeds": -74.2, "credit": -586.0}
LIMIT = 120.0  # seconds that a fit of ours may take


def funnel(folder):
    def model():
        v = numpyro.sample("v", dist.Normal(0.0, 3.0))
        numpyro.sample("x", dist.Normal(jnp.zeros(9), jnp.exp(0.5 * v)).to_event(1))

    return model, ()


def gmm9(folder):
    side = jnp.array([-5.0, 0.0, 5.0])
    means = jnp.stack(jnp.meshgrid(side, side), -1).reshape(-1, 2)

    def model():
        modes = dist.Categorical(jnp.full(9, 1.0 / 9.0))
        numpyro.sample("z", dist.MixtureSameFamily(modes, dist.Normal(means, 0.3**0.5).to_event(1)))

    return model, ()


def seeds(folder):
    data = {name: np.asarray(x) for name, x in json.loads((folder / "seeds.json").read_text()).items() if name in _ROWS}

    def model(r, n, x1, x2):
        tau = numpyro.sample("tau", dist.Gamma(0.01, 0.01))
        a = numpyro.sample("a", dist.Normal(jnp.zeros(4), 10.0).to_event(1))
        with numpyro.plate("plates", len(r)):
            b = numpyro.sample("b", dist.Normal(0.0, tau**-0.5))
            logits = a[0] + a[1] * x1 + a[2] * x2 + a[3] * x1 * x2 + b
            numpyro.sample("r", dist.Binomial(n, logits=logits), obs=r)

    return model, tuple(data[name] for name in _ROWS)


_ROWS = ("r", "n", "x1", "x2")


def credit(folder):
    table = np.loadtxt(folder / "german.data-numeric")
    x = np.concatenate([np.ones((len(table), 1)), table[:, :-1] / table[:, :-1].std(0)], axis=1)

    def model(x, y):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[1]), 10.0).to_event(1))
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    return model, (x.astype(np.float32), (table[:, -1] == 2).astype(np.float32))


TARGETS = {"funnel": funnel, "gmm9": gmm9, "seeds": seeds, "credit": credit}

# a base that learns, or is fitted alone first, would close in on one mode
WIDE = {"init_scale": 4.0, "warm_start": 0, "base": "diagonal", "learn_base": False}
SPECIFICATIONS = {  # target, guide, steps of training: fewer where each looks at a thousand rows
    "funnel": ("funnel", vr.SDE(), 5_000),
    "gmm9": ("gmm9", vr.SDE(**WIDE), 3_000),
    "gmm9 log-variance": ("gmm9", vr.SDE(gradient="log_variance", **WIDE), 3_000),
    "seeds": ("seeds", vr.SDE(), 3_000),
    "credit": ("credit", vr.SDE(), 800),
}


def ours(model, args, spec, num_seeds, num_steps):
    guided, rows = vr.guide(spec)(model), []
    for seed in range(num_seeds):
        begun, cpu = time.perf_counter(), time.process_time()
        posterior = guided.fit(*args, seed=seed, num_steps=num_steps, progress=False)
        row = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
        value, error = posterior.elbo(20_000)
        rows.append({"elbo": value, "error": error, "khat": posterior.khat, "num_steps": num_steps, **row})
        print(json.dumps(rows[-1]), flush=True)
    return rows


STOCK = {
    "mean-field (AutoNormal)": lambda model: AutoNormal(model),
    "full-rank (AutoMultivariateNormal)": lambda model: AutoMultivariateNormal(model),
    "AutoDAIS (K=8)": lambda model: AutoDAIS(model, K=8),
}


def stock(model, args, make, num_seeds, budget):
    """A stock guide of NumPyro for as many steps as fit into the seconds, with the better of two learning rates."""
    args, rows = jax.tree.map(jnp.asarray, args), []
    for seed in range(num_seeds):
        best = None
        for rate in (0.01, 0.003):
            begun, steps = time.perf_counter(), 0
            guide = make(model)
            svi = SVI(model, guide, optax.adam(rate), Trace_ELBO(num_particles=32))
            state = svi.init(random.key(seed), *args)

            @jax.jit
            def advance(state, svi=svi):
                return jax.lax.fori_loop(0, 200, lambda _, s: svi.update(s, *args)[0], state)

            while time.perf_counter() - begun < 0.5 * budget:
                state = jax.block_until_ready(advance(state))
                steps += 200
            params = svi.get_params(state)
            losses = jax.jit(jax.vmap(lambda k, p=params, g=guide: Trace_ELBO().loss(k, p, model, g, *args)))
            found = -np.asarray(losses(random.split(random.key(100 + seed), 4_000)))
            row = {"elbo": float(found.mean()), "steps": steps, "seconds": time.perf_counter() - begun, "rate": rate}
            best = row if best is None or row["elbo"] > best["elbo"] else best
        rows.append(best)
        print(json.dumps(best), flush=True)
    return rows


def mean_of(rows):
    values = [row["elbo"] for row in rows]
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the targets' data are")
    parser.add_argument("--targets", nargs="+", default=list(SPECIFICATIONS), choices=list(SPECIFICATIONS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of training, in place of each target's own")
    parser.add_argument("--parts", nargs="+", default=["sde", "stock"], choices=["sde", "stock"])
    parser.add_argument("--out", type=Path, help="JSON file to write, and to go on from")
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"no folder {options.folder}: give the one that holds seeds.json and german.data-numeric")
    result = {
        "command": "python benchmarks/sde.py FOLDER" + (f" --steps {options.steps}" if options.steps else ""),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, shared with other work",
        "jax": jax.__version__,
        "numpyro": numpyro.__version__,
        "num_seeds": options.seeds,
        "limit_seconds": LIMIT,
        "targets": {},
    }
    if options.out and options.out.exists():  # targets measured before, under the same options, are kept
        before = json.loads(options.out.read_text())
        if all(before[name] == result[name] for name in ("command", "num_seeds")):
            result["targets"] = before["targets"]
    for name in options.targets:
        target, spec, num_steps = SPECIFICATIONS[name]
        model, args = TARGETS[target](options.folder)
        print(name, flush=True)
        found = result["targets"].setdefault(name, {"demanded": DEMANDED[name], "specification": repr(spec)})
        if "sde" in options.parts:
            rows = ours(model, args, spec, options.seeds, options.steps or num_steps)
            found["sde"] = {**mean_of(rows), "runs": rows}
            write(result, options.out)
        if "stock" in options.parts and name == target:
            if "sde" not in found:
                parser.error(f"{name}: stock guides get the seconds that the SDE guide took; run that part first")
            budget = min(LIMIT, float(np.mean([row["seconds"] for row in found["sde"]["runs"]])))
            for label, make in STOCK.items():
                print(label, flush=True)
                peer = stock(model, args, make, 1, budget)
                found[label] = {**mean_of(peer), "runs": peer}
                write(result, options.out)


def write(result, path):
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
