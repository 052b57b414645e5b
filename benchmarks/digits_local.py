"""The digits' per-image latents by a conditional guide against the gamma mean field, minibatched, in float64.

python benchmarks/digits_local.py [--steps 3000] [--batch 128] [--backend numpyro]

Every guide has as many steps. Loadings are drawn by the mean field in all rows. The ELBO is that of all images.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from vi_reparam_models import get

RESULTS = Path(__file__).parent / "results" / "digits_local.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--backend", default="numpyro")
    parser.add_argument("--only", nargs="*", help="parts of rows' names")
    options = parser.parse_args()
    vr: Any = importlib.import_module(f"vi_reparam_{options.backend}")
    ready = get("digits", batch_size=options.batch)
    args, kwargs = ready.data()
    if options.backend == "numpyro":
        importlib.import_module("numpyro").enable_x64()
    else:
        torch: Any = importlib.import_module("torch")
        torch.set_default_dtype(torch.float64)

    features = np.log1p(np.asarray(kwargs["counts"]))

    def of_images(counts: Any) -> Any:
        return features

    def beside(local: Any) -> Any:
        return vr.Sites({"z": local, "*": vr.MeanField()})

    families = {
        "mean field": vr.MeanField(),
        "conditional flow": beside(vr.Flow(condition=of_images, hidden=128)),
        "conditional diffusion": beside(vr.SDE(condition=of_images, num_steps=8, base="diagonal")),
    }
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for name, family in families.items():
        if options.only and not any(part in name for part in options.only):
            continue
        for seed in range(options.seeds):
            guided = vr.guide(family)(ready.model(vr.host))
            begun = time.perf_counter()
            posterior = guided.fit(*args, num_steps=options.steps, num_particles=1, seed=seed, progress=False, **kwargs)
            seconds = time.perf_counter() - begun
            value, error = posterior.elbo(200)
            row = {"guide": name, "backend": options.backend, "seed": seed, "steps": options.steps}
            row |= {
                "batch": options.batch,
                "elbo": round(value, 1),
                "error": round(error, 1),
                "seconds": round(seconds),
            }
            print(json.dumps(row), flush=True)
            same = ("guide", "backend", "seed", "steps", "batch")
            rows = [r for r in rows if any(r[k] != row[k] for k in same)] + [row]
            RESULTS.write_text(json.dumps({"command": "python benchmarks/digits_local.py", "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
