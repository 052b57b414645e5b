"""Where a guide starts: near the data, since a start far from everything costs it most of its steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.ops import Array
from vi_reparam.programs.latents import Site, bijection, origin
from vi_reparam.programs.rows import NOT_AT_ONCE, OneByOne
from vi_reparam.sites.totals import total_log_prob

Values = dict[str, Array]

NUM_DRAWS = 64
"""Of the prior, behind the median and the mean."""

NUM_TRIED = 8
"""Of those, how many are candidates themselves."""


def starting_values(
    backend: Backend, model: Any, args: Any, kwargs: Any, sites: dict[str, Site], given: Mapping[str, Array]
) -> Values:
    """Of a few candidates the one with the highest joint density, at the sites' full shapes.

    Candidates are the prior's median, its mean, the unconstrained origin and draws of the prior.
    Nothing of one call is kept for another. The sites are the model's latents, as `Latents.sites`; those of `given`
    have its values, and the others are chosen to go with them.
    """
    return values_and_draws(backend, model, args, kwargs, sites, given)[0]


def values_and_draws(
    backend: Backend, model: Any, args: Any, kwargs: Any, sites: dict[str, Site], given: Mapping[str, Array]
) -> tuple[Values, Values]:
    """As `starting_values`, and draws of the prior that are none of the candidates; none where all is given."""
    ops, tracer = backend.ops, backend.tracer
    xp = ops.xp

    def draw(key: Any) -> Values:
        found = tracer.run(model, args, kwargs, key, alone=True)
        return {n: found[n].value for n in sites}

    def score(values: Values) -> Array:
        return total_log_prob(backend, tracer.run(model, args, kwargs, ops.key(1), values=values, alone=True))

    def score_if_possible(values: Values) -> Array:
        try:
            return score(values)
        except (ValueError, NotImplementedError):  # outside of a support, or no density
            return xp.full((), -math.inf, dtype=ops.float_dtype())

    def best(runs: Any, score: Any, key: Any) -> tuple[Values, Values]:
        draws = runs.many(draw, key, NUM_DRAWS)
        stacked = {n: _candidates(backend, runs, v, sites[n]) for n, v in draws.items()}
        for name, value in given.items():
            if name in stacked and tuple(value.shape) == tuple(stacked[name].shape[1:]):  # not of a minibatch
                stacked[name] = xp.zeros_like(stacked[name]) + xp.astype(value, stacked[name].dtype)[None]
        scores = runs.vmap(score)(stacked) if stacked else xp.zeros((1,))
        chosen = xp.argmax(xp.where(xp.isfinite(scores), scores, xp.full_like(scores, -math.inf)))
        return {n: v[chosen] for n, v in stacked.items()}, {n: v[NUM_TRIED:] for n, v in draws.items()}

    if given and sites.keys() <= given.keys():
        return {name: given[name] for name in sites}, {}
    try:
        found, draws = ops.compiled(functools.partial(best, ops, score))(ops.key(2))
    except NOT_AT_ONCE:
        found, draws = best(OneByOne(ops), score_if_possible, ops.key(2))
    return {n: given[n] if n in given else _to_full(xp, found[n], s.shape) for n, s in sites.items()}, draws


def _candidates(backend: Backend, runs: Any, draws: Array, site: Site) -> Array:
    """Values to choose from, of draws: the leading axis of both. `runs` has `vmap`."""
    xp = backend.ops.xp
    floats = xp.astype(draws, backend.ops.float_dtype())
    transform = bijection(backend.host, site.support) if site.kind == "other" else None
    if transform is None:
        centers = [_median(xp, floats), _mean(xp, floats)]
    else:  # an unusual support: in unconstrained coordinates
        floats = runs.vmap(transform.inv)(floats)
        centers = [transform(_median(xp, floats)), transform(_mean(xp, floats))]
    found = [*(_project(xp, c, site) for c in centers), origin(backend, site.support, tuple(draws.shape[1:]))]
    return xp.concat([xp.astype(xp.stack(found), draws.dtype), draws[:NUM_TRIED]])


def _mean(xp: Any, draws: Array) -> Array:
    """The mean of those that are finite."""
    finite = xp.isfinite(draws)
    total = xp.sum(xp.where(finite, draws, xp.zeros_like(draws)), axis=0)
    return total / xp.sum(xp.astype(finite, draws.dtype), axis=0)


def _median(xp: Any, draws: Array) -> Array:
    """The median of those that are finite."""
    finite = xp.isfinite(draws)
    ordered = xp.sort(xp.where(finite, draws, xp.full_like(draws, math.inf)), axis=0)
    count = xp.sum(xp.astype(finite, xp.int32), axis=0)[None]
    place = xp.reshape(xp.arange(draws.shape[0], dtype=xp.int32), (-1,) + (1,) * (draws.ndim - 1))
    chosen = [xp.where(place == k, ordered, xp.zeros_like(draws)) for k in ((count - 1) // 2, count // 2)]
    return 0.5 * xp.sum(chosen[0] + chosen[1], axis=0)


def _project(xp: Any, value: Array, site: Site) -> Array:
    """A mean or a median, taken back onto the site's support."""
    if site.kind == "simplex":
        return value / xp.sum(value, axis=-1, keepdims=True)
    if site.kind == "sphere":
        return value / xp.clip(xp.linalg.vector_norm(value, axis=-1, keepdims=True), 1e-6, math.inf)
    return xp.round(value) if site.kind in ("boolean", "count", "discrete") else value


def _to_full(xp: Any, value: Array, shape: tuple[int, ...]) -> Array:
    """A value of a minibatch, repeated to the plates' full size."""
    for axis, (have, want) in enumerate(zip(value.shape, shape, strict=True)):
        if have != want:
            value = xp.take(value, xp.arange(want) % have, axis=axis)
    return value
