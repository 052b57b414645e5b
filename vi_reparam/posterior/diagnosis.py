"""How far a posterior's draws drift under short Hamiltonian Monte Carlo, and what that says, site by site."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from vi_reparam.errors import SiteError
from vi_reparam.posterior import markup
from vi_reparam.posterior.verdict import GOOD_MEAN, GOOD_SD, KHAT_USABLE, MAX_MISSED, USABLE_MEAN, USABLE_SD, Grade
from vi_reparam.posterior.walk import Walk

if TYPE_CHECKING:
    import pandas as pd

    from vi_reparam.posterior.posterior import Posterior
    from vi_reparam.posterior.verdict import Verdict

CHAINS = 256
SUSPECT = 4.0
"""Standard errors from which a drift is one, of few scalars; of many, what chance reaches once in a thousand tests."""

SLOWEST = 0.9
"""Part of a difference that chains may keep; of one that they keep nearly whole nothing can be told."""

PRECISE = 2.0
"""Standard errors that a drift may hide in."""

MOST_DRAWS, DRAWS_SEED = 10_000, 5


@dataclass(frozen=True)
class Diagnosis:
    """What a short run of chains from a posterior's draws tells.

    Attributes:
        table: a row a site, of its scalar that is the furthest off. By the chains: ``mean``, by how many sds the truth
            is away, and ``mean_z``, in standard errors; ``sd``, the logarithm of the truth's sd over the draws', and
            ``sd_z``. By the importance weights: ``mean_weights`` and ``sd_weights``, NaN where they are no good. Then
            ``sees``, the smallest error of a mean that the chains would have found, in sds, and ``grade``.
        verdict: of the posterior.
        missed: part of the mass in modes that no draw is near.
        acceptance: of the chains' moves.
        why_not: why there were no chains; empty where there were.
    """

    table: pd.DataFrame
    verdict: Verdict
    missed: float
    acceptance: float
    why_not: str = ""

    @property
    def grade(self) -> Grade:
        """The worst of all sites'; poor where the draws miss a mode."""
        if self.missed > MAX_MISSED:
            return "poor"
        if self.why_not:
            return self.verdict.grade
        found = {str(grade) for grade in self.table["grade"]}
        return "poor" if "poor" in found else "fair" if "fair" in found else "good"

    @property
    def advice(self) -> str:
        """What to do next."""
        khat = self.verdict.figures.khat
        if self.missed > MAX_MISSED:
            share = f"about {100.0 * self.missed:.0f}% of the mass is"
            return f"{share} in modes that no draw is near: use vr.Mixture(); chains that start here would not go there"
        if self.why_not:
            return f"no chains were run ({self.why_not}); what is known is the verdict"
        off = [str(name) for name in self.table.index if str(self.table.at[name, "grade"]) != "good"]
        if off:
            names = f"{', '.join(off[:4])}{' and others' * (len(off) > 4)}"
            blind = self.table.loc[off, ["mean_z", "sd_z"]].abs().to_numpy().max() < SUSPECT
            if blind and not khat < KHAT_USABLE:
                return f"the chains moved too little to judge {names}: posterior.refine() runs on until they have mixed"
            return f"{names}: posterior.refine() moves the draws to the posterior"
        if not khat < KHAT_USABLE:
            return "use the draws as they are, and do not reweight them: the chains left every mean and sd where it was"
        return "use the draws as they are: neither chains nor importance weights move a mean or an sd by much"

    def __str__(self) -> str:
        lines = [self.table.round(3).to_string()] if len(self.table) else []
        khat = f"k-hat {self.verdict.figures.khat:.2f}"
        if not self.why_not:
            khat += f", {CHAINS} chains at most, acceptance {self.acceptance:.2f}"
        missed = f", {100.0 * self.missed:.1f}% of the mass missed" if self.missed > 0.0 else ""
        return "\n".join([*lines, f"diagnosis: {self.grade} ({khat}{missed})", f"  - {self.advice}"])

    def _repr_html_(self) -> str:
        table = markup.table(self.table.round(3)) if len(self.table) else ""
        lines = str(self).splitlines()[-2:]
        return table + markup.verdict(self.grade, "\n".join(lines))


@dataclass(frozen=True)
class Drifts:
    """Of scalars, by how much the truth differs from the draws, as chains have it.

    Attributes:
        size: shape ``[D]``; `error`: standard errors, which grow where the chains hardly move.
    """

    size: np.ndarray
    error: np.ndarray

    @property
    def z(self) -> np.ndarray:
        """In standard errors."""
        with np.errstate(all="ignore"):
            return np.where(self.error > 0.0, self.size / self.error, 0.0)


def drifts(later: np.ndarray, first: np.ndarray, own: np.ndarray) -> Drifts:
    """How far a mean drifts, in units of what is given.

    Chains that have kept the part b of where they began have gone the part 1 - b of the way.

    Args:
        later: means over each chain's later states, shape ``[C, D]``.
        first: where it began; `own`: many draws of what these are a few of, shape ``[N, D]``.
    """
    known, uncertain = own.mean(0), own.var(0) / len(own)
    from_mean = first - first.mean(0)
    with np.errstate(all="ignore"):
        kept = (from_mean * (later - later.mean(0))).sum(0) / (from_mean**2).sum(0)
    kept = np.where(np.isfinite(kept), kept, 0.0)
    moved = later - known - kept * (first - known)  # of less variance, and of the same mean
    error = moved.std(axis=0, ddof=2) / math.sqrt(len(moved))
    gone = 1.0 - np.clip(kept, 0.0, SLOWEST)
    return Drifts(moved.mean(0) / gone, np.hypot(error / gone, np.sqrt(uncertain)))


