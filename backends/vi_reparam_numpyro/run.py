"""The core's run under its old name, for callers that are still to go."""

from __future__ import annotations

from typing import Any

from vi_reparam.objectives import run as core
from vi_reparam.sites.draw import Sampled
from vi_reparam_numpyro.backend import backend
from vi_reparam_numpyro.host.distributions import Estimated, precise_log_prob

Array = Any


def run(
    key: Any, params: Any, model: Any, guide: Any, args: Any, kwargs: Any, *, entropy: str = "monte_carlo"
) -> core.Run:
    """As `vi_reparam.objectives.run.run`."""
    return core.run(backend, key, model, guide, args, kwargs, params=params, entropy=entropy)


def model_log_prob(site: Any, drawn: Sampled | None) -> Array:
    """Log density of a model site, from the precise draw of the guide where there is one."""
    fn, value = site["fn"], site["value"]
    fn = fn.base if isinstance(fn, Estimated) else fn
    if drawn is None:
        return fn.log_prob(value)
    return precise_log_prob(fn, value, drawn.family, drawn.draw.logs)
