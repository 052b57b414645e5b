"""`vr.Escalate` for a NumPyro model: what it needs to know of the model, and the climb."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.estimators import Auto
from vi_reparam.fit import escalation
from vi_reparam.guides import FullRank, GuideFamily, MeanField
from vi_reparam.programs.latents import Latents
from vi_reparam.programs.layout import Layout
from vi_reparam_numpyro.arguments import Arguments
from vi_reparam_numpyro.backend import backend, data_of
from vi_reparam_numpyro.fit import as_key, check_options

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
    first = guided.rung(MeanField()).fitter
    args, kwargs = first.prepare(args, kwargs)
    first.check(args, kwargs)

    def fit(family: GuideFamily, checkpoint: Any, earlier: dict[GuideFamily, Any]) -> Any:
        fitter = guided.rung(family).fitter
        fitter.fitted, fitter.reads_data = earlier, first.reads_data
        return fitter.fit(args, kwargs, **{**options, "checkpoint": checkpoint})

    def loss() -> float:
        return _mean_field_loss(guided.rung(FullRank()), first.arguments(args, kwargs), options["seed"])

    return escalation.climb_with(spec, _ladder(guided, args, kwargs), fit, loss, options["checkpoint"])


def _ladder(guided: Guided, args: Any, kwargs: Any) -> list[GuideFamily]:
    spec: Any = guided.family
    named = any(site != "*" or not isinstance(e, Auto) for site, e in guided.estimators.items())
    size, subsampled = size_of(guided.model, args, kwargs)
    return spec.ladder(size, estimators=named, subsampled=subsampled)


def size_of(model: Any, args: Any, kwargs: Any) -> tuple[int | None, bool]:
    """Coordinates of the latents, None where no joint family covers them; and whether a plate is subsampled."""
    try:
        sites = Latents(backend, model).sites(args, kwargs)
        subsampled = any(p.size != p.subsample_size for site in sites.values() for p in site.plates)
        return Layout.of(backend, sites, "Escalate").size, subsampled
    except Exception:  # the mean field covers supports without a bijection, and its fit says what is wrong
        return None, False


def _mean_field_loss(rung: Guided, arguments: Arguments, seed: Any) -> float:
    """Nats that correlations cost a mean field, by the best Gaussian that the search finds."""
    layout = rung.written.layout(*arguments.join(arguments.arrays))
    found = rung.written.searcher.run(layout, data_of(arguments), as_key(seed))
    return escalation.mean_field_loss(found[0].root, np.linalg.inv(found[0].root)) if found else 0.0
