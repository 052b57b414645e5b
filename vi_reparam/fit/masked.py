"""Latents that are masked, and on which something else depends: no fit leaves them out, so none is right."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Array
from vi_reparam.errors import SiteError
from vi_reparam.sites.totals import mask_of, total_log_prob


def refuse_flat(backend: Backend, model: Any, data: Data, name: Hashable) -> None:
    """Refuse a latent whose masked part the unmasked density depends on: its prior there would be flat.

    A masked latent has neither a density nor an entropy in a fit, which is right where nothing depends on it.

    Args:
        name: of the program, which is kept.

    Raises:
        SiteError: naming the site, and what to write.
    """
    ops, host, tracer = backend.ops, backend.host, backend.tracer

    def slopes(args: Any, kwargs: Any) -> tuple[dict[str, Array], Array]:
        """By site, how much the density changes with the parts that are masked; whether anything is not masked."""
        key = ops.key(0)
        found = tracer.run(model, args, kwargs, key, alone=True)
        latents = {n: r for n, r in found.items() if r.is_latent}
        fixed = {n: r.value for n, r in latents.items()}
        masks = {n: mask_of(host, r) for n, r in latents.items() if not host.support_of(r.distribution).is_discrete}
        moved = {n: fixed[n] for n, mask in masks.items() if mask is not None}

        def height(values: Any) -> Array:
            run = tracer.run(model, args, kwargs, key, values={**fixed, **values}, alone=True)
            return total_log_prob(backend, run)

        sums, xp = dict[str, Array](), ops.xp
        for name, slope in ops.grad(height)(moved).items() if moved else ():
            mask = ops.xp.asarray(masks[name]) if not hasattr(masks[name], "shape") else masks[name]
            events = slope.ndim - len(latents[name].distribution.batch_shape)
            mask = xp.reshape(mask, (*mask.shape, *(1,) * events))
            counts = xp.logical_and(xp.isfinite(slope), xp.logical_not(mask))
            sums[name] = xp.sum(xp.where(counts, xp.abs(slope), xp.zeros_like(slope)))
        every = [mask_of(host, r) for r in latents.values()]
        left = [xp.max(xp.asarray(True if mask is None else mask) * 1) for mask in every]
        return sums, sum(left, start=xp.asarray(0))

    by_site, left = backend.engine.call(slopes, data, name=name)
    for site, slope in by_site.items():
        if float(ops.to_numpy(slope)) > 0.0:
            raise SiteError(
                f"site {site!r} is masked where the rest of the model depends on it, so its prior would be flat there, "
                "and no guide would know of it: give it a wide prior without the mask, or mask what depends on it too"
            )
    if not float(ops.to_numpy(left)) > 0.0:
        raise SiteError(
            f"every latent is masked ({', '.join(map(repr, by_site))[:60]}), and has neither prior nor data: take the "
            "mask away, or give data that it lets through"
        )
