"""A minibatch must be taken by the plate's own indices."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger

from vi_reparam.errors import ArgumentError
from vi_reparam_pyro.host.handlers import is_subsample
from vi_reparam_pyro.lanes.vmap import keyed
from vi_reparam_pyro.ops.ops import mix
from vi_reparam_pyro.prototype import look
from vi_reparam_pyro.run import sample_sites


class _TagIndices(Messenger):
    """Marks the indices of subsampled plates, so that what uses them can be told."""

    def __init__(self) -> None:
        super().__init__()
        self.plates: set[str] = set()

    def _pyro_post_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if is_subsample(fn) and fn.subsample_size is not None and 0 <= fn.subsample_size < fn.size:
            self.plates.add(msg["name"])
            msg["value"] = track_provenance(msg["value"], frozenset({msg["name"]}))


def check_subsampling(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a subsampled plate whose observed terms do not depend on the plate's indices.

    A minibatch that is passed as an argument pairs its rows with the wrong indices, and so with
    the wrong local latents, as soon as the particles draw minibatches of their own.

    Raises:
        ArgumentError: naming the plate and the observed sites.
    """
    found = look(model, args, kwargs, mix(0))
    latents = {n: s["value"] for n, s in found.items() if not s["is_observed"]}
    held = poutine.condition(model, data=latents)
    tags = _TagIndices()
    with poutine.block(), pyro.get_param_store().scope(), keyed(mix(0)), torch.no_grad(), tags:
        sites = sample_sites(poutine.trace(held).get_trace(*args, **kwargs))
    for plate in sorted(tags.plates):
        observed = [
            n
            for n, s in sites.items()
            if n not in latents and s["is_observed"] and any(f.name == plate for f in s["cond_indep_stack"])
        ]
        if not observed:
            continue
        terms = [sites[n]["fn"].log_prob(sites[n]["value"]) for n in observed]
        if not any(plate in get_provenance(term) for term in terms):
            raise ArgumentError(
                f"plate {plate!r} is subsampled, but the observed {', '.join(map(repr, observed))} in it does not "
                "depend on its indices: index the full data inside the plate (with pyro.plate(...) as i: y = y[i])"
            )
