"""When a family is good enough, and when a richer one does not pay: the decisions behind `guides.Escalate`."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Args
from vi_reparam.errors import NonFiniteError, SiteError, ViReparamError, could_not_run
from vi_reparam.estimators import Auto
from vi_reparam.fit import nested_laplace
from vi_reparam.fit.forgotten import warn_of_forgotten
from vi_reparam.fit.options import Options
from vi_reparam.fit.samplers import sampler_of
from vi_reparam.gaussians.pathfinder import MOST_PLACES, SMALL
from vi_reparam.guides.base import GuideFamily
from vi_reparam.guides.escalate import NUM_GRADIENTS, cost_of
from vi_reparam.guides.gaussian import FullRank
from vi_reparam.guides.mean_field import MeanField
from vi_reparam.guides.mixture import Mixture
from vi_reparam.guides.structured import Structured
from vi_reparam.posterior.attempt import GOOD_GAP, GOOD_MISSED, GOOD_SHIFT, Attempt
from vi_reparam.posterior.copies import copies
from vi_reparam.posterior.evidence import by_student_t
from vi_reparam.posterior.modes import missed_modes, moved_by
from vi_reparam.posterior.verdict import KHAT_GOOD, KHAT_USABLE, NEGLIGIBLE_MODE

HOPELESS = GOOD_GAP
"""Nats that a mean field must lose to correlations for it not to be tried: it would not be good."""

FAR_BELOW = 5.0
"""Nats below the search's own Gaussian at which a match is no start."""

ONE_BY_ONE = 50_000
"""Gradients of log p for all families together, of a model that reads values in Python: each takes milliseconds."""


class Budget(NamedTuple):
    """What a ladder may take, and has taken.

    Attributes:
        gradients: of log p that are left.
        seconds: that are left; infinite without a clock.
        pace: seconds a gradient, as far as is known.
    """

    gradients: float
    seconds: float = math.inf
    pace: float = 0.0


def why_stop(attempts: Sequence[Attempt], next_cost: float | None, left: Budget) -> str:
    """Why the last attempt is the last one; empty to go on. The next one's cost is in gradients; None without one."""
    fitted = [a for a in attempts if a.steps]
    if fitted and fitted[-1].is_good:
        return f"{fitted[-1].family} is good: the importance weights find nothing left to correct"
    if fitted and fitted[-1].is_nearly_good:
        return f"{fitted[-1].family} is nearly good: steps of another family would leave more for weights to correct"
    if next_cost is None:
        return "no richer family is left to try"
    if next_cost > left.gradients:
        return f"the next family may take {next_cost:,.0f} gradients, and {left.gradients:,.0f} of Escalate's are left"
    if next_cost * left.pace > left.seconds:
        time_left = f"and {left.seconds:.0f} are left"
        return f"the clock ended it: the next family may take {next_cost * left.pace:.0f} s, {time_left}"
    if len(fitted) > 3 and not fitted[-1].is_better_than(fitted[-2]):
        return f"{fitted[-1].family} gained nothing over {fitted[-2].family}"
    return ""


