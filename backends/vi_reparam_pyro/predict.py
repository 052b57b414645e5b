"""Posterior predictive draws for new inputs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.posterior.sites import Site
from vi_reparam_pyro.engine.arguments import as_tensors
from vi_reparam_pyro.host.handlers import is_subsample
from vi_reparam_pyro.lanes.vmap import keyed
from vi_reparam_pyro.ops.ops import mix
from vi_reparam_pyro.run import sample_sites
from vi_reparam_pyro.scoring import Scorer, deterministics, is_data

Array = Any


class _Resample(Messenger):
    """Draws observed sites afresh, in the shape of what was observed."""

    def _pyro_sample(self, msg: Any) -> None:
        if not is_data(msg):
            return
        fn, shape = msg["fn"], tuple(msg["value"].shape)
        batch_shape = torch.broadcast_shapes(fn.batch_shape, shape[: len(shape) - fn.event_dim])
        if batch_shape != fn.batch_shape:
            msg["fn"] = fn.expand(batch_shape)  # an observation may be wider than its distribution
        msg["value"], msg["is_observed"] = None, False


class _TakeLatents(Messenger):
    """Gives latent sites the guide's values; those that belong to other data are left to the model."""

    def __init__(
        self, values: dict[str, Array], sites: dict[str, Site], plate_sizes: dict[str, int], fresh: Collection[str]
    ) -> None:
        super().__init__()
        self.values, self.sites, self.plate_sizes, self.fresh = values, sites, plate_sizes, fresh

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if msg["is_observed"] or is_subsample(msg["fn"]) or name not in self.values or name in self.fresh:
            return
        shape = tuple(msg["fn"].shape())
        if shape == self.sites[name].shape:
            msg["value"] = self.values[name]
        elif all(self.plate_sizes.get(f.name) == f.size for f in msg["cond_indep_stack"]):
            raise SiteError(
                f"site {name!r} has shape {shape} for these inputs and {self.sites[name].shape} in the fit, and no"
                " plate of it changed its size; give inputs of the form of the fit's"
            )


def predict(
    scorer: Scorer,
    args: tuple,
    kwargs: dict,
    *,
    num_draws: int,
    key: int,
    return_sites: Collection[str] | None,
    fresh_sites: Collection[str],
) -> dict[str, Array]:
    """Draws from the posterior predictive distribution.

    Args:
        scorer: the fitted model and guide.
        args: positional arguments of the model for the new inputs.
        kwargs: keyword arguments.
        num_draws: how many.
        key: from which all draws follow.
        return_sites: names of sites to return; None for all that are neither latent nor
            deterministic.
        fresh_sites: latents to draw from the model instead of the guide.

    Returns:
        Draws by site, each with a leading dimension of `num_draws`.

    Raises:
        ArgumentError: a name is not a site of the model.
        SiteError: a latent has another shape for these inputs, and no plate explains it.
    """
    fresh = _known(fresh_sites, scorer.sites.latents, "fresh_sites", "a latent site of the model")
    wanted = None if return_sites is None else _names(return_sites)
    args, kwargs = as_tensors(args, kwargs)
    latents = scorer.sites.latents

    def everything() -> dict[str, Array]:
        drawn = sample_sites(scorer.draw_guide())
        values = {n: s["value"] for n, s in drawn.items() if not s["is_observed"] and n in latents}
        with _TakeLatents(values, latents, scorer.sites.plate_sizes, fresh), _Resample():
            trace = poutine.trace(scorer.model).get_trace(*args, **kwargs)
        sampled = {n: s["value"] for n, s in sample_sites(trace).items() if not s["is_observed"]}
        return {**sampled, **deterministics(trace)}

    with scorer._ready(), keyed(mix(0)):
        found = everything()
    if wanted is not None:
        _known(wanted, found, "return_sites", "a site that the model draws")
    names = wanted or {n for n in found if n not in latents and n not in scorer.sites.deterministics}
    scalars = sum(found[n].numel() for n in names)

    def one() -> dict[str, Array]:
        values = everything()
        return {n: values[n] for n in sorted(names)}

    return scorer.stacked(one, num_draws, key, scalars=scalars)


def _known(names: Collection[str], sites: Collection[str], option: str, what: str) -> frozenset[str]:
    names = _names(names)
    unknown = sorted(names - set(sites))
    if unknown:
        raise ArgumentError(f"{option} names {', '.join(unknown)}, not {what}; there are: {', '.join(sorted(sites))}")
    return names


def _names(names: Collection[str]) -> frozenset[str]:
    return frozenset([names] if isinstance(names, str) else names)