def diagnose(posterior: Posterior, seed: Any, *, progress: bool) -> Diagnosis:
    """As `Posterior.diagnose`."""
    import pandas as pd

    verdict, missed = posterior.verdict, posterior.verdict.figures.missed
    try:
        walk = Walk(posterior, seed, CHAINS)
    except SiteError as error:
        return Diagnosis(pd.DataFrame(), verdict, missed, math.nan, str(error))
    with tqdm(total=2, disable=not progress, desc=f"diagnose {posterior.name}") as bar:
        walk.look(adapt=True)
        bar.update()
        found, _, drawn = walk.look(adapt=False)
        bar.update()
    num = min(posterior.default_num_weights, MOST_DRAWS)
    drawn_anew = posterior.draws(num, seed=DRAWS_SEED)
    reference = {
        n: np.asarray(posterior.backend.ops.to_numpy(drawn_anew[n]), dtype=np.float64).reshape(num, -1)
        for n in posterior.scorer.sites.latents
    }
    start = _values(walk, walk.starts)
    later = _values(walk, drawn.reshape(-1, walk.size))
    rows = {}
    for name, own in reference.items():
        chains = later[name].reshape(*drawn.shape[:2], -1)
        rows[name] = _row(posterior, name, chains, start[name], own, sum(x.shape[1] for x in reference.values()))
    acceptance = float(walk.ops.to_numpy(walk.ops.xp.mean(found["acceptance"])))
    return Diagnosis(pd.DataFrame.from_dict(rows, orient="index"), verdict, missed, acceptance)


def _values(walk: Walk, vectors: np.ndarray) -> dict[str, np.ndarray]:
    """The latents at vectors of unconstrained coordinates, flattened. Shape ``[N, size]`` each."""
    ops, posterior, target = walk.ops, walk.posterior, walk.target

    def place(args: Any, kwargs: Any, vectors: Any) -> Any:
        layout = target.layout(args, kwargs)
        return ops.vmap(lambda v: {name: value for name, (value, _) in layout.unpack(v).items()})(vectors)

    found = posterior.backend.engine.call(place, posterior.scorer.data, ops.asarray(vectors), name=(target, "place"))
    return {n: np.asarray(ops.to_numpy(x), dtype=np.float64).reshape(len(vectors), -1) for n, x in found.items()}


def _row(
    posterior: Posterior, name: str, chains: np.ndarray, start: np.ndarray, own: np.ndarray, num_scalars: int
) -> dict[str, Any]:
    """One site's row of `Diagnosis.table`.

    Args:
        chains: later states, shape ``[T, C, size]``; `start`: where they began, shape ``[C, size]``.
        own: draws of the guide, shape ``[N, size]``.
    """
    center, spread = own.mean(0), np.maximum(own.std(0), np.finfo(float).tiny)
    after = np.maximum(chains.std(axis=(0, 1)), np.finfo(float).tiny)
    unit = np.maximum(spread, after)  # a guide that is too narrow is not far off for that
    mean = drifts((chains / unit).mean(0), start / unit, own / unit)
    middle = chains.mean(axis=(0, 1))
    later = ((chains - middle) ** 2 / unit**2).mean(0)
    squares = drifts(later, ((start - center) / unit) ** 2, ((own - center) / unit) ** 2)
    before = spread**2 / unit**2
    ratio = 0.5 * np.log(np.maximum(before + squares.size, 1e-3 * before) / before)
    likely = 0.5 * np.log1p(squares.error / before)
    limit = max(SUSPECT, NormalDist().inv_cdf(1.0 - 0.25e-3 / num_scalars))
    first, second = int(np.argmax(np.abs(mean.z))), int(np.argmax(np.abs(squares.z)))
    seen = PRECISE * float(np.median(mean.error))
    by_weights = posterior.shifts_of(name)
    errors = [
        abs(mean.size[first]) if abs(mean.z[first]) > limit else 0.0,
        abs(ratio[second]) if abs(squares.z[second]) > limit else 0.0,
    ]
    usable = posterior.khat < KHAT_USABLE
    if usable:  # they know of every draw
        errors = [max(pair) for pair in zip(errors, by_weights, strict=True)]
    else:
        errors = [max(errors[0], seen), max(errors[1], PRECISE * float(np.median(likely)))]
    return {
        "mean": mean.size[first],
        "mean_z": mean.z[first],
        "sd": ratio[second],
        "sd_z": squares.z[second],
        "mean_weights": by_weights[0] if usable else math.nan,
        "sd_weights": by_weights[1] if usable else math.nan,
        "sees": seen,
        "grade": grade_of(*errors),
    }


def grade_of(mean: float, sd: float) -> Grade:
    """The grade of these errors: of a mean in sds, and of the logarithm of an sd."""
    if mean <= GOOD_MEAN and sd <= GOOD_SD:
        return "good"
    return "fair" if mean <= USABLE_MEAN and sd <= USABLE_SD else "poor"
