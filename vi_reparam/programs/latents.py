"""What a guide must know of a model before it can draw: its latents, their plates and supports."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.cache import Cache
from vi_reparam.backend.host import Host
from vi_reparam.backend.ops import Array, Ops
from vi_reparam.backend.tracer import PlateInfo, Record
from vi_reparam.errors import ArgumentError, SiteError, ViReparamError, first_line, short
from vi_reparam.sites.supports import is_carried
from vi_reparam.sites.totals import mask_of
from vi_reparam.sites.wrappers import innermost

Plate = PlateInfo

RUNS = 4
"""How often a model runs to see whether its sites are the same every time, where runs compute."""

FORMS = 64
"""Forms of a model's arguments of which is kept what they tell."""

_ARGUMENT = "argument "


@dataclass(frozen=True)
class Site:
    """A latent site.

    Attributes:
        shape: of its value, subsampled plates at their full size.
        event_dim: trailing event dimensions.
        kind: of its support, as `Host.support_kind` names it.
        support: the constraint itself, with the bounds that the arguments at hand give it.
        plates: around it, outermost first.
        is_masked: whether parts of it may have no density.
        enumeration: how it is marked to be summed out; empty where it is not.
    """

    name: str
    shape: tuple[int, ...]
    event_dim: int
    kind: str
    support: Any
    plates: tuple[Plate, ...]
    is_masked: bool = False
    enumeration: str = ""


class Structure(NamedTuple):
    """What a run of a model tells beside its latents.

    Attributes:
        params: names of its own parameters; `mutable`: of its mutable state.
        subsampled: names of plates of which a run sees a part.
    """

    params: tuple[str, ...]
    mutable: tuple[str, ...]
    subsampled: tuple[str, ...]


@dataclass
class _Known:
    """What a form of the arguments tells of the latents.

    Attributes:
        sites: with the supports of the latest arguments.
        bounded: names of those whose support has bounds; `live`: of those whose bounds follow the arguments' arrays.
        marks: of the arrays that those supports were taken from.
        fresh: whether they were, and none of those arrays may change unseen, as NumPy's may.
    """

    sites: dict[str, Site]
    bounded: tuple[str, ...]
    live: tuple[str, ...]
    marks: tuple[Any, ...] = ()
    fresh: bool = False


