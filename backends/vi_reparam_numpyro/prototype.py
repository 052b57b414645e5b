"""What a guide must know of a model before it can draw: its latents, their plates and supports."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.distributions import ImproperUniform, biject_to, constraints
from numpyro.handlers import block, seed, substitute, trace

from vi_reparam.errors import SiteError
from vi_reparam_numpyro.dependence import is_concrete

Array = Any

_SUPPORTS: tuple[tuple[Any, str], ...] = (
    (constraints.real, "real"),
    (constraints.positive, "positive"),
    (constraints.softplus_positive, "positive"),
    (constraints.nonnegative, "positive"),
    (constraints.unit_interval, "unit_interval"),
    (constraints.interval(0.0, 1.0), "unit_interval"),
    (constraints.open_interval(0.0, 1.0), "unit_interval"),
    (constraints.simplex, "simplex"),
    (constraints.sphere, "sphere"),
    (constraints.circular, "circular"),
    (constraints.boolean, "boolean"),
    (constraints.nonnegative_integer, "count"),
)


def support_kind(support: Any) -> str:
    """The kind of a NumPyro support, independent dimensions aside; ``"other"`` where unnamed."""
    while isinstance(support, constraints._IndependentConstraint):
        support = support.base_constraint
    for constraint, kind in _SUPPORTS:
        if type(support) is type(constraint) and _same(support, constraint):
            return kind
    return "discrete" if support.is_discrete else "other"


def _same(support: Any, constraint: Any) -> bool:
    try:
        return bool(support == constraint)
    except (TypeError, ValueError, jax.errors.JAXTypeError):
        return False


@dataclasses.dataclass(frozen=True)
class Plate:
    """A plate of the model: its dimension, full size and subsample size."""

    name: str
    dim: int
    size: int
    subsample_size: int


@dataclasses.dataclass(frozen=True)
class Site:
    """A latent site.

    Attributes:
        shape: of its value, subsampled plates at their full size.
        event_dim: trailing event dimensions.
        kind: of its support; `support`: the constraint itself.
        plates: around it, outermost first.
        start: a sensible value to start from, of `shape`.
    """

    name: str
    shape: tuple[int, ...]
    event_dim: int
    kind: str
    support: Any
    plates: tuple[Plate, ...]
    start: np.ndarray


def drawable(model: Any, key: Any) -> Any:
    """The model under a key, with improper latents (which cannot be drawn) at the origin."""

    def origin(msg: Any) -> Any:
        if msg["type"] != "sample" or msg["is_observed"]:
            return None
        inner = msg["fn"]
        while hasattr(inner, "base_dist"):
            inner = inner.base_dist
        return _unit(msg["fn"].support, tuple(msg["fn"].shape())) if isinstance(inner, ImproperUniform) else None

    return substitute(seed(model, key), substitute_fn=origin)


def prototype(model: Any, args: Any, kwargs: Any) -> dict[str, Site]:
    """The latent sites of a model, in its order.

    Raises:
        SiteError: for a latent with no support, or one that depends on other latents.
    """
    concrete = is_concrete((args, kwargs))
    tr = _abstract_trace(model, args, kwargs)
    if not all(is_concrete(jax.tree.leaves(s["fn"].support)) for s in tr.values() if s["type"] == "sample"):
        with block():  # bounds that are arrays: only a real run tells their values
            tr = trace(drawable(model, random.key(0))).get_trace(*args, **kwargs)
    sizes = {n: s["args"] for n, s in tr.items() if s["type"] == "plate"}
    latents = {n: s for n, s in tr.items() if s["type"] == "sample" and not s["is_observed"]}
    starts = _starts(model, args, kwargs, latents) if concrete and latents else {}
    sites = {}
    for name, msg in latents.items():
        support = msg["fn"].support
        if support is None:
            raise SiteError(f"site {name!r}: {type(msg['fn']).__name__} has no support, so no guide family covers it")
        if not is_concrete(jax.tree.leaves(support)) or _depends(support, latents):
            raise SiteError(
                f"site {name!r}: its support {support!r} is made of arrays that change from draw to draw; draw a fixed "
                "support and transform it (for Uniform(0, b): u ~ Uniform(0, 1), then b * u)"
            )
        plates, shape = [], list(jnp.shape(msg["value"]))
        event_dim = msg["fn"].event_dim
        for frame in msg["cond_indep_stack"]:
            size, _ = sizes[frame.name]
            plates.append(Plate(frame.name, frame.dim, size, frame.size))
            shape[len(shape) - event_dim + frame.dim] = size
        plates.sort(key=lambda plate: plate.dim)
        start = starts.get(name)
        if start is None:
            start = _unit(support, tuple(jnp.shape(msg["value"])))
        sites[name] = Site(
            name=name,
            shape=tuple(shape),
            event_dim=event_dim,
            kind=support_kind(support),
            support=support,
            plates=tuple(plates),
            start=_to_full(np.asarray(start), tuple(shape)),
        )
    return sites


def _abstract_trace(model: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The model's sites with shapes for values: no array is computed."""
    found: dict[str, Any] = {}

    def look(key: Any) -> None:
        with block():
            found.update(trace(drawable(model, key)).get_trace(*args, **kwargs))

    jax.eval_shape(look, random.key(0))
    return found


