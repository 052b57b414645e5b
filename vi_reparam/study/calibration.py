"""Simulation-based calibration: is a guide right on data that the model itself has drawn?"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tqdm.auto import tqdm

from vi_reparam.errors import ArgumentError, NonFiniteError
from vi_reparam.fit.options import Options
from vi_reparam.guides import Escalate
from vi_reparam.posterior.plots import BLUE, GREY, write
from vi_reparam.posterior.scorer import Scorer
from vi_reparam.posterior.sites import check_count
from vi_reparam.posterior.summary import ROWS_PER_SITE, first_rows
from vi_reparam.study.ended import ended
from vi_reparam.study.table import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vi_reparam.fit.guided import Guided

NUM_DRAWS = 499
SURE = 0.01
"""Probability, over all scalars together, below which ranks are not taken for uniform."""

FEWEST_FITS = 20
BINS, MOST_PICTURES = 20, 16


@dataclass(frozen=True)
class RankRow:
    """Where the true values of one scalar lie among the draws of the fits to the data that they led to.

    Attributes:
        ks: Kolmogorov and Smirnov's p value of the ranks being uniform.
        place: mean rank, 0.5 where the guide is right; above, its draws are too small.
        place_z: how far that is from 0.5, in standard errors.
        spread: the variance of the ranks over that of uniform ones; above 1 the guide is too narrow.
        spread_z: how far that is from 1, in standard errors.
    """

    CHOICES: ClassVar[tuple[str, ...]] = ("scalar",)
    TITLE: ClassVar[str] = "Ranks of the truth among draws"
    HEADER: ClassVar[tuple[str, ...]] = ("scalar", "KS p", "mean rank", "z", "spread", "z")

    scalar: str
    ks: float
    place: float
    place_z: float
    spread: float
    spread_z: float

    def cells(self) -> tuple[str, ...]:
        """As in the header."""
        figures = f"{self.place:.3f}", f"{self.place_z:.1f}", f"{self.spread:.2f}", f"{self.spread_z:.1f}"
        return self.scalar, f"{self.ks:.2g}", *figures


class Calibration(Study[RankRow]):
    """A row a scalar.

    Attributes:
        ranks: of each fit, between 0 and 1, by scalar. Shape ``[num_fits]``.
        num_failed: fits that ended at a NaN, and are left out.
    """

    def __init__(self, ranks: dict[str, np.ndarray], num_failed: int, **attributes: Any) -> None:
        super().__init__(RankRow, [_row(name, own) for name, own in ranks.items()], **attributes)
        self.ranks, self.num_failed = ranks, num_failed

    @property
    def is_calibrated(self) -> bool:
        """Whether the ranks of all scalars may be uniform, at a probability of 1% for all together."""
        return min(row.ks for row in self) * len(self) > SURE

    @property
    def verdict(self) -> str:
        """In words, and what to do."""
        failed = f"; {self.num_failed} fits ended at a NaN" if self.num_failed else ""
        if self.is_calibrated:
            return f"calibrated: over {self._num} data sets of the model's own the draws are where the truth is{failed}"
        wrong = [
            f"{row.scalar} {_fault(row)}" for row in sorted(self, key=lambda r: r.ks) if row.ks * len(self) <= SURE
        ]
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        return f"not calibrated: {', '.join(wrong[:5])}{more}: use a richer guide, or posterior.refine(){failed}"

    @property
    def _num(self) -> int:
        return len(next(iter(self.ranks.values())))

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.verdict}"

    def plot(self, path: str | os.PathLike | None = None) -> Figure:
        """Histograms of the ranks; of a right guide's, 99% of the bars end within the grey band.

        Args:
            path: a picture file to write, its kind by its ending.

        Returns:
            The matplotlib figure.
        """
        from matplotlib.figure import Figure

        shown = list(self.ranks.items())[:MOST_PICTURES]
        columns = min(len(shown), 4)
        lines = -(-len(shown) // columns)
        figure = Figure(figsize=(2.8 * columns + 0.4, 2.1 * lines + 0.6), layout="constrained")
        mean = self._num / BINS
        wide = 2.576 * math.sqrt(mean * (1.0 - 1.0 / BINS))
        for i, (name, own) in enumerate(shown):
            axes = figure.add_subplot(lines, columns, i + 1)
            axes.axhspan(max(mean - wide, 0.0), mean + wide, color=GREY, alpha=0.4, linewidth=0)
            axes.hist(own, bins=BINS, range=(0.0, 1.0), color=BLUE)
            axes.set_title(name, fontsize=9)
            axes.set_yticks([])
        figure.suptitle("rank of the truth among draws", fontsize=10)
        if path is not None:
            write(figure, path)
        return figure


def calibrate(
    bound: type[Guided],
    guided: Any,
    *args: Any,
    num_fits: int = 200,
    num_draws: int = NUM_DRAWS,
    num_steps: int | None = None,
    num_particles: int | None = None,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> Calibration:
    """Fit a guide to data that the model draws, many times, and see where the truth lies among each fit's draws.

    Parameters are drawn from the prior and data from them; a guide that is the posterior then has draws among which the
    truth has every rank equally often (Talts et al. 2018). The steps are compiled once. Where the guide is `Escalate`,
    the family is the one that it ends with on the data that are given. Tails that a fit would widen for the importance
    weights are left as they are.

    Args:
        guided: a guided model, without parameters of its own.
        args: the model's arguments, and among them the observed data, whose shape the simulated ones take; `kwargs`:
            its keyword arguments.
        num_fits: how many.
        num_draws: of each fit, among which the truth is ranked.
        num_steps: of each fit; unless given, until it has converged. `num_particles`: a step's.
        seed: of all of it.
        progress: whether to show a progress bar.

    Returns:
        A row a scalar latent; print it, or `.plot()` it.

    Raises:
        ArgumentError: if the model observes what is no argument of it, or for too few fits.
        SiteError: for a latent whose prior is improper.
    """
    guided = bound.of(guided)
    if check_count("num_fits", num_fits) < FEWEST_FITS:
        raise ArgumentError(f"num_fits is {num_fits}; {FEWEST_FITS} fits at least tell something")
    check_count("num_draws", num_draws)
    options = {"num_steps": num_steps, "num_particles": num_particles, "progress": False}
    first = ended(guided.fit(*args, seed=seed, **options, **kwargs))
    if isinstance(guided.family, Escalate):
        guided = guided.for_family_named(first.record["family"])
    scorer, engine, ops = first.scorer, guided.backend.engine, guided.backend.ops
    data = engine.data(args, kwargs, guided.model)
    places = _places(scorer, data)
    latents = replace(scorer.sites, deterministics={})
    truth = guided.prior(num_fits, *args, seed=seed, **kwargs)
    heads = {n: _head(ops, truth[n], num_fits) for n in scorer.sites.latents}
    ranks: dict[str, list[float]] = {}
    failed, noise = 0, np.random.default_rng(seed)

    def draw(key: Any, fit_args: Any, fit_kwargs: Any, fit_params: Any, params: Any, arrays: Any) -> Any:
        records = scorer.pair.run_guide(key, *data.join(arrays), params)
        return {name: records[name].value for name in scorer.sites.latents}

    for i in tqdm(range(num_fits), disable=not progress, desc=f"calibrate {guided.name}"):
        arrays = list(data.arrays)
        for place, name in places.items():
            arrays[place] = ops.xp.astype(truth[name][i], arrays[place].dtype)
        own_args, own_kwargs = data.join(tuple(arrays))
        own_data = replace(data, args=own_args, kwargs=own_kwargs, arrays=tuple(arrays))
        own_options = Options(num_steps, num_particles, None, seed + i, False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a fit to made-up data warns of helps no one
            try:
                fitted = ended(guided.fitter.run(own_data, own_options, final=False))
            except NonFiniteError:
                failed += 1
                continue
        inputs = scorer.backend.ops.tree_map(scorer._array, dict(fitted.params)), tuple(arrays)
        drawn = scorer.many(draw, num_draws, engine.key(i), *inputs, name=("calibrate", guided.base_guide))
        named, _ = first_rows(latents, {name: _head(ops, value, num_draws) for name, value in drawn.items()})
        true, _ = first_rows(latents, {name: head[i : i + 1] for name, head in heads.items()})
        for scalar, values in named.items():
            below, equal = (values < true[scalar]).sum(), (values == true[scalar]).sum()
            place = below + noise.integers(0, equal + 1)  # discrete latents have ties
            ranks.setdefault(scalar, []).append((place + noise.uniform()) / (num_draws + 1))
    about = {"num_fits": num_fits, "num_draws": num_draws, "family": repr(guided.family), "seed": seed}
    return Calibration({name: np.array(own) for name, own in ranks.items()}, failed, **about)


def _places(scorer: Scorer, data: Any) -> dict[int, str]:
    """Which of the arguments' arrays is observed at which site.

    Raises:
        ArgumentError: for a site that observes none of them, or one of two that are equal.
    """
    found: dict[int, str] = {}
    to_numpy = scorer.backend.ops.to_numpy
    for name, value in scorer.observed().items():
        same = [i for i, x in enumerate(data.arrays) if i not in found and _equal(np.asarray(to_numpy(x)), value)]
        if len(same) != 1:
            why = "is no argument of the model" if not same else "is equal to another argument"
            raise ArgumentError(
                f"calibrate: what site {name!r} observes {why}: give the data as an argument, as in obs=y, so that "
                "simulated data can take its place"
            )
        found[same[0]] = name
    if not found:
        raise ArgumentError(
            "calibrate: the model observes nothing; give it the data, whose shape the simulated ones take"
        )
    return found


def _equal(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and np.array_equal(x, y)


def _head(ops: Any, value: Any, num: int) -> np.ndarray:
    flat = np.asarray(ops.to_numpy(value), dtype=np.float64).reshape(num, -1)
    return flat if flat.shape[1] <= ROWS_PER_SITE else flat[:, : ROWS_PER_SITE - 2]


def _row(name: str, ranks: np.ndarray) -> RankRow:
    num, spread = len(ranks), 12.0 * float(((ranks - 0.5) ** 2).mean())
    place = float(ranks.mean())
    return RankRow(
        name, ks_p(ranks), place, (place - 0.5) * math.sqrt(12.0 * num), spread, (spread - 1.0) * math.sqrt(1.25 * num)
    )


def ks_p(ranks: Sequence[float] | np.ndarray) -> float:
    """Kolmogorov and Smirnov's p value of numbers being uniform on (0, 1), by Stephens' (1970) approximation."""
    x = np.sort(np.asarray(ranks, dtype=np.float64))
    num = len(x)
    grid = np.arange(num)
    distance = float(max((x - grid / num).max(), ((grid + 1) / num - x).max()))
    scaled = (math.sqrt(num) + 0.12 + 0.11 / math.sqrt(num)) * distance
    if scaled < 0.3:
        return 1.0
    terms = [(-1) ** (k - 1) * math.exp(-2.0 * (k * scaled) ** 2) for k in range(1, 101)]
    return float(min(max(2.0 * sum(terms), 0.0), 1.0))


def _fault(row: RankRow) -> str:
    if abs(row.spread_z) >= abs(row.place_z):
        return "is too narrow" if row.spread > 1.0 else "is too wide"
    return "is too low" if row.place > 0.5 else "is too high"
