"""Models of the same data side by side: their evidence, and how well they predict what they have not seen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vi_reparam.errors import ArgumentError
from vi_reparam.posterior.bridge import METHODS
from vi_reparam.posterior.loo import Loo, loo
from vi_reparam.posterior.verdict import KHAT_USABLE
from vi_reparam.study.table import Study


@dataclass(frozen=True)
class ModelRow:
    """One model; all but probability and k-hat in nats.

    Attributes:
        log_evidence: with its standard error `evidence_error`.
        log_bayes_factor: its log evidence less the highest of all.
        probability: of the model given the data, where all were equally likely before.
        elpd_loo: expected log predictive density of the data, each left out in turn; `elpd_error`: its standard error.
        elpd_difference: that less the highest of all; `difference_error`: its standard error, over data like these.
        p_loo: effective number of parameters.
        loo_khat: the largest Pareto shape of a datum's weights; from 0.7 on, `elpd_loo` is not to be trusted.
    """

    CHOICES: ClassVar[tuple[str, ...]] = ("model",)
    TITLE: ClassVar[str] = "Models of the same data"
    HEADER: ClassVar[tuple[str, ...]] = (
        "model",
        "log evidence",
        "log Bayes factor",
        "probability",
        "elpd_loo",
        "difference",
        "p_loo",
        "k-hat",
    )

    model: str
    log_evidence: float
    evidence_error: float
    log_bayes_factor: float
    probability: float
    elpd_loo: float
    elpd_error: float
    elpd_difference: float
    difference_error: float
    p_loo: float
    loo_khat: float

    def cells(self) -> tuple[str, ...]:
        """As in the header."""
        return (
            self.model,
            f"{self.log_evidence:.3f} ± {self.evidence_error:.3f}",
            f"{self.log_bayes_factor:.2f}",
            f"{self.probability:.3f}",
            f"{self.elpd_loo:.2f} ± {self.elpd_error:.2f}",
            f"{self.elpd_difference:.2f} ± {self.difference_error:.2f}",
            f"{self.p_loo:.1f}",
            f"{self.loo_khat:.2f}",
        )


def compare_models(
    posteriors: Mapping[str, Any],
    *,
    evidence: str | None = None,
    num_draws: int | None = None,
    seed: Any = 0,
) -> Study[ModelRow]:
    """Compare models of the same data by their posteriors: Bayes factors, and leave-one-out.

    Both correct for the draws being the guide's. Leave-one-out weights a draw by p / q / likelihood of the datum that
    is left out, Pareto-smoothed. Draws that were refined, or whose own k-hat is 0.7 or above, count as the posterior's;
    of the latter a warning says so.

    Args:
        posteriors: by name.
        evidence: ``"importance"``, ``"bridge"`` or ``"harmonic"``, as in `Posterior.log_evidence`; unless given,
            importance sampling where k-hat is below 0.7, else bridge sampling.
        num_draws: of each, for leave-one-out; unless given 4,000, or fewer where there are many data.
        seed: int, or what the backend takes for a key.

    Returns:
        A row a model, the most probable first; print its `.table()` with rich.

    Raises:
        ArgumentError: for less than two posteriors, or posteriors of different data.
    """
    fitted = isinstance(posteriors, Mapping) and all(hasattr(posterior, "scorer") for posterior in posteriors.values())
    if not fitted or len(posteriors) < 2:
        raise ArgumentError(
            "compare_models: give two posteriors at least, by name: {'pooled': one, 'by school': other}"
        )
    if evidence is not None and evidence not in METHODS:
        raise ArgumentError(f"compare_models(evidence={evidence!r}): expected one of {METHODS}")
    observed = {name: posterior.scorer.observed() for name, posterior in posteriors.items()}
    first, *others = observed
    orders = {first: sorted(observed[first])}
    for name in others:
        orders[name] = _same_data(first, observed[first], orders[first], name, observed[name])
    values, loos = {}, {}
    for name, posterior in posteriors.items():
        usable = posterior.khat < KHAT_USABLE
        method = evidence or ("importance" if usable else "bridge")
        values[name] = posterior.log_evidence(method, seed=seed) if method != "importance" else posterior.log_evidence()
        names = orders[name]
        loos[name] = loo(posterior, num_draws, seed, order=lambda given, names=names: [given[n] for n in names])
        if not usable and "refined" not in posterior.record:
            warnings.warn(
                f"{name}: k-hat is {posterior.khat:.2f}, so leave-one-out takes its draws for the posterior's; compare "
                "posterior.refine() of it",
                stacklevel=2,
            )
    rows = _rows(values, loos)
    return Study(ModelRow, rows, seed=str(seed))


def _rows(values: Mapping[str, tuple[float, float]], loos: Mapping[str, Loo]) -> list[ModelRow]:
    top = max(value for value, _ in values.values())
    whole = float(np.logaddexp.reduce([value for value, _ in values.values()]))
    best = max(loos.values(), key=lambda own: own.elpd[0])
    rows = []
    for name, (value, error) in values.items():
        own = loos[name]
        apart = own.pointwise - best.pointwise
        rows.append(
            ModelRow(
                name,
                value,
                error,
                value - top,
                math.exp(value - whole),
                *own.elpd,
                float(apart.sum()),
                math.sqrt(len(apart)) * float(apart.std(ddof=1)),
                own.num_effective,
                float(own.khat.max()),
            )
        )
    return sorted(rows, key=lambda row: -row.log_evidence)


def _same_data(first: str, known: dict, order: list[str], name: str, own: dict) -> list[str]:
    """The observed sites of a posterior in the order of another's, whose names may be others.

    Raises:
        ArgumentError: if they are not of the same data.
    """
    left = sorted(own)
    found = []
    for site in order:
        alike = [n for n in ([site] if site in left else left) if np.array_equal(own[n], known[site], equal_nan=True)]
        if not alike:
            other = f"{site!r} of shape {own[site].shape}" if site in own else f"sites {sorted(own)}"
            raise ArgumentError(
                f"compare_models: {first!r} and {name!r} are of different data: {site!r} of shape {known[site].shape}, "
                f"and {other}, do not hold the same values; fit both to the same"[:300]
            )
        found.append(alike[0])
        left.remove(alike[0])
    if left:
        text = f"compare_models: {name!r} observes {left} too, and {first!r} does not; fit both to the same data"
        raise ArgumentError(text[:300])
    return found
