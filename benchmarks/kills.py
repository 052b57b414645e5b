"""Fits that are killed at random moments and go on from their checkpoint: do they end bit for bit as one that was not?

    python benchmarks/kills.py --kills 40

Each case is a family and a backend. A process fits, saves its state at every look, and is killed (SIGKILL) at a random
moment between its start and its end, every other time between its first saved state and its end; another goes on, until
one ends. Its parameters, losses and draws are compared,
byte by byte, with those of a fit that was never stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CASES = {
    "MeanField": "vr.MeanField()",
    "FullRank": "vr.FullRank()",
    "Structured": "vr.Structured()",
    "Flow": "vr.Flow()",
    "SDE": "vr.SDE(num_steps=4)",
    "Sites": "vr.Sites({'mu': vr.FullRank(), '*': vr.MeanField()})",
    "Escalate": "vr.Escalate(families=(vr.MeanField(), vr.FullRank()))",
}
STEPS = {"FullRank": 600, "Structured": 500, "SDE": 40, "Flow": 40, "Sites": 150, "Escalate": 400}
"""Of some families; the others fit until they have converged."""


def child(backend: str, family: str, folder: Path) -> None:
    """Fit with a checkpoint that is written at every look; print a digest of what came out."""
    import importlib

    from vi_reparam.fit import loop

    loop.SAVE_EVERY, loop.LOOK_EVERY = 0.0, 0.1
    if backend == "numpyro":
        import jax

        jax.config.update("jax_enable_x64", True)
    else:
        import torch

        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1)
    vr = importlib.import_module(f"vi_reparam_{backend}")
    host = vr.host
    dist, array = host.dist, host.array

    def model(sigma, y):
        mu = host.sample("mu", dist.Normal(array(0.0), array(5.0)))
        tau = host.sample("tau", dist.HalfNormal(array(5.0)))
        with host.plate("schools", 8):
            theta = host.sample("theta", dist.Normal(mu, tau))
            host.sample("y", dist.Normal(theta, sigma), obs=y)

    guided = vr.guide(eval(CASES[family], {"vr": vr}))(model)
    data = np.array([15.0, 10, 16, 11, 9, 11, 10, 18]), np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    print("begun", flush=True)
    posterior = guided.fit(*data, num_steps=STEPS.get(family), checkpoint=folder / "state", progress=False)
    found = hashlib.blake2b(np.ascontiguousarray(posterior.losses).tobytes())
    numbers = {**posterior.params, **posterior.draws(10)}
    for name in sorted(numbers):
        value = numbers[name]
        found.update(np.ascontiguousarray(value.detach() if hasattr(value, "detach") else value).tobytes())
    print(f"ended {found.hexdigest()[:32]} {posterior.record['family']} {len(posterior.losses)}", flush=True)


def fit(
    backend: str, family: str, folder: Path, after: float | None = None, *, saved: bool = False
) -> tuple[str, float, float]:
    """A process that fits: what it says at its end (empty: it was killed), when it began, and its seconds in all.

    Args:
        after: seconds from its beginning to its kill; `saved`: from when its state is in the folder on.
    """
    begun, first = time.perf_counter(), 0.0
    command = [sys.executable, __file__, "--child", backend, family, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("begun"):
                first = time.perf_counter() - begun
                break
        while saved and process.poll() is None and not any(folder.iterdir()):
            time.sleep(0.01)
            first = time.perf_counter() - begun
        try:
            rest = process.communicate(timeout=after)[0]
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            rest = ""
    return rest.strip().removeprefix("ended "), first, time.perf_counter() - begun


def case(backend: str, family: str, kills: int, rng: random.Random) -> dict[str, object]:
    """So many kills of fits of one case: how many fits ended with other numbers."""
    with tempfile.TemporaryDirectory() as name:
        whole, first, seconds = fit(backend, family, Path(name))
    with tempfile.TemporaryDirectory() as name:
        _, at, end = fit(backend, family, Path(name), saved=True)
    done = fits = wrong = resumed = 0
    while done < kills:
        with tempfile.TemporaryDirectory() as name:
            folder, said = Path(name), ""
            while not said:
                saved = done % 2 == 1
                wait = rng.uniform(0.0, end - at if saved else seconds - first) if done < kills else None
                said, *_ = fit(backend, family, folder, wait, saved=saved)
                done += not said
                resumed += not said and any(folder.iterdir())
        fits += 1
        wrong += said != whole
    return {
        "backend": backend,
        "family": family,
        "kills": done,
        "kills that left a state": resumed,
        "fits": fits,
        "fits with other numbers": wrong,
        "ended as": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kills.json")
    parser.add_argument("--backends", default="numpyro,pyro")
    parser.add_argument("--families", default=",".join(CASES))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        backend, family, folder = options.child
        child(backend, family, Path(folder))
        return
    cases = [(b, f) for f in options.families.split(",") for b in options.backends.split(",")]
    rng, rows = random.Random(0), []
    for number, (backend, family) in enumerate(cases):
        share = options.kills * (number + 1) // len(cases) - options.kills * number // len(cases)
        rows.append(case(backend, family, share, rng))
        print(json.dumps(rows[-1]), flush=True)
    command = f"python benchmarks/kills.py {' '.join(sys.argv[1:])}".strip()
    options.out.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
