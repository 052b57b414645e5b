"""Nanoseconds a draw: the samplers of `vr.random` against those of jax, torch and NumPy.

All contenders of a row are timed in turn, round after round in one process, in float32; a ratio is
the median over rounds of a peer's time over ours. The floor is the noise of one proposal and one
boost, a normal and two uniforms a draw, from jax's own generator. TensorFlow Probability takes part
where it imports (with jax 0.10 that is tfp-nightly with dm-tree; 0.25 does not run).

XLA's threads and OpenMP's share the cores here, and OpenMP's spin for a while after their work: a
pause before each turn lets them fall asleep. (OMP_WAIT_POLICY=passive would do it too, but torch then
wakes its threads for each operator, which doubles the time of whatever has several.)

    python benchmarks/samplers.py [--draws 1000000] [--rounds 15] [--out benchmarks/results/samplers.json]
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import vi_reparam_numpyro as vr

PAUSE = 0.02  # seconds in which torch's threads fall asleep
SLOW_EVERY = 5  # rounds between two turns of a contender that takes seconds

LIMITS = {  # row, whose time over whose: at least
    "draw": (
        ("jax", "ours", 20.0),
        ("torch", "ours", 1.3),
        ("floor", "ours", 1.0 / 3.5),
        ("torch", "ours, torch", 1.0),
    ),
    "gradient": (("jax", "ours", 60.0), ("torch", "ours", 1.0), ("torch", "ours, torch", 1.0)),
    "dirichlet": (("jax", "ours", 30.0), ("torch", "ours, torch", 1.0)),
    "beta": (("torch", "ours, torch", 1.0),),
    "small": (("jax", "ours", 1.0),),
}


def of_jax(f, *args):
    compiled = jax.jit(f)
    return lambda: jax.block_until_ready(compiled(*args))


def with_gradient(draw):
    return lambda key, a: jax.value_and_grad(lambda a: draw(key, a).sum())(a)


def optional(name, left_out):
    """A module, or None where it does not import: then `left_out` says why."""
    import importlib

    try:
        return importlib.import_module(name)
    except Exception as error:  # TensorFlow Probability may stop at anything in a newer jax
        left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        return None


def tfp_contender(left_out):
    name = "tensorflow_probability.substrates.jax"
    tfp = optional(name, left_out)
    if tfp is None:
        return None

    def of_tfp(key, a):
        return tfp.distributions.Gamma(a, jnp.ones_like(a)).sample(seed=key)

    try:
        jax.block_until_ready(jax.jit(with_gradient(of_tfp))(jax.random.key(0), jnp.ones(8)))
    except Exception as error:
        left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        return None
    return of_tfp


def torch_contenders(torch, a, left_out):
    plain, moving = torch.tensor(np.asarray(a)), torch.tensor(np.asarray(a), requires_grad=True)
    other = plain.flip(0)

    def gradient(draw):
        def run():
            moving.grad = None
            draw(moving).sum().backward()

        return run

    def dirichlet(a):
        return torch.distributions.Dirichlet(a).rsample()

    def beta(a, b):
        return torch.distributions.Beta(a, b, validate_args=False).rsample()

    found = {"draw": {"torch": lambda: torch._standard_gamma(plain)}, "gradient": {}, "dirichlet": {}, "beta": {}}
    found["gradient"]["torch"] = gradient(torch._standard_gamma)
    found["dirichlet"]["torch"] = gradient(dirichlet)
    found["beta"]["torch"] = gradient(lambda a: beta(a, other))
    ours = optional("vi_reparam_pyro", left_out)
    if ours is not None:
        found["draw"]["ours, torch"] = lambda: ours.random.gamma(plain)
        found["gradient"]["ours, torch"] = gradient(ours.random.gamma)
        found["dirichlet"]["ours, torch"] = gradient(ours.random.dirichlet)
        found["beta"]["ours, torch"] = gradient(lambda a: ours.random.beta(a, other))
    return found


def rows(draws, left_out):
    key = jax.random.key(0)
    a = jnp.exp(jax.random.normal(key, (draws,), jnp.float32))
    matrix = jnp.exp(jax.random.normal(key, (1_000, 100), jnp.float32))

    def floor(key):
        first, second, third = jax.random.split(key, 3)
        uniform = jax.random.uniform(second, (draws,)), jax.random.uniform(third, (draws,))
        return jax.random.normal(first, (draws,)), uniform

    generator = np.random.default_rng(0)
    held = np.asarray(a)
    table = {
        "draw": {
            "ours": of_jax(vr.random.gamma, key, a),
            "floor": of_jax(floor, key),
            "jax": of_jax(jax.random.gamma, key, a),
            "numpy": lambda: generator.standard_gamma(held, dtype=np.float32),
        },
        "gradient": {
            "ours": of_jax(with_gradient(vr.random.gamma), key, a),
            "floor": of_jax(floor, key),
            "jax": of_jax(with_gradient(jax.random.gamma), key, a),
        },
        "dirichlet": {
            "ours": of_jax(with_gradient(vr.random.dirichlet), key, matrix),
            "jax": of_jax(with_gradient(jax.random.dirichlet), key, matrix),
        },
        "beta": {
            "ours": of_jax(with_gradient(lambda key, a: vr.random.beta(key, a, a[::-1])), key, a),
            "jax": of_jax(with_gradient(lambda key, a: jax.random.beta(key, a, a[::-1])), key, a),
        },
        "small": {
            "ours": of_jax(with_gradient(vr.random.gamma), key, a[:64]),
            "jax": of_jax(with_gradient(jax.random.gamma), key, a[:64]),
        },
    }
    torch = optional("torch", left_out)
    if torch is not None:
        torch.manual_seed(0)
        found = torch_contenders(torch, a, left_out)
        found["dirichlet"] = torch_contenders(torch, matrix, left_out)["dirichlet"]
        for name, contenders in found.items():
            table[name] |= contenders
    of_tfp = tfp_contender(left_out)
    if of_tfp is not None:
        table["draw"]["tfp"] = of_jax(of_tfp, key, a)
        table["gradient"]["tfp"] = of_jax(with_gradient(of_tfp), key, a)
    sizes = {"draw": draws, "gradient": draws, "dirichlet": matrix.size, "beta": draws, "small": 64}
    return table, sizes


def measure(contenders, rounds):
    """Seconds of every round, None where a slow contender sat one out."""
    first = {}
    for name, run in contenders.items():  # compiled, and warm
        run()
        start = time.perf_counter()
        run()
        first[name] = time.perf_counter() - start
    seconds = {name: [] for name in contenders}
    for i in range(rounds):
        for name, run in contenders.items():
            if first[name] > 0.3 and i % SLOW_EVERY:
                seconds[name].append(None)
                continue
            time.sleep(PAUSE if "torch" in contenders else 0.0)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds, peer, mine):
    """The median over rounds of a peer's time over another's, of the rounds that both took part in."""
    pairs = zip(seconds[peer], seconds[mine], strict=True)
    return statistics.median(p / m for p, m in pairs if p is not None and m is not None)


def compile_seconds(draws):
    """Of a jitted gamma's gradient, traced and compiled afresh; medians of nine, in turn."""
    a, key = jnp.ones(draws), jax.random.key(0)
    taken = {"ours": [], "jax": []}
    for _ in range(9):
        for name, draw in (("ours", vr.random.gamma), ("jax", jax.random.gamma)):
            jax.clear_caches()
            start = time.perf_counter()
            jax.jit(with_gradient(draw)).lower(key, a).compile()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def picture(result, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    names = list(result["rows"])
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.0), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        row = result["rows"][name]["nanoseconds_per_draw"]
        order = sorted(row, key=lambda key: -row[key])
        colors = ["C1" if key.startswith("ours") else "C7" if key == "floor" else "C0" for key in order]
        axis.barh(order, [row[key] for key in order], color=colors)
        axis.set(xscale="log", xlim=(min(row.values()) / 3.0, None), title=name, xlabel="ns a draw")
        axis.xaxis.set_minor_formatter(NullFormatter())
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/samplers.json"))
    args = parser.parse_args()
    command = f"python benchmarks/samplers.py --draws {args.draws} --rounds {args.rounds}"
    result = {"command": command, "draws": args.draws, "rounds": args.rounds, "rows": {}}
    result |= {"jax": jax.__version__, "numpy": np.__version__, "left_out": {}, "limits": []}
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} CPUs, float32"
    table, sizes = rows(args.draws, result["left_out"])
    print(f"{'':12} {'':12} {'ns a draw':>10} {'x ours':>8}")
    for name, contenders in table.items():
        seconds = measure(contenders, args.rounds * (10 if name == "small" else 1))
        row = {"nanoseconds_per_draw": {}, "times_ours": {}}
        for who, times in seconds.items():
            row["nanoseconds_per_draw"][who] = statistics.median(t for t in times if t is not None) / sizes[name] * 1e9
            row["times_ours"][who] = ratio(seconds, who, "ours")
            print(f"{name:12} {who:12} {row['nanoseconds_per_draw'][who]:10.1f} {row['times_ours'][who]:8.2f}")
        result["rows"][name] = row
        for peer, mine, wanted in LIMITS[name]:
            if peer in seconds and mine in seconds:
                found = ratio(seconds, peer, mine)
                result["limits"].append({"row": name, "ratio": f"{peer} / {mine}", "is": found, "at_least": wanted})
    for name, why in result["left_out"].items():
        print(f"{name} is left out: {why}")
    for limit in result["limits"]:
        print(f"{limit['row']:12} {limit['ratio']:20} {limit['is']:8.2f}, at least {limit['at_least']:.2f}")
    result["compile_seconds"] = {str(num): compile_seconds(num) for num in (64, args.draws)}
    for num, taken in result["compile_seconds"].items():
        print(f"compiling a gradient of {num} draws: ours {taken['ours']:.2f} s, jax {taken['jax']:.2f} s")
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    picture(result, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
