"""The digits factorization: guides of one of its factors against the gamma mean field of both, by ELBO of all images.

python benchmarks/digits.py [--of z] [--steps 2000] [--backend numpyro] [--seeds 0]

``--of z``: the 28,752 scores of images by guides that are conditioned on the image, minibatched, in float64.
``--of w``: the 1,024 loadings by a diffusion, all images at once, in float32. Optima of different seeds lie hundreds of
nats apart, so all guides of a seed go on from one fit of mean fields, of ``--first`` steps: its bound still rises by
2,000 nats between step 6,000 and 30,000.
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

RESULTS = Path(__file__).parent / "results" / "digits.json"


def families(vr: Any, of: str, features: np.ndarray) -> dict[str, Any]:
    """Guides by name."""

    def of_images(counts: Any) -> Any:
        return features

    def aux_key(**own: Any) -> Any:
        return vr.Sites({**own, "*": vr.MeanField()})

    if of == "w":
        return {
            "mean field": aux_key(w=vr.MeanField()),
            "diffusion": aux_key(w=vr.SDE(base=vr.Blocks("pixels"))),
            "diffusion, low rank": aux_key(w=vr.SDE()),
        }
    return {
        "mean field": vr.MeanField(),
        "conditional flow": aux_key(z=vr.Flow(condition=of_images, hidden=128)),
        "conditional flow without skew": aux_key(z=vr.Flow(condition=of_images, hidden=128, skew=False)),
        "conditional diffusion": aux_key(z=vr.SDE(condition=of_images, num_steps=8, base="diagonal")),
    }


def go_on(guided: Any, first: Any) -> None:
    """Let a fit start from the parameters of another."""
    own = guided.base_guide.warm_starts

    def warm_starts(fit: Any, *rest: Any) -> Any:
        return own(lambda *_: first, *rest) if guided.family.simpler() else [dict(first.params)]

    guided.base_guide.warm_starts = warm_starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=("z", "w"), default="z")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--first", type=int, default=30_000, help="steps of the fit that guides of the loadings go on from"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--backend", default="numpyro")
    parser.add_argument(
        "--only", nargs="*", help="rows' names; all but 'conditional diffusion', which is slow, if none"
    )
    options = parser.parse_args()
    batch = options.batch if options.of == "z" else None
    vr: Any = importlib.import_module(f"vi_reparam_{options.backend}")
    ready = get("digits", batch_size=batch)
    args, kwargs = ready.data()
    if options.of == "z" and options.backend == "numpyro":
        importlib.import_module("numpyro").enable_x64()
    elif options.of == "z":
        torch: Any = importlib.import_module("torch")
        torch.set_default_dtype(torch.float64)

    firsts = {}
    for name, family in families(vr, options.of, np.log1p(np.asarray(kwargs["counts"]))).items():
        if name not in options.only if options.only else name == "conditional diffusion":
            continue
        for seed in options.seeds:

            def fit(family: Any, steps: int, first: Any = None, seed: int = seed) -> Any:
                guided = vr.guide(family)(ready.model(vr.host))
                if first is not None:
                    go_on(guided, first)
                return guided.fit(*args, num_steps=steps, num_particles=1, seed=seed, progress=False, **kwargs)

            if options.of == "w" and seed not in firsts:
                firsts[seed] = fit(vr.Sites({"w": vr.MeanField(), "*": vr.MeanField()}), options.first)
            begun = time.perf_counter()
            posterior = fit(family, options.steps, firsts.get(seed))
            seconds = time.perf_counter() - begun
            value, error = posterior.elbo(2_000 if options.of == "w" else 200)
            row = {"of": options.of, "guide": name, "backend": options.backend, "seed": seed, "steps": options.steps}
            if options.of == "w":
                row["first"] = options.first
            same = tuple(row)
            row |= {"batch": batch, "elbo": round(value, 1), "error": round(error, 1), "seconds": round(seconds)}
            print(json.dumps(row), flush=True)
            rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
            rows = [r for r in rows if any(r.get(k) != row[k] for k in same)] + [row]
            RESULTS.write_text(json.dumps({"command": "python benchmarks/digits.py", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
