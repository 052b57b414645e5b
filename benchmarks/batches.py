"""Fits to batches of a file: what a step costs and what memory it takes, at ten thousand rows and at a million.

    python benchmarks/batches.py --backend numpyro --out results.json

A regression with 20 columns; its rows lie in a memory-mapped file. The cost of a step is the processor time of 1,000
steps, the difference of two fits, so that what is done once drops out; the least of several rounds, in which both sizes
take turns. Memory is what the process holds of its own, without pages of the file (`RssAnon` of Linux).
`mean_off_sd` and `sd_ratio` compare means and sds with the exact ones, in sds of the posterior.

    python benchmarks/batches.py --backend numpyro --sources --out results.json

fits to the same million rows from memory, from the file, from zarr, a DataLoader and an iterator, three seeds each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

COLUMNS, NUM_STEPS, ROUNDS = 20, 1_000, 4


def own_memory() -> float:
    """Megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def write(folder: Path, num: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows in two files, part by part; what is exact of them: mean and sds."""
    rng, w = np.random.default_rng(num), np.linspace(-1.0, 1.0, COLUMNS)
    shapes = {"x": (num, COLUMNS), "y": (num,)}
    files = {n: np.lib.format.open_memmap(folder / f"{n}{num}.npy", "w+", float, shape) for n, shape in shapes.items()}
    precision, right = np.eye(COLUMNS), np.zeros(COLUMNS)
    for first in range(0, num, 10_000):
        x = rng.normal(size=(min(10_000, num - first), COLUMNS))
        y = x @ w + rng.normal(size=len(x))
        files["x"][first : first + len(x)], files["y"][first : first + len(x)] = x, y
        precision, right = precision + x.T @ x, right + x.T @ y
    return np.linalg.solve(precision, right), np.sqrt(np.diagonal(np.linalg.inv(precision)))


def model_of(vr):
    """w ~ N(0, 1), y ~ N(x w, 1)."""
    host, dist = vr.host, vr.host.dist

    def regression(x, y):
        w = host.sample("w", dist.Normal(host.array(np.zeros(COLUMNS)), host.array(1.0)).to_event(1))
        with host.plate("rows", len(x)):
            host.sample("y", dist.Normal(x @ w, host.array(1.0)), obs=y)

    return regression


def measure(backend: str, sizes: tuple[int, ...]) -> dict:
    """Figures by number of rows."""
    vr = importlib.import_module(f"vi_reparam_{backend}")
    found: dict[int, dict] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exact = {num: write(folder, num) for num in sizes}
        guided = {num: vr.guide(vr.FullRank())(model_of(vr)) for num in sizes}

        def fit(num: int, steps: int):
            mapped = tuple(np.load(folder / f"{n}{num}.npy", mmap_mode="r") for n in ("x", "y"))
            return guided[num].fit(vr.batches(mapped), num_steps=steps, progress=False)

        for num in sizes:  # the smallest first: what is compiled is in its memory
            fit(num, NUM_STEPS // 5)
            found[num] = {"seconds": [], "memory_mb": own_memory()}
        for _ in range(ROUNDS):
            for num in sizes:
                spent = []
                for steps in (NUM_STEPS // 5, NUM_STEPS // 5 + NUM_STEPS):
                    begun = time.process_time()
                    posterior = fit(num, steps)
                    spent.append(time.process_time() - begun)
                found[num]["seconds"].append(spent[1] - spent[0])
                found[num]["memory_mb"] = max(found[num]["memory_mb"], own_memory())
                w = np.asarray(posterior.draws(4_000)["w"])
                off = (w.mean(0) - exact[num][0]) / exact[num][1]
                found[num]["mean_off_sd"] = float(np.abs(off).max())
                found[num]["sd_ratio"] = [float(x) for x in np.quantile(w.std(0) / exact[num][1], [0.0, 1.0])]
        begun = time.perf_counter()
        value, error = posterior.log_evidence()
        found[sizes[-1]]["weights"] = {"seconds": time.perf_counter() - begun, "num": posterior.default_num_weights}
        found[sizes[-1]]["weights"] |= {"khat": float(posterior.khat), "log_evidence": value, "error": error}
    return {
        str(num): {**own, "ms_per_step": min(own["seconds"]) / NUM_STEPS * 1e3, "execution": posterior.record["steps"]}
        for num, own in found.items()
    }


def compare_sources(backend: str, num: int, seeds: int = 3) -> dict:
    """By source of the same rows: how far the posterior is from the exact one, and what memory the fit took."""
    import zarr

    vr = importlib.import_module(f"vi_reparam_{backend}")
    guided, found = vr.guide(vr.FullRank())(model_of(vr)), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mean, sds = write(folder, num)
        mapped = {n: np.load(folder / f"{n}{num}.npy", mmap_mode="r") for n in ("x", "y")}
        stores = {}
        for n, array in mapped.items():
            form = {"shape": array.shape, "dtype": array.dtype, "chunks": (10_000, *array.shape[1:])}
            stores[n] = zarr.create_array(folder / f"{n}.zarr", **form)
            for first in range(0, num, 10_000):
                stores[n][first : first + 10_000] = array[first : first + 10_000]

        def endless():
            rng = np.random.default_rng(0)
            while True:
                for part in 1_000 * rng.permutation(num // 1_000):
                    yield {n: np.array(array[part : part + 1_000]) for n, array in mapped.items()}

        def loader():
            import torch

            rows = [torch.from_numpy(np.load(folder / f"{n}{num}.npy", mmap_mode="c")) for n in mapped]
            data, generator = torch.utils.data.TensorDataset(*rows), torch.Generator().manual_seed(0)
            return torch.utils.data.DataLoader(data, batch_size=1_000, shuffle=True, generator=generator)

        sources = {
            "mapped": lambda: vr.batches(mapped),
            "zarr": lambda: vr.batches(stores),
            "iterator": lambda: vr.batches(endless(), num_rows=num),
            "DataLoader": lambda: vr.batches(loader()),
            "memory": lambda: vr.batches({n: np.array(array) for n, array in mapped.items()}),
        }
        guided.fit(sources["mapped"](), num_steps=200, progress=False)  # what is compiled is in memory before
        for source, make in sources.items():
            before, begun, off, spread = own_memory(), time.process_time(), [], []
            for seed in range(seeds):
                posterior = guided.fit(make(), num_steps=2_000, progress=False, seed=seed)
                w = np.asarray(posterior.draws(4_000)["w"])
                off.append(float(np.abs((w.mean(0) - mean) / sds).max()))
                spread.append(float(np.abs(w.std(0) / sds - 1.0).max()))
            row = {"mean_off_sd": off, "sd_off": spread, "cpu_seconds": time.process_time() - begun}
            found[source] = {**row, "memory_mb": [before, own_memory()]}
            print(source, found[source], flush=True)
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--sources", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    many = 1_000_000
    found = compare_sources(options.backend, many) if options.sources else measure(options.backend, (10_000, many))
    command = f"python benchmarks/batches.py --backend {options.backend}{' --sources' * options.sources}"
    text = json.dumps({"command": command, **found}, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
