"""The same guide fitted from several seeds: do they agree?"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tqdm.auto import tqdm

from vi_reparam.errors import ArgumentError
from vi_reparam.posterior.verdict import GOOD_MEAN, GOOD_SD
from vi_reparam.study.ended import ended
from vi_reparam.study.table import Study

if TYPE_CHECKING:
    from vi_reparam.fit.guided import Guided

GRADES = ("good", "fair", "poor")
TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class SeedRow:
    """One fit.

    Attributes:
        family: that it ended with.
        elbo: with its standard `error`, in nats.
        khat: Pareto shape of the importance weights' tail.
        grade: of its verdict: 0 for good, 1 for fair, 2 for poor.
        mean_off: the most that one of its means is from that of all fits, in sds.
        sd_off: the same of the logarithms of its sds.
        seconds: of the fit.
    """

    CHOICES: ClassVar[tuple[str, ...]] = ("seed", "family")
    TITLE: ClassVar[str] = "Fits from several seeds"
    HEADER: ClassVar[tuple[str, ...]] = (
        "seed",
        "family",
        "ELBO",
        "k-hat",
        "verdict",
        "mean off by sds",
        "log sd off by",
        "seconds",
    )

    seed: str
    family: str
    elbo: float
    error: float
    khat: float
    grade: float
    mean_off: float
    sd_off: float
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """As in the header."""
        bound, grade = f"{self.elbo:.3f} ± {self.error:.3f}", GRADES[int(self.grade)]
        off = f"{self.mean_off:.3f}", f"{self.sd_off:.3f}"
        return self.seed, self.family, bound, f"{self.khat:.2f}", grade, *off, f"{self.seconds:.1f}"


class Fits(Study[SeedRow]):
    """A row a fit.

    Attributes:
        posteriors: the fits themselves, in the order of the rows.
    """

    def __init__(self, rows: Sequence[SeedRow], posteriors: Sequence[Any]) -> None:
        super().__init__(SeedRow, rows)
        self.posteriors = list(posteriors)

    @property
    def agree(self) -> bool:
        """Whether all means are within 0.1 sd, and all sds within 15%, of those of all fits together."""
        return all(row.mean_off <= GOOD_MEAN and row.sd_off <= GOOD_SD for row in self)

    @property
    def verdict(self) -> str:
        """In words, and what to do."""
        if self.agree:
            return "the fits agree: what they say does not depend on the seed"
        best = max(self, key=lambda row: row.elbo)
        return (
            f"the fits differ, by up to {max(r.mean_off for r in self):.2f} sd in a mean: that of seed {best.seed}, "
            "has the highest ELBO; look at its verdict: vr.Mixture() or posterior.refine() where it is not good"
        )

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.verdict}"


def compare_fits(
    bound: type[Guided], guided: Any, *args: Any, seeds: int | Sequence[int] = 4, progress: bool = True, **kwargs: Any
) -> Fits:
    """Fit a guided model from several seeds, and see whether the fits say the same.

    Args:
        guided: a guided model.
        args: the model's arguments.
        seeds: how many, or which.
        progress: whether to show a progress bar.
        kwargs: the model's keyword arguments, and options of `fit`.

    Returns:
        A row a fit; print it. `.posteriors` are the fits, `.agree` says whether they agree.

    Raises:
        ArgumentError: for less than two seeds, and as `fit` does.
    """
    guided = bound.of(guided)
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise ArgumentError(f"compare_fits(seeds={seeds!r}): expected two different seeds at least"[:300])
    posteriors, seconds = [], []
    for seed in tqdm(chosen, disable=not progress, desc=f"fit {guided.name}"):
        begun = time.perf_counter()
        posteriors.append(ended(guided.fit(*args, seed=seed, progress=False, **kwargs)))
        seconds.append(time.perf_counter() - begun)
    columns = [_columns(posterior) for posterior in posteriors]
    means, sds = (np.array([[fn(x) for x in own] for own in columns]) for fn in (np.mean, np.std))
    whole = np.sqrt(np.mean(sds**2, axis=0)) + TINY
    off = np.abs(means - means.mean(0)) / whole
    apart = np.abs(np.log(np.maximum(sds, TINY) / whole))
    rows = []
    for i, posterior in enumerate(posteriors):
        elbo, error = posterior.elbo()
        family, grade = str(posterior.record.get("family")), float(GRADES.index(posterior.verdict.grade))
        figures = elbo, error, posterior.khat, grade, float(off[i].max()), float(apart[i].max()), seconds[i]
        rows.append(SeedRow(str(chosen[i]), family, *(x if math.isfinite(x) else math.nan for x in figures)))
    return Fits(rows, posteriors)


def _columns(posterior: Any) -> list[np.ndarray]:
    return [np.asarray(x, dtype=np.float64) for x in posterior.rows()[0].values()]
