"""Seconds a step in Pyro: the MeanField guide against hand-written torch loops with the same estimator.

The logistic regression (31 normal latents) and the digits factorization (29,776 gamma latents,
implicit gradients), float32, the same particles and Adam; timed in turn in one run, and the
median of the ratios is the figure. A fit captures its step after two, and compiles the capture if
it has long to go; both are timed, without what capturing and compiling take.

    python benchmarks/step_pyro.py [--out benchmarks/results/step_pyro.json]
"""

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path

import torch

import vi_reparam_pyro as vr
import vi_reparam_pyro.engine.gradient as steps
from vi_reparam.backend.engine import Task
from vi_reparam_models import get

LOG_2PI = math.log(2.0 * math.pi)


def logistic_by_hand(x, y, num_particles):
    """Bernoulli logits, normal priors, a diagonal normal guide, written out."""

    def log_normal(value, scale):
        return -0.5 * (value / scale) ** 2 - math.log(scale) - 0.5 * LOG_2PI

    size = x.shape[1] + 1
    loc = torch.zeros(size, requires_grad=True)
    log_scale = torch.full((size,), -2.0, requires_grad=True)
    optimizer = torch.optim.Adam([loc, log_scale], lr=0.01)

    def step():
        optimizer.zero_grad(set_to_none=True)
        eps = torch.randn(num_particles, size)
        z = loc + log_scale.exp() * eps
        logits = z[:, :1] + z[:, 1:] @ x.T
        likelihood = (y * logits - torch.nn.functional.softplus(logits)).sum(1)
        entropy = (log_scale - log_normal(eps, 1.0)).sum(1)
        loss = -(likelihood + log_normal(z, 1.0).sum(1) + entropy).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def digits_by_hand(counts, components, num_particles):
    """Poisson counts, gamma priors and gamma guides on both factors, torch's own implicit gradients."""
    rows, columns = counts.shape

    def leaf(*shape):
        return torch.zeros(shape, requires_grad=True)

    leaves = [leaf(rows, components), leaf(rows, components), leaf(components, columns), leaf(components, columns)]
    optimizer = torch.optim.Adam(leaves, lr=0.01)
    prior = torch.distributions.Gamma(0.3, 0.3)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        factors = []
        for shape, mean in (leaves[:2], leaves[2:]):
            a, m = shape.exp(), mean.exp()
            q = torch.distributions.Gamma(a, a / m)
            z = q.rsample((num_particles,))
            loss = loss - (prior.log_prob(z) - q.log_prob(z)).sum() / num_particles
            factors.append(z)
        rate = factors[0] @ factors[1]
        loss = loss - torch.distributions.Poisson(rate).log_prob(counts).sum() / num_particles
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def ours(model, args, kwargs, num_particles, estimators, worth_compiling):
    """The steps of a fit, once captured; compiled too if `worth_compiling` is zero seconds."""
    steps.WORTH_COMPILING, steps.WORTH_ROLLING = worth_compiling, math.inf
    guided = vr.guide(vr.MeanField(), objective=vr.ELBO(num_particles), estimators=estimators)(model)
    engine, task = vr.Guided.backend.engine, Task(guided.model, guided.guide, guided.objective, guided.name)
    data = engine.data(args, kwargs)
    adam = engine.optimizer(lambda leaves: torch.optim.Adam(leaves, lr=0.01))
    program = engine.program(task, data, adam, num_steps=10**6, watched=False)
    state = program.init(1, guided.start_at(data, 0), data)

    def run(count):
        program.advance(state, count)

    run(4)
    print(f"  ours: {program.execution}", flush=True)
    return run


def seconds_per_step(run, count):
    begun = time.perf_counter()
    run(count)
    return (time.perf_counter() - begun) / count


def measure(loops, count, rounds):
    seconds = {name: [] for name in loops}
    for run in loops.values():
        run(2)
    for _ in range(rounds):
        for name, run in loops.items():
            seconds[name].append(seconds_per_step(run, count))
    base = seconds["by hand"]
    ratios = {n: [a / b for a, b in zip(s, base, strict=True)] for n, s in seconds.items() if n != "by hand"}
    return {
        "microseconds_per_step": {n: 1e6 * statistics.median(s) for n, s in seconds.items()},
        "ratio_median": {n: statistics.median(r) for n, r in ratios.items()},
        "ratio_quartiles": {n: statistics.quantiles(r, n=4)[::2] for n, r in ratios.items()},
    }


def repeated(step):
    def run(count):
        for _ in range(count):
            step()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-particles", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.manual_seed(0)
    results = {}
    for name, count in (("breast_cancer", 300), ("digits", 10)):
        entry = get(name)
        args, kwargs = entry.data()
        args = tuple(torch.as_tensor(a) if hasattr(a, "shape") else a for a in args)
        kwargs = {k: torch.as_tensor(v) if hasattr(v, "shape") else v for k, v in kwargs.items()}
        model = entry.model(vr.host)
        if name == "breast_cancer":
            x, y = (*args, *kwargs.values())
            by_hand = logistic_by_hand(x.float(), y.float(), options.num_particles)
        else:
            counts = next(v for v in (*args, *kwargs.values()) if hasattr(v, "shape"))
            by_hand = digits_by_hand(counts.float(), 16, options.num_particles)
        estimators = vr.Implicit() if name == "digits" else None
        loops = {
            "captured": ours(model, args, kwargs, options.num_particles, estimators, 1e9),
            "compiled": ours(model, args, kwargs, options.num_particles, estimators, 0.0),
            "by hand": repeated(by_hand),
        }
        results[name] = measure(loops, count, options.rounds)
        print(name, json.dumps(results[name], indent=2), flush=True)
    record = {
        "command": "python benchmarks/step_pyro.py",
        "num_particles": options.num_particles,
        "models": results,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} CPU threads",
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
