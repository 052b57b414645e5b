"""Seconds a step: the MeanField guide on the logistic regression against a hand-written jax loop.

Both use the reparameterization gradient, the same particles, Adam and float32, inside one compiled
loop; they are timed in turn in one run, and the median of the ratios is the figure.

    python benchmarks/step.py [--out benchmarks/results/step.json]
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random

import vi_reparam_numpyro as vr
from vi_reparam.backend.engine import Task
from vi_reparam_models import get

LOG_2PI = float(np.log(2.0 * np.pi))


def by_hand(x, y, prior_scale, num_particles, optimizer):
    """The same bound written out: Bernoulli logits, normal priors, a diagonal normal guide."""

    def log_normal(value, scale):
        return -0.5 * jnp.square(value / scale) - jnp.log(scale) - 0.5 * LOG_2PI

    def loss(params, key, x, y):
        def particle(key):
            first, second = random.split(key)
            scales = jnp.exp(params["log_scale"]), jnp.exp(params["weights_log_scale"])
            eps = random.normal(first), random.normal(second, params["weights"].shape)
            intercept = params["loc"] + scales[0] * eps[0]
            weights = params["weights"] + scales[1] * eps[1]
            logits = intercept + x @ weights
            likelihood = jnp.sum(y * logits - jnp.logaddexp(0.0, logits))
            prior = log_normal(intercept, prior_scale) + jnp.sum(log_normal(weights, prior_scale))
            entropy = -log_normal(eps[0], 1.0) - jnp.sum(log_normal(eps[1], 1.0))
            entropy += params["log_scale"] + jnp.sum(params["weights_log_scale"])
            return likelihood + prior + entropy

        return -jnp.mean(jax.vmap(particle)(random.split(key, num_particles)))

    def step(carry):
        i, limit, params, opt, key, losses, x, y = carry
        key, now = random.split(key)
        value, grads = jax.value_and_grad(loss)(params, now, x, y)
        updates, opt = optimizer.update(grads, opt, params)
        return i + 1, limit, optax.apply_updates(params, updates), opt, key, losses.at[i].set(value), x, y

    @jax.jit
    def advance(params, opt, key, limit, x, y):
        carry = 0, limit, params, opt, key, jnp.zeros(1024), x, y
        return lax.while_loop(lambda c: c[0] < c[1], step, carry)[2:6]

    params = {
        "loc": jnp.zeros(()),
        "log_scale": jnp.full((), -2.0),
        "weights": jnp.zeros(x.shape[1]),
        "weights_log_scale": jnp.full(x.shape[1], -2.0),
    }
    state = params, optimizer.init(params), random.key(0)
    return lambda limit: jax.block_until_ready(advance(*state, limit, x, y))


def ours(model, args, kwargs, num_particles, optimizer):
    guided = vr.guide(vr.MeanField(), objective=vr.ELBO(num_particles))(model)
    engine, task = vr.Guided.backend.engine, Task(guided.model, guided.guide, guided.objective, guided.name)
    data = engine.data(args, kwargs)
    engine.check(task, data, lambda key: guided.start_at(data, key), random.key(0), known=False)
    program = engine.program(task, data, optimizer, num_steps=1_000, watched=False)
    state = program.init(random.key(0), guided.start_at(data, random.key(0)), data)
    return lambda limit: program.advance(state, limit)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-particles", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    model = get("breast_cancer")
    args, kwargs = model.data()
    args, kwargs = jax.tree.map(jnp.asarray, (args, kwargs))
    x, y = (*args, *kwargs.values())
    optimizer = optax.adam(1e-2)
    loops = {
        "ours": ours(model.model(vr.host), args, kwargs, options.num_particles, optimizer),
        "by hand": by_hand(x, jnp.asarray(y, float), 1.0, options.num_particles, optimizer),
    }
    seconds = {name: [] for name in loops}
    for loop in loops.values():
        loop(options.steps)
    for _ in range(options.rounds):
        for name, loop in loops.items():
            begun = time.perf_counter()
            loop(options.steps)
            seconds[name].append((time.perf_counter() - begun) / options.steps)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["by hand"], strict=True)]
    result = {
        "command": "python benchmarks/step.py",
        "model": "breast_cancer",
        "num_particles": options.num_particles,
        "microseconds_per_step": {n: 1e6 * statistics.median(s) for n, s in seconds.items()},
        "ratio_median": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "jax": jax.__version__,
        "machine": f"{platform.machine()}, CPU",
    }
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