class Latents:
    """The latents of a model. Names and shapes follow from the form of its arguments, bounds from the arguments.

    Attributes:
        layouts: what guides made of them, kept as long.
        given: values of some, of their full shapes, where a fit is told to start.
    """

    def __init__(self, backend: Backend, model: Any) -> None:
        self.backend = backend
        self.model = model
        self.layouts: Cache[Any] = Cache(FORMS)
        self.given: dict[str, Array] = {}
        self._known: Cache[_Known] = Cache(FORMS)
        self._structures: Cache[Structure] = Cache(FORMS)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._observed: set[str] = set()
        self._fitted: set[Hashable] = set()

    def begin(self, args: Any, kwargs: Any) -> None:
        """Look at the model anew for a fit: what it reads beside its arguments may have changed.

        Raises:
            ArgumentError: for a model without a latent.
            SiteError: as `sites`.
        """
        for cache in (self._known, self._structures, self.layouts):
            cache.entries.clear()
        self._observed.clear()
        self._shapes.clear()
        self._fitted.add(self.backend.ops.form((args, kwargs)))
        if not self.sites(args, kwargs):
            raise ArgumentError(
                "there is nothing to fit: the model has no latent site; leave a site without obs=, or fit parameters "
                "alone with the framework's own SVI"
            )

    def is_fitted_to(self, args: Any, kwargs: Any) -> bool:
        """Whether a fit has begun on arguments of this form, whose latents it then draws."""
        return self.backend.ops.form((args, kwargs)) in self._fitted

    def sites(self, args: Any, kwargs: Any) -> dict[str, Site]:
        """The latent sites, in the model's order, with the supports that these arguments give.

        What other arguments observed, and these leave out, is an outcome and no latent; a fit says what it observes.

        Raises:
            SiteError: for a latent without a support, or with one that follows other draws.
        """
        ops = self.backend.ops
        form = ops.form((args, kwargs))
        known = self._known.get(form, lambda: self._look(args, kwargs))
        leaves = [x for x in ops.tree_leaves((args, kwargs)) if hasattr(x, "dtype")] if known.bounded else []
        if not known.live:  # then what is traced tells no bound
            leaves = [leaf for leaf in leaves if ops.concrete(leaf) is not None]
        if not known.bounded or (known.fresh and _unchanged(known.marks, leaves)):
            return self._without_outcomes(form, known.sites)
        glance = self._glance(args, kwargs)
        with self.backend.tracer.constants():
            supports = self._supports(self._run(args, kwargs, ops.key(0))) if glance is None else glance[1]
            sites = dict(known.sites)
            for name in known.bounded:
                kind = sites[name].kind if name in known.live else self.backend.host.support_kind(supports[name])
                sites[name] = replace(sites[name], support=supports[name], kind=kind)
        if all(ops.concrete(x) is not None for n in known.bounded for x in self.backend.tracer.arrays_of(supports[n])):
            known.sites, known.fresh = sites, not any(type(leaf).__module__ == "numpy" for leaf in leaves)
            known.marks = tuple((weakref.ref(leaf), getattr(leaf, "_version", 0)) for leaf in leaves if known.fresh)
        return self._without_outcomes(form, sites)

    def _without_outcomes(self, form: Hashable, sites: dict[str, Site]) -> dict[str, Site]:
        left_out = self._observed & sites.keys() if form not in self._fitted else ()
        return {name: site for name, site in sites.items() if name not in left_out} if left_out else sites

    @contextlib.contextmanager
    def sized(self, sites: dict[str, Site]) -> Iterator[None]:
        """Where a guide draws these sites: parameters of other sizes are refused in words.

        Raises:
            SiteError: naming the site that has another shape than when the guide was first drawn from, or fitted; or of
                parameters from elsewhere, which are of other latents.
        """
        try:
            yield
        except ViReparamError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            for name, site in sites.items():
                if site.shape != (fitted := self._shapes.get(name, site.shape)):
                    around = "".join(f" in plate {plate.name!r}" for plate in site.plates)
                    raise SiteError(
                        f"site {name!r}{around}: the guide was fitted at shape {fitted}, and these arguments give it "
                        f"{site.shape}: for new data use posterior.predict(...), which draws it afresh; else fit again"
                    ) from None
            if self._fitted or not self.backend.host.known_params():
                raise
            raise SiteError(
                f"the guide cannot draw {short(list(sites))} with these parameters ({first_line(error)[:70]}): they "
                "are of other latents, as where an outcome was observed: use posterior.predict(...), or fit again"
            ) from None

    def structure(self, args: Any, kwargs: Any) -> Structure:
        """The model's parameters, state and subsampled plates."""

        def look() -> Structure:
            return _structure(self.backend.tracer.shapes(lambda key: self._run(args, kwargs, key)))

        return self._structures.get(self.backend.ops.form((args, kwargs)), look)

    def _run(self, args: Any, kwargs: Any, key: Any, **options: Any) -> dict[str, Record]:
        return self.backend.tracer.run(self.model, args, kwargs, key, alone=True, **options)

    def _supports(self, found: Mapping[str, Record]) -> dict[str, Any]:
        return {n: self.backend.host.support_of(r.distribution) for n, r in found.items() if r.is_latent}

    def _glance(self, args: Any, kwargs: Any) -> tuple[dict[str, Record], dict[str, Any]] | None:
        """The sites in shapes alone, and the latents' supports; None where these are not told without computing."""
        ops, tracer = self.backend.ops, self.backend.tracer
        try:
            found, supports = tracer.shapes(functools.partial(self._seen, args, kwargs))
        except Exception:  # it reads values in Python, or what is wrong is told by the run that computes
            return None
        latents = [r for r in found.values() if r.is_latent]
        if any(ops.concrete(r.value) is not None or is_carried(r.distribution) for r in latents):
            return None
        return None if any(map(tracer.arrays_of, supports.values())) else (found, supports)

    def _seen(self, args: Any, kwargs: Any, key: Any) -> tuple[dict[str, Record], dict[str, Any]]:
        """A run's sites and supports; some supports compute, which must be while it is traced."""
        found = self._run(args, kwargs, key)
        return found, self._supports(found)

    def _look(self, args: Any, kwargs: Any) -> _Known:
        glance = self._glance(args, kwargs)
        with self.backend.tracer.constants():
            return self._known_of(args, kwargs, glance)

    def _known_of(self, args: Any, kwargs: Any, glance: tuple[dict[str, Record], dict[str, Any]] | None) -> _Known:
        ops, host, tracer = self.backend.ops, self.backend.host, self.backend.tracer
        found, supports = glance or tracer.shapes(functools.partial(self._seen, args, kwargs))
        self._structures.get(ops.form((args, kwargs)), lambda: _structure(found))
        self._observed |= {name for name, r in found.items() if r.is_data}
        self._refuse_branches(found, args, kwargs)
        for name, support in supports.items():
            what = type(innermost(host, found[name].distribution)).__name__
            if what == "Delta":
                raise SiteError(
                    f"site {name!r} is a Delta, which has no density to fit: write {host.name}.deterministic({name!r}, "
                    "value), or leave the site out"
                )
            if support is None:
                raise SiteError(f"site {name!r}: {what} has no support, so no guide family covers it")
        bounded = tuple(name for name, support in supports.items() if _has_bounds(host, support))
        live: tuple[str, ...] = ()
        if bounded and glance is None:  # else all bounds are plain numbers
            found = self._run(args, kwargs, ops.key(0))
            supports = self._supports(found)
            on = self._followed(bounded, found, args, kwargs)
            for name, causes in on.items():
                moved = sorted(cause for cause in causes if not cause.startswith(_ARGUMENT))
                if moved:
                    raise SiteError(
                        f"site {name!r}: its support follows {', '.join(moved)}; draw a fixed support and transform it "
                        "(for Uniform(0, b): u ~ Uniform(0, 1), then b * u)"
                    )
            live = tuple(name for name in bounded if on[name])
        sites = {}
        for name, support in supports.items():
            kind = host.support_kind(support, found[name].distribution)
            if name in live and not support.is_discrete:  # what its bounds happen to be tells nothing of others
                kind = "other"
            known = all(ops.concrete(x) is not None for x in tracer.arrays_of(support))
            sites[name] = _site(host, found[name], name, kind, support if known else None)
            if kind == "other" and name in bounded:
                _refuse_rows_of_a_part(sites[name], tracer.arrays_of(support))
            self._shapes.setdefault(name, sites[name].shape)
        return _Known(sites, bounded, live)

    def _refuse_branches(self, found: dict[str, Record], args: Any, kwargs: Any) -> None:
        """Where runs compute, a model may choose its sites by a draw, and no guide knows which."""
        ops, first = self.backend.ops, _forms(found)
        if any(ops.concrete(r.value) is None for r in found.values() if r.is_latent):
            return
        for seed in range(1, RUNS + 1):
            try:
                again = _forms(self._run(args, kwargs, ops.key(seed)))
            except ValueError:  # a draw that validation refuses
                continue
            for name in (n for n in {**first, **again} if first.get(n) != again.get(n)):
                change = "has another shape" if name in first and name in again else "is not there"
                raise SiteError(
                    f"site {name!r} {change} in some runs: every run of a model must have the same sites; choose by "
                    "xp.where or a mixture in place of if and while, or give plates a fixed size and mask the rest"
                )

    def _followed(
        self, names: tuple[str, ...], found: dict[str, Record], args: Any, kwargs: Any
    ) -> dict[str, frozenset[str]]:
        """What the bounds of these sites are computed from: draws, parameters, subsamples and arguments, in words."""
        ops, tracer = self.backend.ops, self.backend.tracer
        latents = held(self.backend, found)
        parts = {n: r.value for n, r in found.items() if r.kind == "plate" and r.plates[0].is_subsampled}
        params = {n: r.value for n, r in found.items() if r.kind == "param" and hasattr(r.value, "shape")}
        words = {
            **{f"site {n!r}": n for n in latents},
            **{f"the subsample of plate {n!r}": n for n in parts},
            **{f"parameter {n!r}": n for n in params},
        }
        own = {**latents, **parts, **params}
        leaves = {f"{_ARGUMENT}{i}": x for i, x in enumerate(ops.tree_leaves((args, kwargs))) if hasattr(x, "dtype")}

        def bounds(given: Mapping[str, Array]) -> dict[Any, Array]:
            count = iter(range(len(given) + len(ops.tree_leaves((args, kwargs)))))
            a, kw = ops.tree_map(lambda leaf: given.get(f"{_ARGUMENT}{next(count)}", leaf), (args, kwargs))
            values = {name: given[word] for word, name in words.items()}
            of_params = {name: values.pop(name) for name in params}
            again = self._run(a, kw, ops.key(0), values=values, params=of_params, partial=True)
            arrays = {n: tracer.arrays_of(self.backend.host.support_of(again[n].distribution)) for n in names}
            return {(n, i): array for n, each in arrays.items() for i, array in enumerate(each)}

        inputs = {word: own[name] for word, name in words.items()}
        try:
            on = tracer.depends(bounds, {**inputs, **leaves})
        except Exception:  # the model reads its arguments in Python: what follows them is seen by their identity
            on = tracer.depends(bounds, inputs)
        causes = {name: frozenset[str]().union(*(own for (n, _), own in on.items() if n == name)) for name in names}
        again = self._supports(self._run(args, kwargs, ops.key(1), values=parts))
        for name, support in self._supports(found).items():
            if name in causes and not _equal(ops, tracer.arrays_of(support), tracer.arrays_of(again[name])):
                causes[name] = causes[name] or frozenset(["a draw that the model reads in Python"])
        return causes


