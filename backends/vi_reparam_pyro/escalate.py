"""`vr.Escalate` for a Pyro model: what it needs to know of the model, and the climb."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vi_reparam.estimators import Auto
from vi_reparam.fit import escalation
from vi_reparam.guides import FullRank, GuideFamily
from vi_reparam.programs.latents import Latents
from vi_reparam.programs.layout import Layout
from vi_reparam_pyro.arguments import as_tensors, check_data, to_numpy
from vi_reparam_pyro.backend import backend, data_of
from vi_reparam_pyro.fit import as_key, check_options

if TYPE_CHECKING:
    from vi_reparam_pyro.guided import Guided


def climb(guided: Guided, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    """Fit `guided`, whose family is an `Escalate`.

    Args:
        options: of `Guided.fit`.
    """
    spec: Any = guided.family
    check_options(**{n: options[n] for n in ("num_steps", "num_particles", "optimizer", "progress")})
    key = as_key(options["seed"])
    check_data(args, kwargs)
    args, kwargs = as_tensors(args, kwargs)
    guided.fitter.check(key, args, kwargs)

    def fit(family: GuideFamily, checkpoint: Any, earlier: dict[GuideFamily, Any]) -> Any:
        fitter = guided.rung(family).fitter
        fitter.fitted = earlier
        return fitter.fit(args, kwargs, **{**options, "checkpoint": checkpoint})

    def loss() -> float:
        return _mean_field_loss(guided.rung(FullRank()), args, kwargs, key)

    kept = escalation.climb_with(spec, _ladder(guided, args, kwargs), fit, loss, options["checkpoint"])
    with torch.no_grad():  # networks train in place, and later families went on with them
        for name, weight in kept.guided.fitter.networks.items():
            weight.copy_(kept.params[name])
    return kept


def _ladder(guided: Guided, args: Any, kwargs: Any) -> list[GuideFamily]:
    spec: Any = guided.family
    named = any(site != "*" or not isinstance(e, Auto) for site, e in guided.estimators.items())
    size, subsampled = size_of(guided.model, args, kwargs)
    return spec.ladder(size, estimators=named, subsampled=subsampled)


def size_of(model: Any, args: Any, kwargs: Any) -> tuple[int | None, bool]:
    """Coordinates of the latents, None where no joint family covers them; and whether a plate is subsampled."""
    try:
        latents = Latents(backend, model)
        layout = Layout.of(backend, latents.sites(args, kwargs), "Escalate")
        subsampled = bool(latents.structure(args, kwargs).subsampled)
    except Exception:  # the mean field covers supports without a bijection, and its fit says what is wrong
        return None, False
    return layout.size, subsampled


def _mean_field_loss(rung: Guided, args: Any, kwargs: Any, key: int) -> float:
    """Nats that correlations cost a mean field, by the best Gaussian that the search finds."""
    found = rung.written.searcher.run(rung.written.layout(args, kwargs), data_of(args, kwargs), key)
    if not found:
        return 0.0
    root = to_numpy(found[0].root)
    return escalation.mean_field_loss(root, np.linalg.inv(root))
