"""Which latents a structured guide draws together, and which one after the other."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.ops import Array, Ops
from vi_reparam.backend.tracer import Statement
from vi_reparam.gaussians.pathfinder import LARGEST
from vi_reparam.programs.conjugate import Row, row_of
from vi_reparam.programs.layout import Layout, Part

MOST_COUPLED = 512
"""Latents up to which the noise of all is drawn by one Gaussian with a full covariance."""

Draws = dict[str, Array]
"""Unconstrained values by site, of the parts' shapes."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The coordinates of a model's latents, in globals and locals.

    Attributes:
        layout: of all latents.
        globals: of those that are drawn together; None for none.
        locals: the other parts of the layout, in the model's order.
        small: names of locals of few coordinates, on which later factors depend.
        first: those of them that are drawn before all others; empty where the model's order does so.
        rows: by local site, that of its prior where it is a gamma or a beta.
        siblings: by local site, the names of those before it in plates of the same sizes that are not small.
        parents: latents on which other latents' priors depend.
    """

    layout: Layout
    globals: Layout | None
    locals: tuple[Part, ...]
    small: tuple[str, ...]
    first: tuple[str, ...]
    rows: dict[str, Row]
    siblings: dict[str, tuple[str, ...]]
    parents: frozenset[str]

    def at(self, layout: Layout) -> Split:
        """The same of another layout of these latents, whose supports may have other bounds."""
        parts = {part.site.name: part for part in layout.parts}
        globals_ = self.globals and self.globals.at({name: part.site for name, part in parts.items()})
        rest = tuple(parts[part.site.name] for part in self.locals)
        return dataclasses.replace(self, layout=layout, globals=globals_, locals=rest)

    @property
    def is_hierarchy(self) -> bool:
        """Whether some latents' priors depend on others; of many latents, whether globals stand beside locals."""
        many = self.layout.size > LARGEST
        return bool(self.parents) or (many and self.num_globals > 0 and self.num_locals > 0)

    @property
    def num_globals(self) -> int:
        """Coordinates of the globals."""
        return 0 if self.globals is None else self.globals.size

    @property
    def num_locals(self) -> int:
        """Coordinates of the others."""
        return sum(part.size for part in self.locals)

    @property
    def num_small(self) -> int:
        """Coordinates of the small ones."""
        return sum(part.size for part in self.locals if part.site.name in self.small)

    @property
    def most_siblings(self) -> int:
        """The most that a site has."""
        return max(map(len, self.siblings.values()), default=0)

    @functools.cached_property
    def _places(self) -> dict[str, tuple[int, Part]]:
        """Each local site's first coordinate among the locals', and its part."""
        found, offset = {}, 0
        for part in self.locals:
            found[part.site.name] = offset, part
            offset += part.size
        return found

    def cut(self, ops: Ops, name: str, vector: Array) -> Array:
        """A local site's own coordinates of the locals' vector, of the part's shape."""
        offset, part = self._places[name]
        return ops.xp.reshape(vector[offset : offset + part.size], part.shape)

    def rows_of(self, name: str, matrix: Array) -> Array:
        """A local site's own rows of a matrix with a row for each coordinate, shape ``[size, ...]``."""
        offset, part = self._places[name]
        return matrix[offset : offset + part.size]

    @functools.cached_property
    def coupled(self) -> tuple[str, ...]:
        """Names of the locals whose noise knows of the globals' and of each other's: the small ones, or all of few."""
        if self.layout.size > MOST_COUPLED:
            return self.small
        return tuple(part.site.name for part in self.locals if part.site.name not in self.rows)

    def gathered(self, ops: Ops, vector: Array) -> Array:
        """The coupled coordinates of a vector of the locals', in their order."""
        return ops.xp.concat([vector[:0], *(self.rows_of(name, vector) for name in self.coupled)])

    def replaced(self, ops: Ops, vector: Array, coupled: Array) -> Array:
        """The locals' vector with other values of the coupled coordinates."""
        pieces, at = [vector[:0]], 0
        for part in self.locals:
            is_coupled = part.site.name in self.coupled
            pieces.append(coupled[at : at + part.size] if is_coupled else self.rows_of(part.site.name, vector))
            at += part.size if is_coupled else 0
        return ops.xp.concat(pieces)

    def named(self, vector: Array) -> Draws:
        """The globals of their vector, by site."""
        return {} if self.globals is None else {p.site.name: self.globals.cut(p, vector) for p in self.globals.parts}

    def parted(self, ops: Ops, vector: Array) -> tuple[Array, Array]:
        """The globals' and the locals' coordinates of all latents' vector."""
        chosen = {p.site.name for p in self.locals}
        pieces: tuple[list[Array], list[Array]] = ([vector[:0]], [vector[:0]])
        for part in self.layout.parts:
            pieces[part.site.name in chosen].append(vector[part.offset : part.offset + part.size])
        return ops.xp.concat(pieces[0]), ops.xp.concat(pieces[1])

    def joined(self, ops: Ops, values: Draws) -> Array:
        """All latents' vector of these values."""
        return ops.xp.concat([ops.xp.reshape(values[p.site.name], (-1,)) for p in self.layout.parts])


