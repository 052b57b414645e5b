"""Does a wrong posterior ever pass, and is a right one ever called poor? Sixty posteriors with known means and sds.

python benchmarks/verdict.py [--backend pyro] [--seeds 4] [--first 0] [--only label,ring] [--attacks] [--results FILE]

A fit is wrong where a mean is more than 0.5 sd off or an sd outside of 0.67 to 1.5 of the truth, and right where all
are within 0.1 sd and 15%. Printed: how many of each were called good, fair and poor. `--attacks` takes posteriors of
`verdict_attacks.py` instead, most of them with a known log evidence.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import verdict_attacks
import verdict_targets
from verdict_targets import Target

RESULTS = Path(__file__).parent / "results" / "verdict.json"
NUM_DRAWS = 20_000


def errors(target: Target, posterior: Any) -> tuple[float, float]:
    """The largest error of a mean, in sds, and the largest |log ratio| of an sd."""
    draws = posterior.draws(NUM_DRAWS, seed=1)
    off, ratio = 0.0, 0.0
    for name, mean in target.mean.items():
        x = np.asarray(draws[name], dtype=float).reshape(NUM_DRAWS, -1)
        off = max(off, float(np.max(np.abs(x.mean(0) - mean) / target.sd[name])))
        ratio = max(ratio, float(np.max(np.abs(np.log(x.std(0) / target.sd[name])))))
    return off, ratio


def state_of(off: float, ratio: float) -> str:
    """What a fit with these errors is: right, wrong or between."""
    if not (off <= 0.5 and ratio <= np.log(1.5)):
        return "wrong"
    return "right" if off <= 0.1 and ratio <= np.log(1.15) else "between"


def fit(vr: Any, target: Target, guided: Any, seed: int) -> dict[str, Any]:
    options = {k: v(vr) if callable(v) else v for k, v in target.options.items()}
    begun = time.perf_counter()
    posterior = guided.fit(seed=seed, progress=False, **options)
    fitted = time.perf_counter()
    verdict = posterior.verdict
    judged = time.perf_counter()
    off, ratio = errors(target, posterior)
    return {
        "target": target.name,
        "kind": target.kind,
        "seed": seed,
        "grade": verdict.grade,
        "state": state_of(off, ratio),
        "mean_error": round(off, 3),
        "log_sd_error": round(ratio, 3),
        "khat": round(float(verdict.figures.khat), 2),
        **evidence(target, posterior),
        "family": posterior.record["family"],
        "seconds": round(fitted - begun, 1),
        "verdict_seconds": round(judged - fitted, 2),
    }


def evidence(target: Target, posterior: Any) -> dict[str, float]:
    """By how much the log evidence is off, and its standard error, where it is known."""
    if target.log_evidence is None:
        return {}
    value, error = posterior.log_evidence()
    return {"evidence_off": round(value - target.log_evidence, 4), "evidence_error": round(error, 4)}


def table(rows: list[dict[str, Any]]) -> str:
    """Counts by state and grade."""
    lines = [f"{'':24}{'good':>6}{'fair':>6}{'poor':>6}"]
    for state in ("right", "between", "wrong"):
        counts = [sum(r["state"] == state and r["grade"] == g for r in rows) for g in ("good", "fair", "poor")]
        lines.append(f"{state:24}" + "".join(f"{c:6}" for c in counts))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="numpyro", choices=["numpyro", "pyro"])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="of the seeds")
    parser.add_argument("--only", default="", help="parts of names or kinds, with commas between")
    parser.add_argument("--attacks", action="store_true", help="those of verdict_attacks.py")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    vr = importlib.import_module(f"vi_reparam_{options.backend}")
    if options.backend == "numpyro":
        import numpyro

        numpyro.enable_x64()
    else:
        import torch

        torch.set_default_dtype(torch.float64)
    wanted = [part for part in options.only.split(",") if part]
    rows = []
    name = f"{options.backend}, attacks" if options.attacks else options.backend
    for target in (verdict_attacks if options.attacks else verdict_targets).targets():
        if wanted and not any(part in target.name or part in target.kind for part in wanted):
            continue
        family = None if target.family is None else target.family(vr)
        guided = vr.guide(family)(target.model(vr.host))
        for seed in range(options.first, options.first + options.seeds):  # compiled with the first
            try:
                row = fit(vr, target, guided, seed)
            except vr.ViReparamError as error:
                row = {"target": target.name, "kind": target.kind, "seed": seed, "grade": "refused", "state": "refused"}
                row["error"] = str(error)[:200]
            print(json.dumps(row), flush=True)
            rows.append(row)
        known = json.loads(options.results.read_text()) if options.results.exists() else {}
        new = {(r["target"], r["seed"]) for r in rows}
        known[name] = [r for r in known.get(name, []) if (r["target"], r["seed"]) not in new] + rows
        options.results.write_text(json.dumps({"command": "python benchmarks/verdict.py", **known}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
