"""The verdict: from a posterior's figures to one line on whether to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any, Literal

from vi_reparam.posterior.attempt import GOOD_GAP_EACH, TINY_GAP, are_even

Grade = Literal["good", "fair", "poor"]

KHAT_GOOD = 0.5
KHAT_USABLE = 0.7
MAX_ELBO_ERROR = 0.1
MAX_GAP = 1.0
GOOD_MEAN, GOOD_SD = 0.1, 0.15
"""In sds, and of the logarithm of one: the largest likely error of a posterior that is called good."""

USABLE_MEAN, USABLE_SD = 0.4, 0.3
"""The same, of one that is called fair."""

REPAIR = "use posterior.refine(), or posterior.expectation(..., weighted=True)"
SMALL_GAP = 0.1
"""Nats of KL divergence at which means are within about a tenth, and sds within about 15%, of the truth's sd."""

MANY_LATENTS = 100
NEGLIGIBLE_MODE = 4.6  # nats: a mode this far below holds about a hundredth of the mass
RHAT_GOOD, RHAT_USABLE = 1.01, 1.05
FEWEST_EFFECTIVE = 400

MAX_MISSED = 0.05
"""Part of the mass that a posterior may miss and not be poor."""
NUM_BLOCKS = 10
RUNAWAY = 1e15
"""No unit makes a latent as large: a guide that widens without end does, where the posterior is improper."""


@dataclass(frozen=True)
class Figures:
    """What a verdict is built from; all log densities in nats.

    Attributes:
        khat: Pareto shape of the importance weights' tail; NaN where it could not be had.
        elbo: mean of the log weights.
        elbo_error: its standard error.
        log_evidence: log of the mean weight.
        log_evidence_error: its standard error.
        mean_shift: the most that the weights move a mean, in sds; `sd_shift`: the logarithm of an sd.
        num_weights: how many weights these come from.
        num_nan: how many log weights are NaN or +inf.
        num_outside: how many log weights are -inf (draws outside the model's support).
        num_latents: scalars in one draw.
        drift: `loss_drift` of the fit's losses.
        num_nan_losses: how many losses are not finite.
        rivals: nats by which other modes, found on the way, are below this one.
        far: the most that these would move a mean, in sds, and the logarithm of an sd.
        crowded: how many modes were found, where the search holds no more; else 0.
        copies: which modes say the same, and what to do about it; empty where none do.
        points: latents that the guide puts at one place, which has no density.
        runaway: latents whose draws lie beyond `RUNAWAY`.
        interrupted: what was left undone, in words; empty for a fit that ended by itself.
        raw_evidence: log of the mean weight without Pareto smoothing.
        beyond: part of the mass that the weights' tail holds beyond the largest one.
        refined: of draws that were refined; None for a guide's own.
        surest: of another family, fitted on the way, whose weights have the lowest k-hat; None for none.
    """

    khat: float
    elbo: float
    elbo_error: float
    log_evidence: float
    log_evidence_error: float
    mean_shift: float
    sd_shift: float
    num_weights: int
    num_nan: int
    num_outside: int
    num_latents: int
    drift: Drift | None
    num_nan_losses: int = 0
    points: tuple[str, ...] = ()
    rivals: tuple[float, ...] = ()
    far: tuple[float, float] = (0.0, 0.0)
    crowded: int = 0
    copies: str = ""
    runaway: tuple[str, ...] = ()
    interrupted: str = ""
    surest: Surest | None = None
    raw_evidence: float = -math.inf
    beyond: float = math.inf
    refined: Refinement | None = None

    @property
    def known_gap(self) -> float:
        """The most that the ELBO is likely to be below the log evidence by another family's good weights; else inf."""
        if self.surest is None or not self.surest.khat < KHAT_USABLE:
            return math.inf
        gap, error = self.surest.log_evidence - self.elbo, math.hypot(self.surest.error, self.elbo_error)
        beyond = self.raw_evidence - self.surest.log_evidence
        missed = gap < -4.0 * error - 1e-3 or beyond > SMALL_GAP + 2.0 * error  # that family missed some of the mass
        return math.inf if missed else gap + 2.0 * error

    @property
    def are_even(self) -> bool:
        """Whether the weights differ so little that k-hat says nothing."""
        return are_even(self.log_evidence - self.elbo, self.beyond)

    @property
    def is_known(self) -> bool:
        """Whether the weights say how far the draws are off."""
        return self.khat < KHAT_USABLE or self.are_even

    @property
    def is_vouched(self) -> bool:
        """Whether another family's good weights say that the draws are right, though their own are heavy."""
        return self.known_gap < max(SMALL_GAP, GOOD_GAP_EACH * self.num_latents)

    @property
    def is_surely_right(self) -> bool:
        """The same, so nearly that what is left shows nowhere."""
        return self.surest is not None and self.surest.khat < KHAT_GOOD and self.known_gap < TINY_GAP

    @property
    def missed(self) -> float:
        """Part of the mass that is in modes which the draws miss."""
        return missed_share(self.rivals)


