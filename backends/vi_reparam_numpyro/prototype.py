"""What a guide must know of a model before it can draw: its latents, their plates and supports."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
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
    """

    name: str
    shape: tuple[int, ...]
    event_dim: int
    kind: str
    support: Any
    plates: tuple[Plate, ...]


def form_of(args: Any, kwargs: Any) -> Hashable:
    """Equal for arguments of equal structure, shapes, dtypes and other values: what a model is looked at once for."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    shapes = (str((jnp.shape(x), jnp.result_type(x))) if hasattr(x, "shape") else repr(x) for x in leaves)
    return tree, tuple(shapes)


def drawable(model: Any, key: Any) -> Any:
    """The model under a key, with improper latents (which cannot be drawn) at the origin."""

    def origin(msg: Any) -> Any:
        if msg["type"] != "sample" or msg["is_observed"]:
            return None
        inner = msg["fn"]
        while hasattr(inner, "base_dist"):
            inner = inner.base_dist
        return unit(msg["fn"].support, tuple(msg["fn"].shape())) if isinstance(inner, ImproperUniform) else None

    return substitute(seed(model, key), substitute_fn=origin)


def prototype(model: Any, args: Any, kwargs: Any) -> dict[str, Site]:
    """The latent sites of a model, in its order.

    Raises:
        SiteError: for a latent with no support, or one that depends on other latents.
    """
    tr = _abstract_trace(model, args, kwargs)
    if not all(is_concrete(jax.tree.leaves(s["fn"].support)) for s in tr.values() if s["type"] == "sample"):
        with block():  # bounds that are arrays: only a real run tells their values
            tr = trace(drawable(model, random.key(0))).get_trace(*args, **kwargs)
    sizes = {n: s["args"] for n, s in tr.items() if s["type"] == "plate"}
    latents = {n: s for n, s in tr.items() if s["type"] == "sample" and not s["is_observed"]}
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
        sites[name] = Site(
            name=name,
            shape=tuple(shape),
            event_dim=event_dim,
            kind=support_kind(support),
            support=support,
            plates=tuple(plates),
        )
    return sites


class Latents:
    """The latents of a model, which is looked at once for every new shape of the arguments."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._known: dict[Any, dict[str, Site]] = {}

    def sites(self, args: Any, kwargs: Any) -> dict[str, Site]:
        """As `prototype`."""
        shapes = form_of(args, kwargs)
        if shapes not in self._known:
            with jax.ensure_compile_time_eval():  # bounds are numbers, also when this is traced
                self._known[shapes] = prototype(self.model, args, kwargs)
        return self._known[shapes]


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


def unit(support: Any, shape: tuple[int, ...]) -> Array:
    """The unconstrained origin, on the support."""
    if support.is_discrete:
        return jnp.zeros(shape)
    if support_kind(support) == "sphere":  # no bijection from the reals: one of its poles
        return jnp.zeros(shape).at[..., 0].set(1.0)
    transform = bijection(support)
    return transform(jnp.zeros(transform.inverse_shape(shape)))


def bijection(support: Any) -> Any:
    """The map from the reals to the support.

    Raises:
        SiteError: if NumPyro has none.
    """
    try:
        return biject_to(support)
    except NotImplementedError:
        raise SiteError(f"support {support!r} has no bijection from the reals, so no guide family covers it") from None
