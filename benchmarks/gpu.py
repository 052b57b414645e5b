"""What a GPU does here, against its goals: samplers, and fits in both frameworks. Ends with 1 where one is missed.

Each part runs in a process of its own, so that the two frameworks share no memory and a first fit is a first fit. All
parts but those of `--sde` take less than five minutes together; a part that is not done by then is a goal missed.

On a machine that has a GPU and this folder, and no more, give wheels of all that is needed: an environment is made of
them in a temporary folder, without a network. Without a GPU it says so, and ends with 2; `--tiny` then runs everything
at sizes that mean nothing, to see that it runs.

    python benchmarks/gpu.py [--wheels FOLDER] [--sde FOLDER] [--tiny] [--only PART ...] [--out FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUDGET = 290.0  # seconds of all parts together
SDE_BUDGET = 300.0  # of each target


def row(work, seconds, *, peer=None, at_most=None, seconds_at_most=None, note=""):
    """A line of the table.

    Args:
        work: what was done, in `seconds`.
        peer: (name, seconds) of what it is compared with.
        at_most: the goal for ours over the peer's.
        seconds_at_most: the goal for the seconds themselves.
    """
    ratio = None if peer is None else seconds / peer[1]
    met = not (at_most is not None and ratio > at_most) and not (
        seconds_at_most is not None and seconds > seconds_at_most
    )
    name, theirs = peer or (None, None)
    goal = f"{at_most} x {name}" if at_most is not None else seconds_at_most and f"{seconds_at_most} s"
    return {
        "work": work,
        "seconds": seconds,
        "peer": name,
        "theirs": theirs,
        "ratio": ratio,
        "goal": goal,
        "met": met,
        "note": note,
    }


def median(run, repeats=7):
    """Seconds of a run, the median of a few after two that compile and measure."""
    times = []
    for i in range(repeats + 2):
        begun = time.perf_counter()
        run()
        times += [time.perf_counter() - begun] * (i > 1)
    return statistics.median(times)


def jax_samplers(tiny):
    """Gammas and Dirichlets in JAX, against jax's own and the floor, which is their noise alone."""
    import jax
    import jax.numpy as jnp

    import vi_reparam_numpyro as vr
    from vi_reparam_numpyro.ops import retry

    if jax.default_backend() != "gpu" and not tiny:
        return None
    num = 20_000 if tiny else 10_000_000
    key, rows = jax.random.key(0), []

    def timed(draw, *args):
        compiled = jax.jit(draw)
        return median(lambda: jax.block_until_ready(compiled(key, *args)), 3 if tiny else 7)

    def with_gradient(draw):
        return lambda key, a: jax.value_and_grad(lambda a: draw(key, a).sum())(a)

    def floor(key, a):
        first, second, third = jax.random.split(key, 3)
        uniforms = jax.random.uniform(second, a.shape), jax.random.uniform(third, a.shape)
        return jax.random.normal(first, a.shape), uniforms

    a = jnp.exp(jax.random.normal(key, (num,), jnp.float32))
    least = timed(floor, a)
    rows.append(row(f"JAX, {num:,} gammas", timed(vr.random.gamma, a), peer=("the floor", least), at_most=2.2))
    found = timed(with_gradient(vr.random.gamma), a)
    way = retry.CHOICE._found.get(retry.device_kind(), retry.PLAIN)
    rows.append(row(f"JAX, {num:,} gammas with gradient", found, peer=("the floor", least), at_most=4.0, note=way))
    for size in (64, 4_096) if tiny else (64, 4_096, 65_536, num):
        few = a[:size]
        ours, theirs = (timed(with_gradient(draw), few) for draw in (vr.random.gamma, jax.random.gamma))
        rows.append(row(f"JAX, {size:,} gammas with gradient", ours, peer=("jax", theirs), at_most=1.0))
    matrix = jnp.exp(jax.random.normal(key, (100, 10) if tiny else (10_000, 100), jnp.float32))
    ours, theirs = (timed(with_gradient(draw), matrix) for draw in (vr.random.dirichlet, jax.random.dirichlet))
    rows.append(row(f"JAX, Dirichlet {matrix.shape} with gradient", ours, peer=("jax", theirs), at_most=1.0))
    return rows


