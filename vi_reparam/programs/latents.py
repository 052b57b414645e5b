"""What a guide must know of a model before it can draw: its latents, their plates and supports."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.host import Host
from vi_reparam.backend.ops import Array, Ops
from vi_reparam.backend.tracer import PlateInfo, Record
from vi_reparam.errors import SiteError

Plate = PlateInfo


@dataclass(frozen=True)
class Site:
    """A latent site.

    Attributes:
        shape: of its value, subsampled plates at their full size.
        event_dim: trailing event dimensions.
        kind: of its support, as `Host.support_kind` names it; `support`: the constraint itself.
        plates: around it, outermost first.
    """

    name: str
    shape: tuple[int, ...]
    event_dim: int
    kind: str
    support: Any
    plates: tuple[Plate, ...]


class Structure(NamedTuple):
    """What a run of a model tells beside its latents.

    Attributes:
        params: names of its own parameters; `mutable`: of its mutable state.
        subsampled: names of plates of which a run sees a part.
    """

    params: tuple[str, ...]
    mutable: tuple[str, ...]
    subsampled: tuple[str, ...]


class Latents:
    """The latents of a model, which runs once for each form of its arguments.

    Args:
        backend: the model's.
        model: the model.
    """

    def __init__(self, backend: Backend, model: Any) -> None:
        self.backend = backend
        self.model = model
        self._sites: dict[Hashable, dict[str, Site]] = {}
        self._structures: dict[Hashable, Structure] = {}

    def sites(self, args: Any, kwargs: Any) -> dict[str, Site]:
        """The latent sites, in the model's order.

        Raises:
            SiteError: for a latent without a support, or with one whose bounds follow other draws.
        """
        form = self.backend.ops.form((args, kwargs))
        if form not in self._sites:
            with self.backend.tracer.constants():
                found = self._shapes(form, args, kwargs)
                self._sites[form] = self._look(found, args, kwargs)
        return self._sites[form]

    def structure(self, args: Any, kwargs: Any) -> Structure:
        """The model's parameters, state and subsampled plates."""
        form = self.backend.ops.form((args, kwargs))
        if form not in self._structures:
            self._shapes(form, args, kwargs)
        return self._structures[form]

    def _shapes(self, form: Hashable, args: Any, kwargs: Any) -> dict[str, Record]:
        """A run of which only shapes and dtypes are known."""
        found = self.backend.tracer.shapes(lambda key: self._run(args, kwargs, key))
        of = {kind: tuple(n for n, r in found.items() if r.kind == kind) for kind in ("param", "mutable", "plate")}
        subsampled = tuple(n for n in of["plate"] if found[n].plates[0].is_subsampled)
        self._structures[form] = Structure(of["param"], of["mutable"], subsampled)
        return found

    def _run(self, args: Any, kwargs: Any, key: Any, values: Mapping[str, Array] | None = None) -> dict[str, Record]:
        return self.backend.tracer.run(self.model, args, kwargs, key, values=values, alone=True)

    def _look(self, found: dict[str, Record], args: Any, kwargs: Any) -> dict[str, Site]:
        ops, host = self.backend.ops, self.backend.host
        supports = {n: host.support_of(r.distribution) for n, r in found.items() if r.is_latent}
        for name, support in supports.items():
            if support is None:
                what = type(found[name].distribution).__name__
                raise SiteError(f"site {name!r}: {what} has no support, so no guide family covers it")
        if not all(map(self._is_known, supports.values())):  # only a run with numbers tells the bounds
            found = self._run(args, kwargs, ops.key(0))
            supports = {n: host.support_of(found[n].distribution) for n in supports}
        bounded = [n for n, support in supports.items() if self.backend.tracer.arrays_of(support)]
        moving = self._that_follow_draws(bounded, found, args, kwargs) if bounded else frozenset()
        for name in bounded:
            if name in moving:
                raise SiteError(
                    f"site {name!r}: its support {supports[name]!r} is made of arrays that change from draw to draw; "
                    "draw a fixed support and transform it (for Uniform(0, b): u ~ Uniform(0, 1), then b * u)"
                )
            if not self._is_known(supports[name]):
                raise SiteError(
                    f"site {name!r}: its support {supports[name]!r} is made of data whose values are not known while "
                    "the program is compiled; let the model close over those data, or draw a fixed support and "
                    "transform it (for Uniform(0, b): u ~ Uniform(0, 1), then b * u)"
                )
        return {name: _site(host, name, found[name], support) for name, support in supports.items()}

    def _is_known(self, support: Any) -> bool:
        arrays = self.backend.tracer.arrays_of(support)
        return all(self.backend.ops.concrete(array) is not None for array in arrays)

    def _that_follow_draws(self, names: list[str], found: dict[str, Record], args: Any, kwargs: Any) -> frozenset[str]:
        """Sites with a bound that is computed from a draw."""
        ops, tracer = self.backend.ops, self.backend.tracer

        def bounds(values: Mapping[str, Array]) -> dict[Any, Array]:
            again = self._run(args, kwargs, ops.key(0), values)
            each = {n: tracer.arrays_of(self.backend.host.support_of(again[n].distribution)) for n in names}
            return {(n, i): array for n, arrays in each.items() for i, array in enumerate(arrays)}

        on = tracer.depends(bounds, held(ops, found))
        return frozenset(name for (name, _), draws in on.items() if draws)


def held(ops: Ops, records: Mapping[str, Record]) -> dict[str, Array]:
    """Values of the latents at which a program can run: those of this run, or zeros where they are not known."""
    return {
        name: ops.xp.zeros(tuple(r.value.shape), dtype=r.value.dtype) if ops.concrete(r.value) is None else r.value
        for name, r in records.items()
        if r.is_latent
    }


def _site(host: Host, name: str, record: Record, support: Any) -> Site:
    event_dim, shape = len(record.distribution.event_shape), list(record.value.shape)
    plates = sorted((p for p in record.plates if p.dim is not None), key=lambda plate: plate.dim or 0)
    for plate in plates:
        shape[len(shape) - event_dim + (plate.dim or 0)] = plate.size
    kind = host.support_kind(support, record.distribution)
    return Site(name, tuple(shape), event_dim, kind, support, tuple(plates))


def bijection(host: Host, support: Any) -> Any:
    """The map from the reals to a support.

    Raises:
        SiteError: if the framework has none.
    """
    try:
        return host.biject_to(support)
    except NotImplementedError:
        raise SiteError(f"support {support!r} has no bijection from the reals, so no guide family covers it") from None


def origin(backend: Backend, support: Any, shape: tuple[int, ...]) -> Array:
    """The point of a support that the unconstrained origin maps to; of a sphere, one with equal coordinates."""
    ops = backend.ops
    xp, dtype = ops.xp, ops.float_dtype()
    if support.is_discrete:
        return xp.zeros(shape, dtype=dtype)
    if backend.host.support_kind(support) == "sphere":
        return xp.full(shape, shape[-1] ** -0.5, dtype=dtype)
    transform = bijection(backend.host, support)
    return transform(xp.zeros(tuple(transform.inverse_shape(shape)), dtype=dtype))