def split_of(backend: Backend, model: Any, layout: Layout, args: Any, kwargs: Any) -> Split:
    """Globals are the latents outside plates whose prior depends on no other latent, the smallest first.

    There are at most as many coordinates of them as a search takes.
    """
    on, rows = _dependence(backend, model, layout, args, kwargs)
    free = (p for p in layout.parts if not p.site.plates and not on[p.site.name])
    chosen, total = set(), 0
    for part in sorted(free, key=lambda part: part.size):
        total += part.size
        if total <= LARGEST:
            chosen.add(part.site.name)
    own = {p.site.name: p.site for p in layout.parts if p.site.name in chosen}
    rest = tuple(part for part in layout.parts if part.site.name not in chosen)
    rows = {p.site.name: rows[p.site.name] for p in rest if p.site.name in rows}
    normal = [p for p in rest if p.site.name not in rows]
    largest = max((p for p in rest if p.site.plates), key=lambda part: part.size, default=None)
    few, total = set(), 0  # elements of one plate know of each other through globals alone
    for part in sorted(
        (p for p in normal if largest is None or p.site.plates != largest.site.plates), key=lambda p: p.size
    ):
        total += part.size
        if total <= LARGEST:
            few.add(part.site.name)
    siblings = {}
    for i, part in enumerate(rest):
        before = (p for p in rest[:i] if p.shape == part.shape and _sizes(p) == _sizes(part) != ())
        siblings[part.site.name] = tuple(p.site.name for p in before if p.site.name not in few | rows.keys())
    small = tuple(part.site.name for part in rest if part.site.name in few)
    large, first = {p.site.name for p in rest} - few, list[str]()
    for name in small:
        if not siblings[name] and not on[name] & (large | (few - set(first))):
            first.append(name)
    begun = tuple(part.site.name for part in rest[: len(first)])
    return Split(
        layout,
        Layout.of(backend, own, "vr.Structured") if own else None,
        rest,
        small,
        () if begun == tuple(first) else tuple(first),
        rows,
        siblings,
        frozenset().union(*on.values()),
    )


def _sizes(part: Part) -> tuple[Any, ...]:
    """Of the plates around a site: two plates of one size may well be over the same elements."""
    return tuple((plate.dim, plate.size) for plate in part.site.plates)


def _dependence(
    backend: Backend, model: Any, layout: Layout, args: Any, kwargs: Any
) -> tuple[dict[str, frozenset[str]], dict[str, Row]]:
    """By site, the other latents on which its prior depends; and the row of its prior, for those that have one."""
    ops, tracer = backend.ops, backend.tracer
    parts = {part.site.name: part for part in layout.parts}
    rows: dict[str, Row | None] = {}

    def densities(flat: Any) -> dict[Any, Array]:
        def give(statement: Statement) -> Array | None:
            if (name := statement.name) not in parts:  # an outcome that was left out
                return None
            rows[name] = row_of(backend, statement.distribution)
            return layout.place(parts[name], flat[name])[0]

        found = tracer.run(model, args, kwargs, ops.key(0), values=give, full_data=True, alone=True)
        return {name: found[name].log_prob() for name in parts}

    on = tracer.depends(densities, {n: ops.xp.zeros(part.shape, dtype=ops.float_dtype()) for n, part in parts.items()})
    return {n: names - {n} for n, names in on.items()}, {n: row for n, row in rows.items() if row is not None}