def torch_samplers(tiny):
    """Gammas in torch, against torch's own."""
    import torch

    import vi_reparam_pyro as vr

    if not torch.cuda.is_available() and not tiny:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    num = 20_000 if tiny else 10_000_000
    a = torch.exp(torch.randn(num, device=device))  # torch's default device stays memory

    def timed(run):
        def whole():
            run()
            if device == "cuda":
                torch.cuda.synchronize()

        return median(whole, 3 if tiny else 7)

    def gradient(draw):
        moving = a.clone().requires_grad_()

        def run():
            moving.grad = None
            draw(moving).sum().backward()

        return run

    rows = [
        row(
            f"torch, {num:,} gammas",
            timed(lambda: vr.random.gamma(a)),
            peer=("torch", timed(lambda: torch._standard_gamma(a))),
            at_most=1.0,
        )
    ]
    ours, theirs = (timed(gradient(draw)) for draw in (vr.random.gamma, torch._standard_gamma))
    rows.append(row(f"torch, {num:,} gammas with gradient", ours, peer=("torch", theirs), at_most=1.0))
    return rows


def pyro_fits(tiny):
    """Mean fields in Pyro: seconds of 300 steps after capture, on the GPU and on the CPU."""
    import torch

    import vi_reparam_pyro as vr
    from vi_reparam_models import get

    if not torch.cuda.is_available() and not tiny:
        return None
    there = "cuda" if torch.cuda.is_available() else "cpu"
    few, many = (3, 6) if tiny else (150, 450)
    rows = []

    def seconds(name, device, scale=1):
        """Of 300 steps, and how they were taken: what two fits of unequal length differ by."""
        model = get(name)
        args, kwargs = model.data()
        with torch.device(device):
            guided = vr.guide(vr.MeanField())(model.model(vr.host))
            times = []
            for steps in (few, few, many // scale + few):  # the first fit also chooses its estimators
                begun = time.perf_counter()
                posterior = guided.fit(*args, **kwargs, num_steps=steps, progress=False)
                times.append(time.perf_counter() - begun)
        return (times[2] - times[1]) / (many // scale) * 300, posterior.record["steps"]

    for name, times_faster, at_most in (
        ("breast_cancer", 1.0, 2.0),
        ("eight_schools", None, 2.0),
        ("digits", 20.0, None),
    ):
        if tiny and name == "digits":
            continue
        ours, way = seconds(name, there)
        theirs = None if times_faster is None else ("the CPU", seconds(name, "cpu", 1 if name != "digits" else 15)[0])
        goal = None if times_faster is None else 1.0 / times_faster
        rows.append(row(f"Pyro, {name}, 300 steps", ours, peer=theirs, at_most=goal, seconds_at_most=at_most, note=way))
    return rows


def numpyro_fits(tiny):
    """Fits in NumPyro, the first of a process."""
    import jax

    import vi_reparam_numpyro as vr
    from vi_reparam_models import get

    if jax.default_backend() != "gpu" and not tiny:
        return None
    rows = []
    for name, family, options, goal in (
        ("digits", vr.MeanField(), {"num_steps": 800}, 15.0),
        ("eight_schools", None, {}, None),
    ):
        if tiny:
            name, family, options = "eight_schools", vr.MeanField(), {"num_steps": 20}
        model = get(name)
        args, kwargs = model.data()
        begun = time.perf_counter()
        vr.guide(family)(model.model(vr.host)).fit(*args, **kwargs, **options, progress=False)
        told = f"NumPyro, {name}, {'first fit by the default' if family is None else 'first fit, mean field'}"
        rows.append(row(told, time.perf_counter() - begun, seconds_at_most=goal))
    return rows


SDE_GOALS = {"funnel": -0.10, "seeds": -73.44, "credit": -585.18}


def sde_fits(tiny, folder, target):
    """An SDE guide at the sizes of a GPU: 64 steps, a mixture base."""
    sys.path.insert(0, str(HERE))
    import sde as targets

    import vi_reparam_numpyro as vr

    model, args = targets.TARGETS[target](Path(folder))
    begun = time.perf_counter()
    family = vr.SDE(num_steps=4 if tiny else 64, base="mixture")
    posterior = vr.guide(family)(model).fit(*args, num_steps=20 if tiny else 6_000, progress=False)
    elbo, error = posterior.elbo(200 if tiny else 20_000)
    found = row(f"SDE, {target}", time.perf_counter() - begun, seconds_at_most=SDE_BUDGET)
    goal = SDE_GOALS[target]
    return [
        {
            **found,
            "goal": f"{goal} in {SDE_BUDGET} s",
            "met": found["met"] and elbo >= goal,
            "note": f"ELBO {elbo:.3f} ± {error:.3f}",
        }
    ]


PARTS = {
    "jax_samplers": jax_samplers,
    "torch_samplers": torch_samplers,
    "pyro_fits": pyro_fits,
    "numpyro_fits": numpyro_fits,
}


def environment(wheels):
    """A Python with all that is needed from a folder of wheels, without a network."""
    place = Path(tempfile.mkdtemp(prefix="vi-reparam-gpu-"))
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    python = place / "bin" / "python"
    given = [str(path) for path in sorted(Path(wheels).glob("*.whl"))]
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", *given], check=True)
    return str(python)


def run_part(python, arguments, seconds):
    """The rows of a part, None where there is no GPU for it, or a row that says why it failed."""
    paths = [str(ROOT), str(ROOT / "backends"), str(ROOT / "models"), os.environ.get("PYTHONPATH", "")]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [python, __file__, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(seconds, 1.0), env=surroundings, check=False
        )
    except subprocess.TimeoutExpired:
        return [{**row(arguments[1], seconds), "met": False, "note": "not done in time"}]
    if done.returncode:
        return [{**row(arguments[1], 0.0), "met": False, "note": done.stderr.strip().splitlines()[-1][:200]}]
    return json.loads(done.stdout.strip().splitlines()[-1])


def card():
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def show(found):
    for r in found:
        against = "" if r["ratio"] is None else f"{r['ratio']:8.2f} x {r['peer']} ({r['theirs'] * 1e3:.2f} ms)"
        goal = f"goal {r['goal']}" if r["goal"] else "no goal"
        state = "met" if r["met"] else "MISSED"
        print(
            f"{r['work']:<46}{r['seconds'] * 1e3:12.2f} ms {against:<36} {goal:<22} {state:<7} {r['note']}", flush=True
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, from which an environment is made")
    parser.add_argument(
        "--sde", type=Path, help="a folder with the targets' data of benchmarks/sde.py: five minutes each"
    )
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing, also without a GPU")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.part:
        name, _, target = given.part.partition(":")
        made = sde_fits(given.tiny, given.sde, target) if target else PARTS[name](given.tiny)
        print(json.dumps(made))
        return 0
    python = sys.executable if given.wheels is None else environment(given.wheels)
    print(f"card: {card() or 'none found'}", flush=True)
    begun, rows, without = time.perf_counter(), [], []
    tiny = ["--tiny"] * given.tiny
    for name in given.only:
        found = run_part(python, ["--part", name, *tiny], BUDGET - (time.perf_counter() - begun))
        without += [name] * (found is None)
        show(found or [])
        rows += found or []
    for target in SDE_GOALS if given.sde else ():
        found = run_part(python, ["--part", f"sde:{target}", "--sde", str(given.sde), *tiny], SDE_BUDGET + 60.0)
        show(found or [])
        rows += found or []
    if given.out:
        given.out.write_text(json.dumps({"card": card(), "tiny": given.tiny, "rows": rows}, indent=1) + "\n")
    if without:
        print(f"no GPU is there for {', '.join(without)}: nothing was measured; --tiny runs it on a CPU")
    missed = [r for r in rows if not r["met"]]
    if given.tiny:
        print("sizes that mean nothing: no goal counts")
        return 1 if any(r["note"] and not r["met"] and r["seconds"] == 0.0 for r in missed) else 0
    return 1 if missed else 2 if without else 0


if __name__ == "__main__":
    sys.exit(main())
