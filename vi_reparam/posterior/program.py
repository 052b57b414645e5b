"""What tells a program from another: its sites in words, and the numbers of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Params
from vi_reparam.errors import short
from vi_reparam.sites.totals import scaled
from vi_reparam.sites.wrappers import innermost

SINGLE, DOUBLE = 1e-5, 1e-9
"""How near the numbers of a program must come again, in either precision: other machines round in other ways."""


def program_of(
    backend: Backend, model: Any, data: Data, params: Params | None = None
) -> tuple[str, dict[str, list[float]]]:
    """The sites of a model in words, and numbers that tell its priors and its likelihood from others.

    Args:
        params: values of its own parameters; their first ones unless given, which are among the numbers then.
    """
    ops, tracer = backend.ops, backend.tracer

    def run(args: Any, kwargs: Any, key: Any) -> Any:
        return tracer.run(model, args, kwargs, key, params=params, partial=True, alone=True)

    def numbers(args: Any, kwargs: Any, key: Any) -> dict[str, list[Any]]:
        kinds = {"sample"} | ({"param"} if params is None else set())
        found = {n: r for n, r in run(args, kwargs, key).items() if r.kind in kinds}
        terms = {n: total(scaled(r, ops.asarray(r.log_prob()))) for n, r in found.items() if r.kind == "sample"}
        return {n: [total(r.value), terms.get(n, 0.0)] for n, r in found.items()}

    def total(value: Any) -> Any:
        return sum(ops.xp.sum(ops.asarray(leaf) * 1.0) for leaf in ops.tree_leaves(value))

    sites = []
    for name, record in tracer.shapes(lambda key: run(*data.call, key)).items():
        kind = (
            record.kind if record.distribution is None else type(innermost(backend.host, record.distribution)).__name__
        )
        sites.append(f"{name}: {kind} {[tuple(plate) for plate in record.plates]} {record.observed}")
    try:
        values = backend.engine.call(numbers, data, ops.key(0))
    except ValueError:  # outside of a support: the fit says so
        values = {}
    return "; ".join(sites), {n: [float(ops.to_numpy(x)) for x in pair] for n, pair in values.items()}


def near(theirs: Any, ours: Any) -> bool:
    """Whether two runs of a program gave the same numbers, but for rounding."""
    if not isinstance(theirs, dict) or theirs.keys() != ours.keys():
        return False
    return all(_close(theirs[name], ours[name]) for name in ours)


def _close(theirs: Any, ours: Any) -> bool:
    single = np.array_equal(np.float32(ours), ours, equal_nan=True)
    within = SINGLE if single else DOUBLE
    try:
        return np.allclose(theirs, ours, rtol=within, atol=within, equal_nan=True)
    except (TypeError, ValueError):  # of a damaged file
        return False


def what_differs(theirs: Any, ours: Any) -> str:
    """What differs, in words: of long texts and numbers, the first part that does."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = [n for n in {**ours, **theirs} if n not in ours or n not in theirs or not _close(theirs[n], ours[n])]
        return f"at site {names[0]!r} are others (another prior, likelihood, start, network or data)"
    both = short(theirs), short(ours)
    return f"is {both[0]}, this one's {both[1]}" if both[0] != both[1] else f"is another than {both[1]}"
