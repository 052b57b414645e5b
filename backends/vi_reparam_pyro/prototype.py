"""What a guide must know of a model before it can draw: its latents, their plates and supports."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR
from torch.distributions import biject_to

from vi_reparam.errors import SiteError
from vi_reparam_pyro.engine.arguments import signature
from vi_reparam_pyro.host.handlers import is_subsample
from vi_reparam_pyro.lanes.vmap import keyed
from vi_reparam_pyro.ops.ops import mix
from vi_reparam_pyro.run import sample_sites

Array = Any

_SUPPORTS: tuple[tuple[Any, str], ...] = (
    (constraints.real, "real"),
    (constraints.positive, "positive"),
    (constraints.softplus_positive, "positive"),
    (constraints.nonnegative, "positive"),
    (constraints.unit_interval, "unit_interval"),
    (constraints.simplex, "simplex"),
    (constraints.sphere, "sphere"),
    (constraints.boolean, "boolean"),
    (constraints.nonnegative_integer, "count"),
)


def support_kind(support: Any, distribution: Any = None) -> str:
    """The kind of a support, independent dimensions aside; ``"other"`` where unnamed.

    Args:
        distribution: tells a circle (von Mises) from the reals, which Pyro's support does not.
    """
    inner = distribution
    while hasattr(inner, "base_dist"):
        inner = inner.base_dist
    if isinstance(inner, torch.distributions.VonMises):
        return "circular"
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    for constraint, kind in _SUPPORTS:
        if support is constraint or (type(support) is type(constraint) and _same(support, constraint)):
            return kind
    return "discrete" if support.is_discrete else "other"


def _same(support: Any, constraint: Any) -> bool:
    bounds = [(a, b) for a, b in ((vars(support).get(k), v) for k, v in vars(constraint).items())]
    try:
        return all(a is not None and bool(torch.all(torch.as_tensor(a) == torch.as_tensor(b))) for a, b in bounds)
    except (TypeError, ValueError, RuntimeError):
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


class _Origin(Messenger):
    """Latents that cannot be drawn (improper ones) sit at the origin; given ones take their value."""

    def __init__(self, values: dict[str, Array] | None = None) -> None:
        super().__init__()
        self.values = values or {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or is_subsample(msg["fn"]):
            return
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            return
        inner = msg["fn"]
        while hasattr(inner, "base_dist"):
            inner = inner.base_dist
        if type(inner).__name__ == "ImproperUniform":
            msg["value"] = origin(msg["fn"].support, tuple(msg["fn"].shape()))


@contextlib.contextmanager
def _dimensions_of_its_own() -> Iterator[None]:
    """Plates that are open around the call leave the model's plates their names and dimensions."""
    taken, _DIM_ALLOCATOR._stack = _DIM_ALLOCATOR._stack, []
    try:
        yield
    finally:
        _DIM_ALLOCATOR._stack = taken


def look(model: Any, args: Any, kwargs: Any, key: int, values: dict[str, Array] | None = None) -> dict[str, Any]:
    """The model's random variables in one run of its prior, with nothing left behind anywhere."""
    return sample_sites(_run(model, args, kwargs, key, values))


def parameters_of(model: Any, args: Any, kwargs: Any) -> list[str]:
    """Names of the model's own parameters."""
    found = _run(model, args, kwargs, mix(0), None)
    return [name for name, site in found.nodes.items() if site["type"] == "param"]


def _run(model: Any, args: Any, kwargs: Any, key: int, values: dict[str, Array] | None) -> Any:
    apart = poutine.block(), pyro.get_param_store().scope(), _dimensions_of_its_own(), keyed(key), torch.no_grad()
    with contextlib.ExitStack() as stack:
        for context in (*apart, _Origin(values)):
            stack.enter_context(context)
        return poutine.trace(model).get_trace(*args, **kwargs)