def escalate(guided: Any, args: Args, kwargs: dict[str, Any], options: Options) -> Any:
    """Fit a `Guided` whose family is an `Escalate`: the best posterior, whose record says why it ended.

    Raises:
        NonFiniteError: if every family failed.
    """
    spec, engine = guided.family, guided.backend.engine
    options.check(engine)
    data, key = engine.data(args, kwargs, guided.model), engine.key(options.seed)
    guided.for_family(MeanField()).fitter.check(data, key)
    warn_of_forgotten(guided.backend, guided.model, data)
    shape = shape_of(guided, data)
    named = any(site != "*" or not isinstance(e, Auto) for site, e in guided.estimators.items())
    ladder, file = spec.ladder(**shape._asdict(), estimators=named), options.checkpoint
    known = repr(getattr(getattr(options.init, "guided", None), "family", None))
    begun = next((i for i, family in enumerate(ladder) if repr(family) == known), 0)
    ladder = ladder[begun:]  # from the family of the posterior that it starts at
    posteriors: dict[GuideFamily, Any] = {}
    slow = not nested_laplace.runs_at_once(guided, data)
    joint = guided.for_family(FullRank()).base_guide  # knows how latents are laid out, and searches them
    is_searched = FullRank() in ladder and joint.family.is_dense(joint.layout(*data.call).size)
    places = joint.searcher.run(data, key) if is_searched else []
    modes = [place for place in places if place.is_mode]
    if any(matters(guided.backend.ops, modes[0], mode) for mode in modes[1:]):
        ladder = spec.with_modes(ladder)
    alike = copies(joint, data, modes) if len(modes) > 1 else {}
    apart = places if shape.size is not None and shape.size <= SMALL else modes

    def fit(family: GuideFamily) -> Any:
        own = f"{file}.{type(family).__name__}" if file is not None and len(ladder) > 1 else file
        fitter = guided.for_family(family).fitter
        fitter.fitted = dict(posteriors)  # where a richer family may start from
        chosen = {FullRank(): modes[:1], Mixture(): places}.get(family, [])
        at_once = (chosen or family == Structured()) and not is_told
        posterior = fitter.matched(data, options, chosen) if at_once else None
        enough = slow or family == FullRank()
        if posterior is not None and family == FullRank():
            enough = posterior.log_weights.mean() > modes[0].bound - FAR_BELOW  # else the match was lost
        try:
            if posterior is None or not (enough or posterior.attempt(seconds=0.0).is_good):
                posterior = fitter.run(data, replace(options, checkpoint=own if family.takes_steps else None))
            posteriors[family] = posterior
            missed = missed_modes(posterior, apart, joint)
            posterior.record["rivals"] = missed.behind or posterior.record["rivals"] * (not places)
            posterior.record["far"] = missed.moved
        except KeyboardInterrupt:
            if posterior is None:
                raise
            posterior.record["interrupted"] = "the fit was interrupted before its end"
        if len(modes) > 1:
            posterior.record["copies"] = alike
            posterior.record["crowded"] = len(modes) * (len(modes) >= MOST_PLACES)
        return posterior

    is_told = (options.num_steps, options.optimizer, options.init, spec.families) != (None,) * 4

    def skip_reason(family: GuideFamily) -> str:
        if not family.takes_steps:
            why = sampler_of(family).why_not(guided, data)
            told = "it is fitted without steps, and fit() was told how to take them"
            return f"left out: {why or told}" if why or (is_told and spec.families is None) else ""
        if not isinstance(family, MeanField) or spec.families is not None:
            return ""
        if Structured() in posteriors and guided.for_family(Structured()).base_guide.covers_mean_field(*data.call):
            return "left out: Structured() holds all that it can draw, or nearly"
        if Mixture() in ladder:  # and the mean field
            return f"left out: the search found {len(modes)} modes, and it covers one"
        if not places:
            return ""
        root = guided.backend.ops.to_numpy(places[0].frame.root)
        nats = mean_field_loss(root, np.linalg.inv(root))
        lost = f"left out: the latents' correlations alone would cost it about {nats:.2g} nats"
        return lost if nats >= HOPELESS else ""

    cost = functools.partial(cost_of, num_steps=options.num_steps)
    gradients = ONE_BY_ONE if slow and spec.gradients == NUM_GRADIENTS else spec.gradients
    best = _climb(ladder, fit, skip_reason, cost, gradients=gradients, seconds=spec.budget or math.inf)
    if shape.size is not None and not best.khat < KHAT_USABLE and "interrupted" not in best.record:
        known = best.record.get("surest")
        try:
            own = None if known and known["khat"] < KHAT_GOOD else by_student_t(best, joint)
        except KeyboardInterrupt:
            own, best.record["interrupted"] = None, "the search was interrupted after its last family"
        if own is not None and not (known is not None and known["khat"] <= own["khat"]):
            best.record["surest"] = own
    engine.settle(best)  # networks train in place, and later families went on with them
    return best


def matters(ops: Any, best: Any, other: Any) -> bool:
    """Whether a mode holds a hundredth of the mass of the best, or is so far away that less would show."""
    behind, root = best.bound - other.bound, ops.to_numpy(best.frame.root)
    way = ops.to_numpy(other.frame.center) - ops.to_numpy(best.frame.center)
    moved = moved_by(way[None], np.array([behind]), np.sqrt((root**2).sum(1)))
    return behind < NEGLIGIBLE_MODE or max(moved) > GOOD_SHIFT