@dataclass(frozen=True)
class Refinement:
    """How the chains mixed that refined draws come from.

    Attributes:
        rhat: the largest of all coordinates; `effective_draws`: the fewest.
    """

    rhat: float
    effective_draws: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Refinement | None:
        """That of a posterior's record; None where it was not refined."""
        known = record.get("refined")
        return None if known is None else cls(known["rhat"], known["effective_draws"])


@dataclass(frozen=True)
class Surest:
    """What a family's weights say of the evidence.

    Attributes:
        family: as it is written; `khat`: of its weights.
        log_evidence: in nats; `error`: its standard error.
    """

    family: str
    khat: float
    log_evidence: float
    error: float


@dataclass(frozen=True)
class Drift:
    """How much the losses still fell over the last part of a fit.

    Attributes:
        amount: mean loss of the part's first half minus that of its second half, in nats.
        error: standard error of `amount`, from the means of blocks.
    """

    amount: float
    error: float

    @property
    def is_settled(self) -> bool:
        """Whether the fall is within three standard errors, or below a tenth of a nat."""
        return self.amount <= max(3.0 * self.error, 0.1)


@dataclass(frozen=True)
class Verdict:
    """Whether to trust a posterior, and why.

    Attributes:
        grade: "good", "fair" or "poor".
        figures: what it was built from.
        reasons: one sentence for each fault found, the worst first, and what modes have in common; empty where there is
            neither.
    """

    grade: Grade
    figures: Figures
    reasons: tuple[str, ...]

    @property
    def line(self) -> str:
        """The figures in one line."""
        f = self.figures
        if f.refined is not None:
            r = f.refined
            return (
                f"verdict: {self.grade} (refined: R-hat {r.rhat:.3f}, {r.effective_draws:,.0f} effective draws or more)"
            )
        return (
            f"verdict: {self.grade} (k-hat {f.khat:.2f}, ELBO {_pm(f.elbo, f.elbo_error)}, "
            f"log evidence {_pm(f.log_evidence, f.log_evidence_error)}, {f.num_weights:,} weights)"
        )

    def __str__(self) -> str:
        return "\n".join([self.line, *(f"  - {reason}" for reason in self.reasons)])


def loss_drift(losses: Sequence[float], fraction: float = 0.2) -> Drift | None:
    """Compares the two halves of the last part of the losses against their own noise.

    Args:
        losses: one estimate of the negative ELBO a step.
        fraction: how much of the fit counts as its last part.

    Returns:
        The drift, or None where there are too few losses or one of the last is not finite.
    """
    length = int(len(losses) * fraction) // (2 * NUM_BLOCKS)
    if length < 1:
        return None
    tail = [float(x) for x in losses[-2 * NUM_BLOCKS * length :]]
    if not all(map(math.isfinite, tail)):
        return None
    # block means: losses of neighbouring steps are correlated
    blocks = [fmean(tail[i * length : (i + 1) * length]) for i in range(2 * NUM_BLOCKS)]
    first, second = blocks[:NUM_BLOCKS], blocks[NUM_BLOCKS:]
    error = math.sqrt((variance(first) + variance(second)) / NUM_BLOCKS)
    return Drift(amount=fmean(first) - fmean(second), error=error)