class Latents:
    """The latents of a model, which is looked at once for every new shape of the arguments."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._known: dict[Any, dict[str, Site]] = {}

    def sites(self, args: Any, kwargs: Any) -> dict[str, Site]:
        """As `prototype`."""
        key = signature(args, kwargs), torch.get_default_dtype()
        if key not in self._known:
            self._known[key] = prototype(self.model, args, kwargs)
        return self._known[key]


def prototype(model: Any, args: Any, kwargs: Any) -> dict[str, Site]:
    """The latent sites of a model, in its order.

    Raises:
        SiteError: for a latent with no support, or one that depends on other latents.
    """
    found = look(model, args, kwargs, mix(0))
    latents = {n: s for n, s in found.items() if not s["is_observed"]}
    for name, msg in latents.items():
        if not hasattr(msg["fn"], "support") or msg["fn"].support is None:
            raise SiteError(f"site {name!r}: {type(msg['fn']).__name__} has no support, so no guide family covers it")
    tagged = {n: track_provenance(s["value"], frozenset({n})) for n, s in latents.items()}
    moving = {n: s["fn"].support for n, s in look(model, args, kwargs, mix(0), tagged).items() if n in latents}
    sites = {}
    for name, msg in latents.items():
        if _bounds_follow_draws(moving[name]):
            raise SiteError(
                f"site {name!r}: its support {msg['fn'].support!r} is made of arrays that change from draw to draw; "
                "draw a fixed support and transform it (for Uniform(0, b): u ~ Uniform(0, 1), then b * u)"
            )
        sites[name] = _site(name, msg)
    return sites


def _site(name: str, msg: Any) -> Site:
    support, event_dim = _without_mixture(msg["fn"].support), msg["fn"].event_dim
    plates, shape = [], list(msg["value"].shape)
    for frame in msg["cond_indep_stack"]:
        if frame.vectorized:
            size = int(frame.full_size)
            plates.append(Plate(frame.name, frame.dim, size, int(frame.size)))
            shape[len(shape) - event_dim + frame.dim] = size
    plates.sort(key=lambda plate: plate.dim)
    return Site(
        name=name,
        shape=tuple(shape),
        event_dim=event_dim,
        kind=support_kind(support, msg["fn"]),
        support=support,
        plates=tuple(plates),
    )


def _without_mixture(support: Any) -> Any:
    """A mixture's support is that of its components, where that has no arrays, which would have one for each."""
    if isinstance(support, constraints.independent):
        return constraints.independent(_without_mixture(support.base_constraint), support.reinterpreted_batch_ndims)
    inner = getattr(support, "base_constraint", None)
    if type(support).__name__ != "MixtureSameFamilyConstraint" or _has_arrays(inner):  # not in every torch
        return support
    return inner


def _has_arrays(support: Any) -> bool:
    parts = vars(support).values()
    return any(isinstance(p, torch.Tensor) or (isinstance(p, constraints.Constraint) and _has_arrays(p)) for p in parts)


def _bounds_follow_draws(support: Any) -> bool:
    """Whether a bound of the support is computed from a latent."""
    parts = list(vars(support).values()) if hasattr(support, "__dict__") else []
    return any(
        _bounds_follow_draws(part) if isinstance(part, constraints.Constraint) else bool(get_provenance(part))
        for part in parts
    )


def origin(support: Any, shape: tuple[int, ...]) -> Array:
    """The point of a support that the unconstrained origin maps to."""
    if support.is_discrete:
        return torch.zeros(shape)
    if support_kind(support) == "sphere":
        return torch.full(shape, shape[-1] ** -0.5)
    transform = bijection(support)
    return transform(torch.zeros(transform.inverse_shape(torch.Size(shape))))


def bijection(support: Any) -> Any:
    """A bijection from the reals.

    Raises:
        SiteError: if Pyro has none.
    """
    try:
        return biject_to(support)
    except NotImplementedError:
        raise SiteError(f"support {support!r} has no bijection from the reals, so no guide family covers it") from None
