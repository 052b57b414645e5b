"""`vr.Escalate` for a NumPyro model: what it needs to know of the model, and the climb."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from vi_reparam import escalation
from vi_reparam.estimators import Auto
from vi_reparam.guides import FullRank, GuideFamily, MeanField
from vi_reparam_numpyro.arguments import Arguments
from vi_reparam_numpyro.fit import as_key, check_options
from vi_reparam_numpyro.layout import Layout
from vi_reparam_numpyro.prototype import prototype

if TYPE_CHECKING:
    from vi_reparam_numpyro.guided import Guided


def climb(guided: Guided, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    """Fit `guided`, whose family is an `Escalate`.

    Args:
        options: of `Guided.fit`.
    """
    spec: Any = guided.family
    check_options(**{n: options[n] for n in ("num_steps", "num_particles", "optimizer", "progress")})
    as_key(options["seed"])
    args, kwargs = guided.fitter.prepare(args, kwargs)
    guided.fitter.check(args, kwargs)
    rungs = _rungs(guided, args, kwargs)
    posteriors: dict[GuideFamily, Any] = {}

    def fit(family: GuideFamily) -> Any:
        rung = guided.rung(family)
        own = dict(options)
        if options["checkpoint"] is not None and len(rungs) > 1:
            own["checkpoint"] = f"{options['checkpoint']}.{type(family).__name__}"
        rung.fitter.fitted = dict(posteriors)
        posteriors[family] = rung.fitter.fit(args, kwargs, **own)
        return posteriors[family]

    @functools.cache
    def price() -> float:
        return _mean_field_loss(guided.rung(FullRank()), args, kwargs, options["seed"])

    def spare(family: GuideFamily) -> str:
        if not isinstance(family, MeanField) or FullRank() not in rungs or spec.families is not None:
            return ""
        if price() < escalation.HOPELESS:
            return ""
        return f"left out: the latents' correlations alone would cost it about {price():.2g} nats"

    return escalation.climb(rungs, fit, spare, budget=spec.budget)


def _rungs(guided: Guided, args: Any, kwargs: Any) -> list[GuideFamily]:
    spec: Any = guided.family
    named = any(site != "*" or not isinstance(e, Auto) for site, e in guided.estimators.items())
    size, subsampled = None, False
    try:
        with jax.ensure_compile_time_eval():
            sites = prototype(guided.model, args, kwargs)
        size = Layout.of(sites, "Escalate").size
        subsampled = any(p.size != p.subsample_size for site in sites.values() for p in site.plates)
    except Exception:  # the mean field covers supports without a bijection, and its fit says what is wrong
        size = None
    return spec.ladder(size, estimators=named, subsampled=subsampled)


def _mean_field_loss(rung: Guided, args: Any, kwargs: Any, seed: Any) -> float:
    """Nats that correlations cost a mean field, by the best Gaussian that the search finds."""
    layout = rung.written.layout(args, kwargs)
    found = rung.written.searcher.run(layout, Arguments.of(args, kwargs), as_key(seed))
    if not found:
        return 0.0
    inverse = np.linalg.inv(found[0].root)
    diagonal = float(np.log(np.sum(inverse**2, axis=0)).sum())
    log_det = -2.0 * float(np.log(np.diagonal(found[0].root)).sum())
    return escalation.mean_field_loss(diagonal, log_det)