def judge(figures: Figures) -> Verdict:
    """Grades a posterior by what was measured.

    "poor": a log weight or a loss that is NaN, draws outside the model's support, a point
    estimate, or a k-hat of 0.7 or above (Vehtari et al. 2024; Yao et al. 2018, "Yes, but did it
    work?"). "fair": usable, with a k-hat of 0.5 or above, an ELBO or a gap to the log evidence
    that is not small, or a loss that was still falling. "good": none of these.
    """
    if figures.refined is not None:
        return _judge_refined(figures, figures.refined)
    poor, fair = _faults(figures), _weaknesses(figures)
    grade: Grade = "poor" if poor else "fair" if fair else "good"
    told = [figures.copies] if figures.copies else []  # true of a good fit too
    if figures.are_even and not figures.khat < KHAT_USABLE:
        told.append(
            f"k-hat is {figures.khat:.2f}, and says nothing here: it judges the tail of weights that are nearly equal, "
            f"beyond whose largest {100.0 * figures.beyond:.1g}% of the mass are left"
        )
    if figures.is_surely_right:
        told += _vouched(figures)
    return Verdict(grade=grade, figures=figures, reasons=(*poor, *fair, *told))


def _judge_refined(f: Figures, refined: Refinement) -> Verdict:
    more = "call refine with more draws, or from a richer guide"
    found = []
    if not refined.rhat < RHAT_GOOD:
        found.append(f"the largest R-hat is {refined.rhat:.3f}, and should be below {RHAT_GOOD}: {more}")
    if not refined.effective_draws >= FEWEST_EFFECTIVE:
        found.append(
            f"there are {refined.effective_draws:,.0f} effective draws, and should be {FEWEST_EFFECTIVE}: {more}"
        )
    if f.missed > MAX_MISSED:
        found.append(_missed(f))
    poor = not refined.rhat < RHAT_USABLE or f.missed > MAX_MISSED
    return Verdict("poor" if poor else "fair" if found else "good", f, tuple(found))


def _faults(f: Figures) -> list[str]:
    found = []
    if f.points:
        found.append(
            f"the guide is a point estimate at {', '.join(map(repr, f.points))[:150]}: no spread is there, and no log "
            "weight means anything"
        )
    if f.num_nan:
        found.append(f"{f.num_nan:,} of {f.num_weights:,} log weights are NaN or +inf: no figure here can be trusted")
    if f.num_outside:
        found.append(f"{f.num_outside:,} of {f.num_weights:,} draws lie outside the model's support (ELBO -inf)")
    if f.num_nan_losses:
        found.append(f"{f.num_nan_losses:,} losses of the fit are not finite")
    if f.runaway:
        found.append(
            f"draws of {list(f.runaway)} lie beyond {RUNAWAY:.0e}: the posterior may be improper, a density without a "
            "finite integral, to which no guide can be fitted; give these latents proper priors, or bounds"
        )
    elif not f.is_known and not f.num_nan and not f.is_vouched:
        found.append(_high_khat(f))
    if (f.is_known or f.is_vouched) and _is_far(f):
        found.append(_shifted(f))
    if f.crowded:
        found.append(
            f"{f.crowded} modes were found, and the search holds no more: there may be others, whose mass is lacking "
            "here; write the model so that it has fewer (latents in order, signs fixed)"
        )
    if f.missed > MAX_MISSED:
        found.append(_missed(f))
    elif f.far[0] > USABLE_MEAN or f.far[1] > USABLE_SD:
        found.append(_far(f))
    return found


def _far(f: Figures) -> str:
    return (
        f"a mode was found with about {100.0 * f.missed:.1g}% of the mass, no draw is near, and it is so far away that "
        f"it moves a mean by up to {f.far[0]:.2f} sd and an sd by {100.0 * math.expm1(f.far[1]):.0f}%: use vr.Mixture()"
    )