def _depends(support: Any, latents: dict[str, Any]) -> bool:
    """Whether a bound of the support is a parameter of another latent's making."""
    bounds = [leaf for leaf in jax.tree.leaves(support) if hasattr(leaf, "shape")]
    return any(bound is site["value"] for bound in bounds for site in latents.values())


def _unit(support: Any, shape: tuple[int, ...]) -> Array:
    if support.is_discrete:
        return jnp.zeros(shape)
    if support_kind(support) == "sphere":  # no bijection from the reals: one of its poles
        return jnp.zeros(shape).at[..., 0].set(1.0)
    transform = bijection(support)
    return transform(jnp.zeros(transform.inverse_shape(shape)))


def bijection(support: Any) -> Any:
    """The way from the reals to a support.

    Raises:
        SiteError: if there is none.
    """
    try:
        return biject_to(support)
    except NotImplementedError:
        raise SiteError(f"support {support!r} has no bijection from the reals, so no guide family covers it") from None


def _to_full(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A value of a minibatch, repeated to the plates' full size."""
    for axis, (have, want) in enumerate(zip(value.shape, shape, strict=True)):
        if have != want:
            value = np.take(value, np.arange(want) % have, axis=axis)
    return value


def _starts(model: Any, args: Any, kwargs: Any, latents: dict[str, Any], num: int = 64) -> dict[str, np.ndarray]:
    """Where to start: of a few candidates the one with the highest joint density.

    Candidates are the prior's median, its mean, the unconstrained origin and draws of the
    prior. A start far from everything costs a stock guide most of its steps.
    """

    def one(key: Any) -> dict[str, Array]:
        with block():
            tr = trace(drawable(model, key)).get_trace(*args, **kwargs)
        return {n: tr[n]["value"] for n in latents}

    def score(values: dict[str, Array]) -> Array:
        with block():
            tr = trace(substitute(seed(model, random.key(1)), data=values)).get_trace(*args, **kwargs)
        total = jnp.zeros(())
        for site in tr.values():
            if site["type"] == "sample":
                lp = site["fn"].log_prob(site["value"])
                total = total + jnp.sum(lp if site["scale"] is None else site["scale"] * lp)
        return total

    def best(keys: Any) -> dict[str, Array]:
        draws = jax.vmap(one)(keys)
        finite = {n: jnp.where(jnp.isfinite(v), v, jnp.nan) for n, v in draws.items()}
        median = {n: _central(jnp.nanmedian, v, latents[n]["fn"].support) for n, v in finite.items()}
        mean = {n: _central(jnp.nanmean, v, latents[n]["fn"].support) for n, v in finite.items()}
        origin = {n: _unit(s["fn"].support, tuple(draws[n].shape[1:])) for n, s in latents.items()}
        candidates = [_project(c, latents) for c in (median, mean, origin)]
        candidates += [{n: v[i] for n, v in draws.items()} for i in range(8)]
        stacked = jax.tree.map(lambda *xs: jnp.stack(jnp.broadcast_arrays(*xs)), *candidates)
        scores = jax.vmap(score)(stacked)
        chosen = jnp.argmax(jnp.where(jnp.isfinite(scores), scores, -jnp.inf))
        return {n: v[chosen] for n, v in stacked.items()}

    try:
        return {n: np.asarray(v) for n, v in jax.jit(best)(random.split(random.key(2), num)).items()}
    except (NotImplementedError, jax.errors.JAXTypeError):  # an improper prior, or data read in Python
        return {n: np.asarray(_unit(s["fn"].support, tuple(jnp.shape(s["value"])))) for n, s in latents.items()}


def _central(statistic: Any, draws: Array, support: Any) -> Array:
    """A mean or median over draws; taken in unconstrained coordinates where the support is unusual."""
    if support_kind(support) != "other":
        return statistic(draws, axis=0)
    transform = bijection(support)
    return transform(statistic(transform.inv(draws), axis=0))


def _project(values: dict[str, Array], latents: dict[str, Any]) -> dict[str, Array]:
    """Means and medians, taken back onto each site's support."""
    out = {}
    for name, value in values.items():
        kind = support_kind(latents[name]["fn"].support)
        if kind == "simplex":
            value = value / jnp.sum(value, axis=-1, keepdims=True)
        elif kind == "sphere":
            value = value / jnp.maximum(jnp.linalg.norm(value, axis=-1, keepdims=True), 1e-6)
        elif kind in ("boolean", "count", "discrete"):
            value = jnp.round(value).astype(jnp.result_type(latents[name]["value"]))
        out[name] = value
    return out
