"""Fits without steps: families whose draws are found by importance sampling."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from vi_reparam.backend.data import Data
from vi_reparam.errors import ArgumentError, NonFiniteError, SiteError, ViReparamError, first_line
from vi_reparam.fit import adaptive_mixture, nested_laplace
from vi_reparam.fit.options import Options
from vi_reparam.guides import AdaptiveMixture, FullRank, GuideFamily, NestedLaplace, Structured
from vi_reparam.posterior.evidence import vouched
from vi_reparam.posterior.tail import fit_tail
from vi_reparam.programs.rows import NOT_AT_ONCE

SAMPLERS: dict[type[GuideFamily], Any] = {NestedLaplace: nested_laplace, AdaptiveMixture: adaptive_mixture}
"""By family, the module with its `why_not` and its `fitted`."""

TOLD = ("num_steps", "num_particles", "optimizer", "init", "devices", "checkpoint")


def sampler_of(family: GuideFamily) -> Any:
    """The module that fits a family without steps."""
    return SAMPLERS[type(family)]


def run_sampler(fitter: Any, data: Data, options: Options, begun: float, stream: Any) -> Any:
    """As `Fitter.run`, of a family without steps."""
    guided, engine, ops = fitter.guided, fitter.engine, fitter.ops
    family = guided.family
    given = [name for name in TOLD if getattr(options, name) is not None]
    if given or stream is not None:
        what = f"fit({given[0]}=...)" if given else "vr.batches"
        raise ArgumentError(f"{family!r} is fitted without steps, and {what} has nothing to act on: leave it out")
    fitter.fitter_of(Structured(), share=True).check(data, engine.key(options.seed))
    sampler = sampler_of(family)
    why = sampler.why_not(guided, data)
    if why:
        raise SiteError(f"{why}: use vr.Structured()")
    seed = int(options.seed) if isinstance(options.seed, Integral) else 0
    starts: list[Any] = []

    def start() -> Any:
        starts.append(_start_of(fitter, data, options.seed))
        if "interrupted" in starts[0].record:
            raise KeyboardInterrupt
        return starts[0]

    try:
        found = sampler.fitted(guided, data, seed, start)
    except KeyboardInterrupt:  # what it starts from is there
        if not starts:
            raise
        starts[0].record["interrupted"] = f"the fit was interrupted before any draws of {family!r} were kept"
        return starts[0]
    except np.linalg.LinAlgError as error:
        text = f"{family!r}: the draws have no covariance ({first_line(error)})"
        raise NonFiniteError(text, step=0, sites={}, params={}, losses=np.zeros(0)) from error
    except NOT_AT_ONCE as error:
        if isinstance(error, ViReparamError):
            raise
        name = guided.name[:40]
        why = f"failed on {name} ({first_line(error)[:120]})"
        if not nested_laplace.runs_at_once(guided, data):
            why = f"runs many draws of the model at once, and {name} reads values in Python"
        raise SiteError(f"{family!r} {why}: use vr.Structured()") from error
    counts = found.rounds, found.num_draws, found.gradients
    record = record_without_steps(*counts, "importance sampling", "rounds of importance sampling")
    record |= {} if found.evidence is None else {"sampled": found.evidence}
    own = type(fitter)(guided.for_family(found.family))
    params = {name: ops.asarray(value) for name, value in found.params.items()}
    params = own.guided.start_at(data, engine.key(0), own.guided.base_guide.named(params))
    posterior = own.posterior_of(data, params, np.zeros(0), record, options, begun, finish=False)
    if found.family.has_tail:  # weights of components are those of the draws
        fit_tail(posterior)
    return vouched(posterior)


def _start_of(fitter: Any, data: Data, seed: Any) -> Any:
    """A posterior to begin at: one that is there, or a Gaussian at the best place of the search."""
    for family in (FullRank(), Structured()):
        if family in fitter.fitted:
            return fitter.fitted[family]
    simpler, plain = fitter.fitter_of(FullRank(), share=True), Options(seed=seed)
    places = simpler.guided.base_guide.searcher.run(data, fitter.engine.key(seed))[:1]
    matched = simpler.matched(data, plain, places) if places else None
    return matched or simpler.run(data, plain, final=False)


def record_without_steps(num: int, draws: int, gradients: int, objective: str, steps: str) -> dict[str, Any]:
    """The facts about a fit without an optimizer; `num` stands for its steps, and `draws` for those of each."""
    return {
        "num_steps": num,
        "converged": True,
        "rivals": [],
        "num_particles": draws,
        "gradients": gradients,
        "objective": objective,
        "estimators": {},
        "variances": {},
        "steps": steps,
    }