def _vouched(f: Figures) -> list[str]:
    if f.is_known or f.surest is None or not f.is_vouched:
        return []
    return [
        f"k-hat is {f.khat:.2f}, so do not reweight these draws; the draws themselves are right: their ELBO is within "
        f"{max(f.known_gap, 0.001):.2g} nats of the log evidence that {f.surest.family} gives (k-hat "
        f"{f.surest.khat:.2f})"
    ]


def _is_far(f: Figures) -> bool:
    return f.mean_shift > USABLE_MEAN or f.sd_shift > USABLE_SD


def _shifted(f: Figures) -> str:
    return (
        f"the importance weights move a mean by up to {f.mean_shift:.2f} sd and an sd by up to "
        f"{100.0 * math.expm1(f.sd_shift):.0f}%: {REPAIR}"
    )


def missed_share(rivals: Sequence[float]) -> float:
    """Part of the mass in modes that are so many nats below what the draws reach."""
    beside = sum(math.exp(min(-behind, 700.0)) for behind in rivals)
    return beside / (1.0 + beside)


def _missed(f: Figures) -> str:
    found = [behind for behind in f.rivals if behind < NEGLIGIBLE_MODE]
    if not found:
        return ""
    modes = "another mode was" if len(found) == 1 else f"{len(found)} other modes were"
    return (
        f"{modes} found, with about {100.0 * f.missed:.0f}% of the mass, and no draw is near: use vr.Mixture(), or, "
        "where modes differ by a permutation or a sign alone, order those latents in the model"
    )


def _high_khat(f: Figures) -> str:
    text = f"k-hat is not below {KHAT_USABLE}: neither means, sds nor the log evidence are to be trusted"
    if f.num_latents < MANY_LATENTS:
        return f"{text}; use posterior.refine(), or a richer guide"
    return (
        f"{text}. It judges all {f.num_latents:,} latents at once, and small errors in each add up: posterior.refine() "
        "says how far means and sds are off, and mends them"
    )


def _weaknesses(f: Figures) -> list[str]:
    found = [f"{f.interrupted}: fit again to its end, or go on from its checkpoint"] if f.interrupted else []
    if not f.is_surely_right:
        found += _vouched(f)
    if KHAT_GOOD <= f.khat < KHAT_USABLE and f.log_evidence - f.elbo > TINY_GAP:
        found.append(f"k-hat is between {KHAT_GOOD} and {KHAT_USABLE}: usable, best with importance weights")
    if f.elbo_error > MAX_ELBO_ERROR:
        found.append(f"the ELBO's standard error is above {MAX_ELBO_ERROR} nats")
    gap = f.log_evidence - f.elbo
    if f.is_known and not _is_far(f) and (f.mean_shift > GOOD_MEAN or f.sd_shift > GOOD_SD):
        found.append(_shifted(f))
    elif f.khat < KHAT_USABLE and gap > MAX_GAP:  # above, the evidence itself is not known
        found.append(f"the ELBO is {gap:.3g} nats below the log evidence: about the KL divergence that is left")
    shows, ruins = f.far[0] > GOOD_MEAN or f.far[1] > GOOD_SD, f.far[0] > USABLE_MEAN or f.far[1] > USABLE_SD
    if f.missed <= MAX_MISSED and not ruins and (missed := _far(f) if shows else _missed(f)):
        found.append(missed)
    if f.drift is not None and not f.drift.is_settled:
        found.append(
            f"the loss still fell by {f.drift.amount:.3g} nats over the last tenth of the fit: more steps may help"
        )
    return found


def _pm(value: float, error: float) -> str:
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{value:.6g} ± {error:.2g}"
    digits = 2 if error <= 0.0 else min(max(1 - math.floor(math.log10(error)), 0), 4)
    return f"{value:,.{digits}f} ± {error:.{digits}f}"
