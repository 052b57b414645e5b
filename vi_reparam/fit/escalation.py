"""When a family is good enough, and when a richer one does not pay: the decisions behind `guides.Escalate`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Args
from vi_reparam.errors import NonFiniteError
from vi_reparam.estimators import Auto
from vi_reparam.fit.arguments import warn_of_forgotten
from vi_reparam.fit.options import Options
from vi_reparam.guides.base import GuideFamily
from vi_reparam.guides.escalate import cost_of
from vi_reparam.guides.gaussian import FullRank
from vi_reparam.guides.mean_field import MeanField
from vi_reparam.guides.structured import Structured
from vi_reparam.posterior.attempt import Attempt

HOPELESS = 0.1
"""Nats that a mean field must lose to correlations for it not to be tried."""


def why_stop(attempts: Sequence[Attempt], next_cost: float | None, elapsed: float, budget: float) -> str:
    """Why the last attempt is the last one; empty to go on. The next family's cost, in seconds, is None without one."""
    fitted = [a for a in attempts if a.steps]
    if fitted and fitted[-1].is_good:
        return f"{fitted[-1].family} is good: the importance weights find nothing left to correct"
    if next_cost is None:
        return "no richer family is left to try"
    if elapsed + next_cost > budget:
        return f"the next family would take about {next_cost:.0f} s, and {elapsed:.0f} s of {budget:.0f} are gone"
    if len(fitted) > 2 and not fitted[-1].is_better_than(fitted[-2]):
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
    posteriors: dict[GuideFamily, Any] = {}

    def fit(family: GuideFamily) -> Any:
        own = f"{file}.{type(family).__name__}" if file is not None and len(ladder) > 1 else file
        fitter = guided.for_family(family).fitter
        fitter.fitted = dict(posteriors)  # where a richer family may start from
        posteriors[family] = fitter.run(data, replace(options, checkpoint=own))
        return posteriors[family]

    def skip_reason(family: GuideFamily) -> str:
        if not isinstance(family, MeanField) or spec.families is not None:
            return ""
        if Structured() in posteriors and guided.for_family(Structured()).base_guide.covers_mean_field(*data.call):
            return "left out: Structured() holds all that it can draw"
        if FullRank() not in ladder:
            return ""
        nats = _mean_field_loss(guided.for_family(FullRank()), data, key)
        lost = f"left out: the latents' correlations alone would cost it about {nats:.2g} nats"
        return lost if nats >= HOPELESS else ""

    best = _climb(ladder, fit, skip_reason, budget=spec.budget)
    engine.settle(best)  # networks train in place, and later families went on with them
    return best


def _climb(
    ladder: Sequence[GuideFamily],
    fit: Callable[[GuideFamily], Any],
    skip_reason: Callable[[GuideFamily], str],
    *,
    budget: float,
) -> Any:
    """Fit one family after the other, until one is good or no more is to be gained; the best posterior.

    `skip_reason` says why a family need not be tried; it is empty where it should be. The budget is in seconds.
    """
    begun = time.perf_counter()
    attempts: list[Attempt] = []
    kept: tuple[Any, Attempt] | None = None
    unit, why, failure = 0.0, "", None
    for family in ladder:
        note = skip_reason(family) if len(ladder) > 1 else ""
        if note:
            attempts.append(Attempt(repr(family), note=note))
            continue
        why = why_stop(attempts, cost_of(family) * unit, time.perf_counter() - begun, budget) if kept else ""
        if why:
            break
        started = time.perf_counter()
        try:
            posterior = fit(family)
            attempt = posterior.attempt(seconds=time.perf_counter() - started)
        except KeyboardInterrupt:
            if kept is None:
                raise
            why = kept[0].record["interrupted"] = f"the search was interrupted at {family!r}"
            break
        except NonFiniteError as error:
            failure = error
            attempts.append(Attempt(repr(family), note=f"failed: {error}"))
            continue
        unit = max(unit, attempt.seconds / cost_of(family))
        attempts.append(attempt)
        if kept is None or attempt.is_better_than(kept[1]):
            kept = posterior, attempt
        if "interrupted" in posterior.record:
            why = kept[0].record["interrupted"] = f"{posterior.record['interrupted']} of {family!r}"
            break
    if kept is None:
        assert failure is not None
        raise failure
    posterior = kept[0]
    posterior.record["why"] = why or why_stop(attempts, None, 0.0, budget)
    posterior.record["tried"] = [attempt.plain() for attempt in attempts]
    return posterior


class Shape(NamedTuple):
    """What a ladder depends on.

    Attributes:
        size: coordinates of the model's latents; None where no joint family covers them.
        subsampled: whether it sees minibatches.
        hierarchical: whether `vr.Structured` knows more of it than that its latents are many.
    """

    size: int | None = None
    subsampled: bool = False
    hierarchical: bool = False


def shape_of(guided: Any, data: Data) -> Shape:
    """The shape of a model, as far as a ladder depends on it."""
    guide = guided.for_family(Structured()).base_guide
    try:
        size = guide.layout(*data.call).size
        subsampled = bool(guide.latents.structure(*data.call).subsampled)
        hierarchical = guide.split(*data.call).is_hierarchy
    except Exception:  # the mean field covers supports without a bijection, and its fit says what is wrong
        return Shape()
    return Shape(size, subsampled, hierarchical)


def _mean_field_loss(guided: Any, data: Data, key: Any) -> float:
    """Nats that correlations cost a mean field, by the best Gaussian that the search finds."""
    guide = guided.base_guide
    places = guide.searcher.run(data, key)
    if not places:
        return 0.0
    root = guided.backend.ops.to_numpy(places[0].root)
    return mean_field_loss(root, np.linalg.inv(root))


def mean_field_loss(root: Any, inverse: Any) -> float:
    """Nats that the best product of normals is below the evidence, for a Gaussian posterior.

    Args:
        root: lower triangular, its covariance is root root^T; `inverse`: of the root. Shape ``[D, D]``.
    """
    precisions = (inverse**2).sum(0)
    return sum(0.5 * math.log(p) + math.log(scale) for p, scale in zip(precisions, root.diagonal(), strict=True))
