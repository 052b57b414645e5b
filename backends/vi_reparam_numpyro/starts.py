"""Where a guide starts: near the data, since a start far from everything costs it most of its steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from numpyro.handlers import block, seed, substitute, trace

from vi_reparam_numpyro.prototype import Site, bijection, drawable, unit
from vi_reparam_numpyro.scoring import total_log_prob

Array = Any


def starting_values(
    model: Any, args: Any, kwargs: Any, sites: dict[str, Site], *, num_draws: int = 64
) -> dict[str, Array]:
    """Of a few candidates the one with the highest joint density, at the sites' full shapes.

    Candidates are the prior's median, its mean, the unconstrained origin and draws of the prior.
    The data may be traced: nothing of one call is kept for another.

    Args:
        model: the model; `args`, `kwargs`: its arguments.
        sites: its latents, as `prototype.prototype`.
        num_draws: prior draws behind the median and the mean.
    """

    def one(key: Any) -> dict[str, Array]:
        with block():
            tr = trace(drawable(model, key)).get_trace(*args, **kwargs)
        return {n: tr[n]["value"] for n in sites}

    def score(values: dict[str, Array]) -> Array:
        with block():
            return total_log_prob(trace(substitute(seed(model, random.key(1)), data=values)).get_trace(*args, **kwargs))

    def best(keys: Any) -> dict[str, Array]:
        draws = jax.vmap(one)(keys)
        finite = {n: jnp.where(jnp.isfinite(v), v, jnp.nan) for n, v in draws.items()}
        median = {n: _central(jnp.nanmedian, v, sites[n]) for n, v in finite.items()}
        mean = {n: _central(jnp.nanmean, v, sites[n]) for n, v in finite.items()}
        origin = {n: unit(s.support, tuple(draws[n].shape[1:])) for n, s in sites.items()}
        candidates = [{n: _project(v, sites[n]).astype(draws[n].dtype) for n, v in c.items()} for c in (median, mean)]
        candidates += [origin, *({n: v[i] for n, v in draws.items()} for i in range(8))]
        stacked = jax.tree.map(lambda *xs: jnp.stack(jnp.broadcast_arrays(*xs)), *candidates)
        scores = jax.vmap(score)(stacked)
        chosen = jnp.argmax(jnp.where(jnp.isfinite(scores), scores, -jnp.inf))
        return {n: v[chosen] for n, v in stacked.items()}

    try:
        found = jax.jit(best)(random.split(random.key(2), num_draws))
    except (NotImplementedError, jax.errors.JAXTypeError):  # an improper prior, or data read in Python
        return {n: unit(s.support, s.shape) for n, s in sites.items()}
    return {n: _to_full(found[n], s.shape) for n, s in sites.items()}


def _central(statistic: Any, draws: Array, site: Site) -> Array:
    """A mean or median over draws; taken in unconstrained coordinates where the support is unusual."""
    if site.kind != "other":
        return statistic(draws, axis=0)
    transform = bijection(site.support)
    return transform(statistic(transform.inv(draws), axis=0))


def _project(value: Array, site: Site) -> Array:
    """A mean or a median, taken back onto the site's support."""
    if site.kind == "simplex":
        return value / jnp.sum(value, axis=-1, keepdims=True)
    if site.kind == "sphere":
        return value / jnp.maximum(jnp.linalg.norm(value, axis=-1, keepdims=True), 1e-6)
    return jnp.round(value) if site.kind in ("boolean", "count", "discrete") else value


def _to_full(value: Array, shape: tuple[int, ...]) -> Array:
    """A value of a minibatch, repeated to the plates' full size."""
    for axis, (have, want) in enumerate(zip(value.shape, shape, strict=True)):
        if have != want:
            value = jnp.take(value, jnp.arange(want) % have, axis=axis)
    return value