def _forms(found: Mapping[str, Record]) -> dict[str, tuple[int, ...]]:
    """Shapes of the latents."""
    return {name: tuple(r.value.shape) for name, r in found.items() if r.is_latent and hasattr(r.value, "shape")}


def _structure(found: Mapping[str, Record]) -> Structure:
    of = {kind: tuple(n for n, r in found.items() if r.kind == kind) for kind in ("param", "mutable", "plate")}
    subsampled = tuple(n for n in of["plate"] if found[n].plates[0].is_subsampled)
    return Structure(of["param"], of["mutable"], subsampled)


def _unchanged(marks: tuple[Any, ...], leaves: list[Array]) -> bool:
    """Whether these are the arrays that were marked, as they were then."""
    return len(marks) == len(leaves) and all(
        mark() is leaf and version == getattr(leaf, "_version", 0)
        for (mark, version), leaf in zip(marks, leaves, strict=True)
    )


def _has_bounds(host: Host, support: Any) -> bool:
    """Whether a support is more than the name of one."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return not any(support is known for known in vars(host.dist.constraints).values())


def _equal(ops: Ops, first: list[Array], second: list[Array]) -> bool:
    """Whether these bounds are equal, as far as it is known."""
    known = [(a, b) for a, b in zip(first, second, strict=True) if ops.concrete(a) is not None is not ops.concrete(b)]
    return all(ops.to_numpy(a).tobytes() == ops.to_numpy(b).tobytes() for a, b in known)


def _refuse_rows_of_a_part(site: Site, bounds: list[Array]) -> None:
    for plate in site.plates:
        axis = (plate.dim or 0) - site.event_dim
        if plate.is_subsampled and any(x.ndim >= -axis and x.shape[axis] != 1 for x in bounds):
            raise SiteError(
                f"site {site.name!r}: its bounds have a row for each element of plate {plate.name!r}, of which a run "
                "sees a part; give all rows one support and transform the draw (u ~ Uniform(0, 1), then low + w * u)"
            )


def held(backend: Backend, records: Mapping[str, Record]) -> dict[str, Array]:
    """Values of the latents at which a program can run: those of this run, or the origins where they are not known."""
    ops, found = backend.ops, {}
    for name, record in records.items():
        if not record.is_latent or (value := record.value) is None:
            continue
        if ops.concrete(value) is None:
            shape, support = tuple(value.shape), backend.host.support_of(record.distribution)
            known = all(ops.concrete(bound) is not None for bound in backend.tracer.arrays_of(support))
            # out of its support a program may refuse a value, as a scale of zero
            value = ops.xp.astype(origin(backend, support, shape) if known else ops.xp.zeros(shape), value.dtype)
        found[name] = value
    return found


def _site(host: Host, record: Record, name: str, kind: str, support: Any) -> Site:
    event_dim, shape = len(record.distribution.event_shape), list(record.value.shape)
    plates = sorted((p for p in record.plates if p.dim is not None), key=lambda plate: plate.dim or 0)
    for plate in plates:
        shape[len(shape) - event_dim + (plate.dim or 0)] = plate.size
    is_masked = mask_of(host, record) is not None
    return Site(name, tuple(shape), event_dim, kind, support, tuple(plates), is_masked, record.enumeration)


def refuse_discrete(host: Host, site: Site, advice: str) -> SiteError:
    """The refusal of a discrete site; `advice`: for one that is not marked to be summed out."""
    if not site.enumeration:
        return SiteError(f"site {site.name!r}{advice}")
    return SiteError(
        f"site {site.name!r} is marked infer={{'enumerate': {site.enumeration!r}}}, and no guide here sums it out: "
        "write the sum in the model (dist.MixtureSameFamily for a mixture), or fit the other sites by "
        f"{host.title}'s own SVI and TraceEnum_ELBO"
    )


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
