"""Posterior predictive draws for new inputs."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.primitives import Messenger

from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.posterior.sites import Site
from vi_reparam_numpyro.scoring import Arguments, Scorer, draw_guide, full_data, is_data, is_latent


class resample(Messenger):  # noqa: N801 (handlers are lower case in NumPyro)
    """Draws observed sites afresh, in the shape of what was observed."""

    def process_message(self, msg: dict) -> None:
        if not is_data(msg):
            return
        fn = msg["fn"]
        shape = np.shape(msg["value"])
        batch_shape = jnp.broadcast_shapes(fn.batch_shape, shape[: len(shape) - fn.event_dim])
        if batch_shape != tuple(fn.batch_shape):
            msg["fn"] = fn.expand(batch_shape)  # an observation may be wider than its distribution
        msg["value"], msg["is_observed"] = None, False


class take_latents(Messenger):  # noqa: N801
    """Gives latent sites the guide's values; those that belong to other data are left to the model.

    Args:
        fn: the model.
        values: the guide's draw.
        sites: the form of the latents in the fit.
        plate_sizes: the plates' sizes in the fit.
        fresh: names of sites to leave to the model.
    """

    def __init__(
        self, fn: Any, values: dict, sites: dict[str, Site], plate_sizes: dict[str, int], fresh: Collection[str]
    ) -> None:
        self.values, self.sites, self.plate_sizes, self.fresh = values, sites, plate_sizes, fresh
        super().__init__(fn)

    def process_message(self, msg: dict) -> None:
        if not is_latent(msg) or msg["name"] not in self.values or msg["name"] in self.fresh:
            return
        name = msg["name"]
        shape = tuple(msg["fn"].shape())
        if shape == self.sites[name].shape:
            msg["value"] = self.values[name]
        elif all(self.plate_sizes.get(frame.name) == frame.size for frame in msg["cond_indep_stack"]):
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
    key: jax.Array,
    return_sites: Collection[str] | None,
    fresh_sites: Collection[str],
) -> dict[str, jax.Array]:
    """Draws from the posterior predictive distribution.

    Args:
        scorer: the fitted model and guide.
        args: positional arguments of the model for the new inputs.
        kwargs: keyword arguments.
        num_draws: how many.
        key: a `jax.random` key.
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
    seen: list[set] = []

    def one(arguments, key, params, fit_arrays, arrays):
        guide_key, model_key = jax.random.split(key)
        guide_trace = draw_guide(scorer.guide, params, *scorer.arguments.merge(fit_arrays), guide_key)
        values = {n: s["value"] for n, s in guide_trace.items() if is_latent(s) and n in scorer.sites.latents}
        model = resample(full_data(handlers.substitute(scorer.model, data=params)))
        model = take_latents(model, values, scorer.sites.latents, scorer.sites.plate_sizes, fresh)
        new_args, new_kwargs = arguments.merge(arrays)
        trace = handlers.trace(handlers.seed(model, model_key)).get_trace(*new_args, **new_kwargs)
        sites = {n: s for n, s in trace.items() if s["type"] == "deterministic" or is_latent(s)}
        seen.append(set(sites))
        if wanted is None:
            return {n: s["value"] for n, s in sites.items() if is_latent(s) and n not in scorer.sites.latents}
        return {n: s["value"] for n, s in sites.items() if n in wanted}

    def probe(arguments):
        out = jax.eval_shape(partial(one, arguments), key, scorer.params, scorer.arguments.arrays, arguments.arrays)
        probed.append(sum(int(np.prod(x.shape, dtype=np.int64)) for x in jax.tree.leaves(out)))

    probed: list[int] = []
    arguments = Arguments.traceable(args, kwargs, probe)
    if wanted is not None:
        _known(wanted, seen[-1], "return_sites", "a site that the model draws")
    # closed-over arrays are not hashable, so such calls are not kept
    name = None if arguments.key is None else ("predict", arguments.key, wanted, fresh)
    call = scorer.compiled(name, lambda: partial(one, arguments), num_draws, scalars=probed[-1])
    return call(key, scorer.params, scorer.arguments.arrays, arguments.arrays)


def _known(names: Collection[str], sites: Collection[str], option: str, what: str) -> frozenset[str]:
    names = _names(names)
    unknown = sorted(names - set(sites))
    if unknown:
        raise ArgumentError(f"{option} names {', '.join(unknown)}, not {what}; there are: {', '.join(sorted(sites))}")
    return names


def _names(names: Collection[str]) -> frozenset[str]:
    return frozenset([names] if isinstance(names, str) else names)
