"""Where a fit starts, if it is told: at another posterior, or at values of latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Array, Ops
from vi_reparam.errors import ArgumentError, SiteError, short
from vi_reparam.programs.latents import Site, bijection

NUM_DRAWS = 1_000
"""Of a posterior by another family, whose mean is where the fit starts."""


def check_init(init: Any) -> None:
    """Refuse what is neither a posterior nor values by site.

    Raises:
        ArgumentError: saying what is wanted.
    """
    if init is not None and not isinstance(init, Mapping) and not hasattr(init, "params"):
        raise ArgumentError(f"fit(init={init!r}): expected a posterior, or a dict of values by latent site"[:300])


def params_of(init: Any, guided: Any, first: Mapping[str, Array]) -> dict[str, Array] | None:
    """The parameters of a posterior by the same family, if this fit gives them the same shapes; else None.

    Args:
        first: this fit's own first parameters.
    """
    if not hasattr(init, "params") or repr(getattr(init.guided, "family", None)) != repr(guided.family):
        return None
    known = {name: value for name, value in init.params.items() if name in first}
    known = {name: x for name, x in known.items() if tuple(np.shape(x)) == tuple(np.shape(first[name]))}
    return known if known.keys() == first.keys() or guided.family is None else None


def with_values(guided: Any, init: Any, data: Data) -> Any:
    """The same model with a guide that starts at these values.

    Args:
        init: values by site, or a posterior, whose means they are.

    Raises:
        ArgumentError: for values that are of no latent, of another shape, or outside of its support.
    """
    made = guided._with()
    made.name = guided.name
    parts = [part for part in getattr(made.base_guide, "parts", [made.base_guide]) if hasattr(part, "latents")]
    if not parts:
        raise ArgumentError(
            "fit(init=): a guide written by hand starts where its own parameters do; give init= a posterior of it"
        )
    sites = parts[0].latents.sites(*data.call)
    values = _means(guided.backend, init, sites) if hasattr(init, "params") else init
    given = {name: _checked(guided.backend, name, value, sites) for name, value in values.items()}
    for part in parts:
        part.latents.given = given
    return made


def _checked(backend: Backend, name: str, value: Any, sites: Mapping[str, Site]) -> Array:
    ops = backend.ops
    if name not in sites:
        raise ArgumentError(f"fit(init=) names {name!r}, not a latent site; there are: {', '.join(sites)}"[:300])
    site = sites[name]
    try:
        array = ops.asarray(value, ops.float_dtype())
    except (TypeError, ValueError):
        raise ArgumentError(f"fit(init=): {name!r} is {short(value)}; give a number or an array") from None
    if array.ndim and tuple(array.shape) != site.shape:
        raise ArgumentError(f"fit(init=): {name!r} has shape {tuple(array.shape)}; the site has {site.shape}")
    array = ops.xp.broadcast_to(array, site.shape)
    if site.support.is_discrete or site.kind == "sphere":
        return array
    if not _is_inside(ops, bijection(backend.host, site.support), array):
        raise ArgumentError(f"fit(init=): {name!r} is outside of its support {site.support!r}, or at its edge"[:300])
    return array


def _is_inside(ops: Ops, transform: Any, value: Array) -> bool:
    """Whether a value comes back from the reals, and from no end of them: some inverses clip what they are given."""
    flat = transform.inv(value)
    back, low, high = (ops.to_numpy(transform(x)) for x in (flat, 0.0 * flat - np.inf, 0.0 * flat + np.inf))
    given, within = ops.to_numpy(value), 100.0 * np.finfo(back.dtype).eps
    tiny = 2.0 * np.finfo(back.dtype).tiny
    at_end = np.isclose(given, low, within, tiny) | np.isclose(given, high, within, tiny)
    at_end &= low != high  # as the zeros of a triangular matrix
    return bool(np.isfinite(ops.to_numpy(flat)).all() and np.allclose(back, given, 1e-3, 1e-3) and not at_end.any())


def _means(backend: Backend, posterior: Any, sites: Mapping[str, Site]) -> dict[str, Array]:
    """Of the latents that both have: means in unconstrained coordinates; a draw where there are none."""
    draws, found = posterior.draws(NUM_DRAWS), {}
    for name, site in sites.items():
        if name not in draws or tuple(draws[name].shape[1:]) != site.shape:
            continue
        found[name] = draws[name][0]
        if not site.support.is_discrete and site.kind != "sphere":
            try:
                transform = bijection(backend.host, site.support)
            except SiteError:
                continue
            found[name] = transform(backend.ops.xp.mean(transform.inv(draws[name]), axis=0))
    if not found:
        theirs, ours = (", ".join(map(str, names))[:90] for names in (draws, sites))
        raise ArgumentError(f"fit(init=): the posterior has none of this model's latents: it has {theirs}, not {ours}")
    return found
