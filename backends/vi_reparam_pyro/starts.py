"""Where a guide starts: near the data, since a start far from everything costs it most of its steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vi_reparam_pyro.ops.ops import mix
from vi_reparam_pyro.prototype import Site, bijection, look, origin
from vi_reparam_pyro.scoring import total_log_prob

Array = Any


def starting_values(
    model: Any, args: Any, kwargs: Any, sites: dict[str, Site], *, num_draws: int = 32
) -> dict[str, Array]:
    """Of a few candidates the one with the highest joint density, at the sites' full shapes.

    Candidates are the prior's median, its mean, the unconstrained origin and draws of the prior.

    Args:
        model: the model; `args`, `kwargs`: its arguments.
        sites: its latents, as `prototype.prototype`.
        num_draws: prior draws behind the median and the mean.
    """
    runs = [look(model, args, kwargs, mix(i)) for i in range(num_draws)]
    draws = {n: torch.stack([run[n]["value"] for run in runs]) for n in sites}

    def central(statistic: Any) -> dict[str, Array]:
        return {n: _project(_central(statistic, v, sites[n]), sites[n], v.dtype) for n, v in draws.items()}

    candidates = [
        central(lambda x: torch.nanmedian(x, dim=0).values),
        central(lambda x: torch.nanmean(x, dim=0)),
        {n: origin(sites[n].support, tuple(v.shape[1:])).to(v.dtype) for n, v in draws.items()},
        *({n: v[i] for n, v in draws.items()} for i in range(8)),
    ]
    scores = [_score(model, args, kwargs, candidate) for candidate in candidates]
    best = candidates[int(np.argmax(scores))]
    return {n: _to_full(best[n], s.shape) for n, s in sites.items()}


def _score(model: Any, args: Any, kwargs: Any, values: dict[str, Array]) -> float:
    try:
        found = look(model, args, kwargs, mix(1), values)
        with torch.no_grad():
            total = float(total_log_prob(found))
    except (ValueError, NotImplementedError):  # outside a support, or an improper prior
        return -np.inf
    return total if np.isfinite(total) else -np.inf


def _central(statistic: Any, draws: Array, site: Site) -> Array:
    """A mean or median over draws; taken in unconstrained coordinates where the support is unusual."""
    floats = draws.to(torch.get_default_dtype()) if not draws.is_floating_point() else draws
    floats = torch.where(torch.isfinite(floats), floats, torch.nan)
    if site.kind != "other":
        return statistic(floats)
    transform = bijection(site.support)
    return transform(statistic(transform.inv(floats)))


def _project(value: Array, site: Site, dtype: Any) -> Array:
    """Means and medians, taken back onto the site's support."""
    if site.kind == "simplex":
        value = value / value.sum(-1, keepdim=True)
    elif site.kind == "sphere":
        value = value / torch.linalg.vector_norm(value, dim=-1, keepdim=True).clamp(min=1e-6)
    elif site.kind in ("boolean", "count", "discrete"):
        value = value.round()
    return value.to(dtype)


def _to_full(value: Array, shape: tuple[int, ...]) -> Array:
    """A value of a minibatch, repeated to the plates' full size."""
    for axis, (have, want) in enumerate(zip(value.shape, shape, strict=True)):
        if have != want:
            value = value.index_select(axis, torch.arange(want, device=value.device) % have)
    return value