def _climb(
    ladder: Sequence[GuideFamily],
    fit: Callable[[GuideFamily], Any],
    skip_reason: Callable[[GuideFamily], str],
    cost: Callable[[GuideFamily], int],
    *,
    gradients: int,
    seconds: float,
) -> Any:
    """Fit one family after the other, until one is good or no more is to be gained; the best posterior.

    `skip_reason` says why a family need not be tried; it is empty where it should be. `cost` counts gradients.
    """
    begun = time.perf_counter()
    attempts: list[Attempt] = []
    kept: tuple[Any, Attempt] | None = None
    surest: tuple[Any, Attempt] | None = None
    sampled: dict[str, Any] | None = None  # what importance sampling says of the evidence
    left, why, failure = Budget(gradients, seconds), "", None
    for family in ladder:
        done = kept is not None and why_stop(attempts, 0, left) != ""
        note = skip_reason(family) if len(ladder) > 1 and not done else ""
        if note:
            attempts.append(Attempt(repr(family), note=note))
            continue
        why = why_stop(attempts, cost(family), left) if kept else ""
        if why:
            break
        started, posterior = time.perf_counter(), None
        try:
            posterior = fit(family)
            attempt = posterior.attempt(seconds=time.perf_counter() - started)
        except KeyboardInterrupt:
            if kept is None and posterior is None:
                raise
            kept = kept or (posterior, Attempt(repr(family), note="interrupted"))
            why = kept[0].record["interrupted"] = f"the search was interrupted at {family!r}"
            break
        except (NonFiniteError, SiteError) as error:
            if isinstance(error, SiteError) and kept is None and family.takes_steps:
                raise
            failure = error
            attempts.append(Attempt(repr(family), note=f"failed: {error}"))
            continue
        pace = max(left.pace, attempt.seconds / max(cost(family), attempt.gradients))
        left = Budget(left.gradients - attempt.gradients, seconds - (time.perf_counter() - begun), pace)
        attempts.append(attempt)
        sampled = posterior.record.get("sampled", sampled)
        if kept is None or attempt.is_better_than(kept[1]):
            kept = posterior, attempt
        if attempt.missed < GOOD_MISSED and (surest is None or attempt.khat < surest[1].khat):
            surest = posterior, attempt
        if "interrupted" in posterior.record:
            why = kept[0].record["interrupted"] = f"{posterior.record['interrupted']} of {family!r}"
            break
    if kept is None:
        assert failure is not None
        raise failure
    posterior = kept[0]
    known = [own for own in (sampled, posterior.record.get("surest")) if own]
    if surest is not None and surest[0] is not posterior:
        value, error = surest[0].log_evidence()
        known.append({"family": surest[1].family, "khat": surest[1].khat, "log_evidence": value, "error": error})
    if known:
        posterior.record["surest"] = min(known, key=lambda own: own["khat"])
    posterior.record["why"] = why or why_stop(attempts, None, left)
    posterior.record["tried"] = [attempt.plain() for attempt in attempts]
    return posterior


class Shape(NamedTuple):
    """What a ladder depends on.

    Attributes:
        size: coordinates of the model's latents; None where no joint family covers them.
        subsampled: whether it sees minibatches.
        hierarchical: whether `vr.Structured` knows more of it than that its latents are many.
        num_globals: coordinates that it draws together; `num_locals`: the others.
    """

    size: int | None = None
    subsampled: bool = False
    hierarchical: bool = False
    num_globals: int = 0
    num_locals: int = 0


def shape_of(guided: Any, data: Data) -> Shape:
    """The shape of a model, as far as a ladder depends on it."""
    guide = guided.for_family(Structured()).base_guide
    try:
        layout = guide.layout(*data.call)
        subsampled = bool(guide.latents.structure(*data.call).subsampled)
        if any(part.site.is_masked for part in layout.parts):
            return Shape(layout.size, subsampled)
        split = guide.split(*data.call)
    except (ViReparamError, NotImplementedError):  # a support without a bijection, which the mean field covers
        return Shape()
    except Exception as error:
        raise could_not_run(guided.name, data.shapes(guided.backend.ops), error) from error
    return Shape(layout.size, subsampled, split.is_hierarchy, split.num_globals, split.num_locals)


def mean_field_loss(root: Any, inverse: Any) -> float:
    """Nats that the best product of normals is below the evidence, for a Gaussian posterior.

    Args:
        root: lower triangular, its covariance is root root^T; `inverse`: of the root. Shape ``[D, D]``.
    """
    precisions = (inverse**2).sum(0)
    return sum(0.5 * math.log(p) + math.log(scale) for p, scale in zip(precisions, root.diagonal(), strict=True))
