"""What callers that are still to go take from a run."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.util import scale_and_mask

from vi_reparam.objectives.run import Runner
from vi_reparam_pyro.backend import backend
from vi_reparam_pyro.host.handlers import is_subsample

Array = Any


def runner_of(model: Any, guide: Any, args: Any, kwargs: Any, entropy: str) -> Runner:
    """`vi_reparam.objectives.run.run` with its program bound."""
    return Runner(backend, model, guide, args, kwargs, entropy)


def sample_sites(trace: Any) -> dict[str, Any]:
    """The random variables of a trace, plates' indices and deterministic sites left out."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not is_subsample(site["fn"]) and not site["infer"].get("_deterministic")
    }


def scaled(site: Any, term: Array) -> Array:
    """A site's term, broadcast to its batch shape, masked by its handlers and scaled by its plates."""
    shape = torch.broadcast_shapes(term.shape, tuple(site["fn"].batch_shape))
    return scale_and_mask(term.expand(shape), site["scale"], site["mask"])
