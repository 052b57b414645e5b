"""Steps a second of the SDE guide on the funnel, in both backends, against a hand-written jax loop.

128 paths of 32 steps, float32, full base, learned variance, path gradient, gated gradient of log p, recomputed steps,
clipped Adam: the loop by hand computes the same, on whole batches and without any effect handler. The contenders are
timed in turn in one run; medians and ratios are the figures. Memory is what XLA sets aside for one gradient of 2,000
paths of 128 steps, recomputed and plain.

    python benchmarks/sde_step.py [--out benchmarks/results/sde_step.json]
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import torch
from jax import lax, random

import vi_reparam_numpyro as vr
import vi_reparam_pyro as vr_pyro
from vi_reparam.backend.engine import Task
from vi_reparam.fit.optimizers import OptimizerPlan, RateGroup
from vi_reparam.sde import Constant, kernel_variances, network, noising
from vi_reparam.sde.solver import tables
from vi_reparam_numpyro.engine.optimizers import made

sys.path.insert(0, str(Path(__file__).parent))
from sde import TARGETS

LOG_2PI = math.log(2.0 * math.pi)
SIZE, NUM_STEPS, NUM_PATHS, RATE = 10, 32, 128, 0.005
PLAN = OptimizerPlan((RateGroup(RATE, clip=10.0),))


def log_funnel(z):
    """Of the rows of z."""
    v, x = z[:, 0], z[:, 1:]
    scale = jnp.exp(0.5 * v)
    of_v = -0.5 * (v / 3.0) ** 2 - math.log(3.0) - 0.5 * LOG_2PI
    return of_v + jnp.sum(-0.5 * (x / scale[:, None]) ** 2 - jnp.log(scale)[:, None] - 0.5 * LOG_2PI, axis=1)


def by_hand(optimizer):
    """The same guide and bound, written out for this one case."""
    family = vr.SDE()
    grid, schedule, mlp = family.schedule.grid(NUM_STEPS), family.schedule, family.network
    table = tables(schedule, grid, family.solver, Constant(1.0))
    back = [noising(schedule, low, high) for low, high in pairwise(grid)]
    start_sd = jnp.sqrt(jnp.asarray(kernel_variances("learned", schedule, grid, Constant(1.0))))[:, None]
    from_x, from_r, from_g = network.coefficients("data", schedule, grid[:-1])
    features = jnp.asarray(network.fourier((grid[0], grid[-1]), grid[:-1], mlp.frequencies))
    rows = {
        "keep": jnp.asarray(table.keep),
        "weight": jnp.asarray([w[0] for w in table.predictor]),
        "back": jnp.asarray([b.keep for b in back]),
        "back_sd": jnp.asarray([b.variance**0.5 for b in back]),
        "x": jnp.asarray(from_x),
        "r": jnp.asarray(from_r),
        "g": jnp.asarray(from_g),
    }
    constant = -0.5 * SIZE * LOG_2PI + SIZE * sum(0.5 * math.log(b.variance) for b in back)
    gelu = jax.nn.gelu

    def residual(p, x, hidden):
        x = x / jnp.sqrt(1.0 + jnp.square(x / network.REACH))
        h = gelu(x @ p["in"] + hidden)
        h = gelu(h @ p["hidden1"] + p["bias1"])
        return h @ p["out"] + p["bias_out"]

    def by_lambda(p):
        return features @ p["time"] + p["bias0"], gelu(features @ p["gate_time"]) @ p["gate_out"]

    def to_latent(p, x):
        matrix = jnp.tril(p["lower"], -1) + jnp.eye(SIZE)
        return p["loc"] + jnp.exp(p["log_scale"]) * (x @ matrix.T)

    def loss(p, key):
        fixed = jax.tree.map(lax.stop_gradient, p)
        first, second = random.split(key)
        x = random.normal(first, (NUM_PATHS, SIZE))
        noise = random.normal(second, (NUM_STEPS, NUM_PATHS, SIZE))
        pull = jax.grad(lambda at: jnp.sum(log_funnel(to_latent(fixed, at))))
        (hidden, gate), (hidden_fixed, gate_fixed) = by_lambda(p), by_lambda(fixed)
        sd = start_sd * jnp.exp(p["log_deviation"])
        xs = {**rows, "noise": noise, "sd": sd, "hidden": hidden, "gate": gate}
        xs |= {"hidden_fixed": hidden_fixed, "gate_fixed": gate_fixed}

        def body(carry, row):
            x, log_q = carry
            at = lax.stop_gradient(row["x"] * x)
            found = pull(at) + at
            found = jnp.clip(jnp.where(jnp.isfinite(found), found, 0.0), -mlp.clip, mlp.clip)
            given = lax.stop_gradient(row["g"] * found)
            data = row["x"] * x + row["r"] * residual(p, x, row["hidden"]) + row["gate"] * given
            data_fixed = row["x"] * x + row["r"] * residual(fixed, x, row["hidden_fixed"]) + row["gate_fixed"] * given
            wide = lax.stop_gradient(row["sd"])
            new = row["keep"] * x + row["weight"] * data + row["sd"] * row["noise"]
            scaled = (new - row["keep"] * x - row["weight"] * data_fixed) / wide
            behind = (x - row["back"] * new) / row["back_sd"]
            log_q = log_q + jnp.sum(0.5 * behind**2 - 0.5 * scaled**2 - jnp.log(wide), axis=1)
            return (new, log_q), None

        start = x, constant - 0.5 * jnp.sum(x * x, axis=1)
        (x, log_q), _ = lax.scan(jax.checkpoint(body), start, xs)
        return jnp.mean(log_q - jnp.sum(fixed["log_scale"]) - log_funnel(to_latent(p, x)))

    def step(carry):
        i, limit, p, state, key, losses = carry
        key, now = random.split(key)
        value, grads = jax.value_and_grad(loss)(p, now)
        updates, state = optimizer.update(grads, state, p)
        return i + 1, limit, jax.tree.map(jnp.add, p, updates), state, key, losses.at[i].set(value)

    @jax.jit
    def advance(p, state, key, limit):
        return lax.while_loop(lambda c: c[0] < c[1], step, (0, limit, p, state, key, jnp.zeros(1024)))[2:]

    params = {"loc": jnp.zeros(SIZE), "log_scale": jnp.full(SIZE, math.log(0.1)), "lower": jnp.zeros((SIZE, SIZE))}
    params["log_deviation"] = jnp.zeros((NUM_STEPS, SIZE))
    for number, (name, (shape, deviation)) in enumerate(mlp.shapes(SIZE).items()):
        params[name] = deviation * random.normal(random.key(number), shape)
    state = params, optimizer.init(params), random.key(0)
    return lambda count: jax.block_until_ready(advance(*state, count))


def in_numpyro():
    guided = vr.guide(vr.SDE(warm_start=0), objective=vr.ELBO(NUM_PATHS))(TARGETS["funnel"](None)[0])
    program, state = begun(guided)
    return lambda count: program.advance(state, count)


def begun(guided):
    """The steps of a fit of 1,000, and the state before the first of them."""
    engine, task = guided.backend.engine, Task(guided.model, guided.guide, guided.objective, guided.name)
    data, key = engine.data((), {}), engine.key(0)
    engine.check(task, data, lambda key: guided.start_at(data, key), key, known=False)
    program = engine.program(task, data, engine.optimizer(PLAN), num_steps=1_000, watched=False)
    return program, program.init(key, guided.start_at(data, key), data)


def funnel_in_pyro():
    import pyro
    import pyro.distributions as dist

    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(9), torch.exp(0.5 * v)).to_event(1))


def in_pyro():
    """The steps of a fit of 1,000, once they are captured and the turns of their loops compiled."""
    guided = vr_pyro.guide(vr_pyro.SDE(warm_start=0), objective=vr_pyro.ELBO(NUM_PATHS))(funnel_in_pyro)
    program, state = begun(guided)

    def run(count):
        program.advance(state, count)

    run(4)
    print("pyro:", program.execution, flush=True)
    return run


def memory():
    """Bytes that one gradient needs beside its arguments and results."""
    found = {}
    for checkpoint in (True, False):
        family = vr.SDE(warm_start=0, num_steps=128, checkpoint=checkpoint)
        guided = vr.guide(family, objective=vr.ELBO(2_000))(TARGETS["funnel"](None)[0])
        params = guided.start()

        def loss(p, key, guided=guided):
            return guided.objective.loss(key, p, guided.model, guided.guide)

        compiled = jax.jit(jax.grad(loss)).lower(params, random.key(0)).compile()
        found["recomputed" if checkpoint else "kept"] = compiled.memory_analysis().temp_size_in_bytes
    return {"bytes": found, "ratio": found["kept"] / found["recomputed"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="of a contender in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    result = {
        "command": "python benchmarks/sde_step.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, shared with other work",
        "jax": jax.__version__,
        "torch": torch.__version__,
        "num_paths": NUM_PATHS,
        "num_steps": NUM_STEPS,
        "memory": memory(),
    }
    print(json.dumps(result["memory"]), flush=True)
    contenders = {
        "by hand": by_hand(made(PLAN)),
        "numpyro": in_numpyro(),
        "pyro": in_pyro(),
    }
    seconds = {name: [] for name in contenders}
    for run in contenders.values():
        run(4)
    for _ in range(options.rounds):
        for name, run in contenders.items():
            count = options.steps if name != "pyro" else max(2, options.steps // 2)  # about as long a turn for each
            begun = time.perf_counter()
            run(count)
            seconds[name].append((time.perf_counter() - begun) / count)
    result["load_average"] = os.getloadavg()
    result["steps_per_second"] = {name: 1.0 / statistics.median(s) for name, s in seconds.items()}
    result["best_steps_per_second"] = {name: 1.0 / min(s) for name, s in seconds.items()}
    for name, base in (("numpyro", "by hand"), ("pyro", "numpyro")):
        ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
        result[f"{name} over {base}"] = {"median": statistics.median(ratios), "quartiles": statistics.quantiles(ratios)}
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
