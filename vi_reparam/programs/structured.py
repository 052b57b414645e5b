"""Globals together, every other latent by its own prior times a learned factor."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Ops
from vi_reparam.backend.tracer import Record, Statement
from vi_reparam.errors import SiteError
from vi_reparam.gaussians import path_gradient as path
from vi_reparam.gaussians.bases import Full
from vi_reparam.gaussians.pathfinder import LARGEST
from vi_reparam.numerics.special import LOG_2PI
from vi_reparam.programs.joint import Array, Draws, JointGuide, Key, Layout, Params
from vi_reparam.programs.layout import Part
from vi_reparam.programs.priors import prior_of
from vi_reparam.programs.vector import Vector


@dataclasses.dataclass(frozen=True)
class Split:
    """Which latents are drawn together, and which one after the other.

    Attributes:
        globals: parts that are drawn together; `locals`: the others, in the model's order.
        siblings: by local site, those before it in the same plates.
    """

    globals: Layout | None
    locals: tuple[Part, ...]
    siblings: dict[str, tuple[Part, ...]]

    @property
    def num_globals(self) -> int:
        """Coordinates of the globals."""
        return 0 if self.globals is None else self.globals.size

    @property
    def num_locals(self) -> int:
        """Coordinates of the others."""
        return sum(part.size for part in self.locals)

    @functools.cached_property
    def offsets(self) -> dict[str, int]:
        """Where each local site begins among the locals' coordinates."""
        found, offset = {}, 0
        for part in self.locals:
            found[part.site.name] = offset
            offset += part.size
        return found

    @property
    def most_siblings(self) -> int:
        """The most that a site has."""
        return max((len(found) for found in self.siblings.values()), default=0)


class Factor(NamedTuple):
    """What the data say of a site, as a normal density in its unconstrained coordinates.

    Attributes:
        loc: its location; `log_precision`: of the part's shape both.
    """

    loc: Array
    log_precision: Array


class Conditional(NamedTuple):
    """The normal from which a site is drawn.

    Attributes:
        mean: of the part's shape; `scale`: its standard deviation.
    """

    mean: Array
    scale: Array

    def log_prob(self, ops: Ops, x: Array) -> Array:
        """Its log density, a scalar."""
        n = (x - self.mean) / self.scale
        return -ops.xp.sum(0.5 * n * n + ops.xp.log(self.scale) + 0.5 * LOG_2PI)


Factors = Callable[[str, dict[str, Array]], Factor]
"""A site's factor, given the unconstrained values of the locals drawn before it."""


class Drawn(NamedTuple):
    """A draw of all latents.

    Attributes:
        values: unconstrained, by local site, of the parts' shapes.
        priors: by local site, where it has one.
        records: the model's run at the draw; empty where it was cut off after the last latent.
    """

    values: dict[str, Array]
    priors: dict[str, Any]
    records: dict[str, Record]


class _Enough(Exception):
    """Ends a run of the model after its last latent: nothing behind it is asked for."""


class StructuredGuide(JointGuide):
    """The model's prior statements, run again in the guide with a factor for each.

    Attributes:
        model_params: names of the model's parameters, on which its priors may depend.
    """

    kind = "structured"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_params = frozenset[str]()
        self._splits: dict[Hashable, Split] = {}

    # what is drawn how

    def split(self, layout: Layout, args: Any, kwargs: Any) -> Split:
        """Globals and locals, found once for every new form of the arguments."""
        form = self.ops.form((args, kwargs))
        if form not in self._splits:
            with self.backend.tracer.constants():
                self._splits[form] = self._split(layout, args, kwargs)
        return self._splits[form]

    def _split(self, layout: Layout, args: Any, kwargs: Any) -> Split:
        free = [part for part in layout.parts if not part.site.plates]
        if free:
            children = self._that_have_parents(free, layout, args, kwargs)
            free = sorted((p for p in free if p.site.name not in children), key=lambda part: part.size)
        chosen, total = set(), 0
        for part in free:
            total += part.size
            if total <= LARGEST:
                chosen.add(part.site.name)
        own = {part.site.name: part.site for part in layout.parts if part.site.name in chosen}
        globals_ = Layout.of(self.backend, own, type(self.family).__name__) if own else None
        rest = tuple(part for part in layout.parts if part.site.name not in chosen)
        siblings: dict[str, tuple[Part, ...]] = {}
        for i, part in enumerate(rest):
            before = (p for p in rest[:i] if p.site.plates == part.site.plates and p.shape == part.shape)
            siblings[part.site.name] = tuple(before)
        return Split(globals_, rest, siblings)

    def _that_have_parents(self, parts: list[Part], layout: Layout, args: Any, kwargs: Any) -> frozenset[str]:
        """The sites whose prior depends on other latents."""
        ops, tracer = self.ops, self.backend.tracer
        center = layout.unpack(ops.xp.zeros(layout.size, dtype=ops.float_dtype()))

        def densities(values: Any) -> dict[Any, Array]:
            key = ops.key(0)
            found = tracer.run(self.model, args, kwargs, key, values=values, full_data=True, alone=True)
            return {p.site.name: found[p.site.name].log_prob() for p in parts}

        on = tracer.depends(densities, {name: value for name, (value, _) in center.items()})
        return frozenset(name for name, names in on.items() if names - {name})

    # drawing

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> Any:
        ops, xp, split = self.ops, self.ops.xp, self.split(layout, args, kwargs)
        dtype, num = ops.float_dtype(), split.num_globals
        start = self.start(layout, args, kwargs)
        params = self._global_params(split, layout, start) if num else {}
        own = self._local_params(split, layout, start)
        wanted = self.gradient(self.family.gradient)
        held = {n: ops.stop_gradient(p) if wanted == "path" else p for n, p in own.items()}
        outer = self._outer(args, kwargs)

        def noise(key: Key, lead: tuple[int, ...]) -> Array:
            return ops.normal(key, (*lead, layout.size), dtype)

        def draw(n: Array, row: Array | None) -> Vector:
            values: dict[str, Array] = {}
            log_q, u = xp.zeros((), dtype=dtype), None
            if split.globals is not None:
                g, log_q, u = self._draw_globals(params, n[:num], wanted)
                values = {p.site.name: split.globals.cut(p, g) for p in split.globals.parts}
            live, again = self._factors(split, own, u), self._factors(split, held, u)
            drawn = self.run(layout, split, values, live, n[num:], outer, args, kwargs)
            for part in split.locals:
                name = part.site.name
                factor = again(name, drawn.values)
                log_q = log_q + conditional(ops, drawn.priors[name], factor).log_prob(ops, drawn.values[name])
            values = {**values, **drawn.values}
            vector = xp.concat([xp.reshape(values[p.site.name], (-1,)) for p in layout.parts])
            return Vector(vector, log_q, frozen=self.family.gradient == "path")

        return self.vector(layout, noise, draw, features)

    def run(
        self,
        layout: Layout,
        split: Split,
        values: dict[str, Array],
        factors: Factors,
        noise: Array,
        params: Params,
        args: Any,
        kwargs: Any,
        *,
        whole: bool = False,
    ) -> Drawn:
        """Run the model's statements: globals have their values, locals are drawn one after the other.

        Args:
            values: of the globals, unconstrained.
            noise: standard normal, of all locals' coordinates.
            params: the model's.
            whole: whether to run on after the last latent.
        """
        ops, waiting = self.ops, {part.site.name for part in split.locals}
        parts = {part.site.name: part for part in layout.parts}
        drawn, priors = {}, {}

        def give(statement: Statement) -> Array:
            name = statement.name
            if not waiting and not whole:
                raise _Enough
            part = parts[name]
            if name in values:
                return layout.place(part, values[name])[0]
            waiting.discard(name)
            priors[name] = prior_of(self.backend, statement.distribution, part)
            at = split.offsets[name]
            own = ops.xp.reshape(noise[at : at + part.size], part.shape)
            normal = conditional(ops, priors[name], factors(name, drawn))
            drawn[name] = normal.mean + normal.scale * own
            value = layout.place(part, drawn[name])[0]
            if not waiting and not whole:
                raise _Enough
            return value

        records: dict[str, Record] = {}
        try:
            key = ops.key(0)
            run = self.backend.tracer.run
            records = run(self.model, args, kwargs, key, params=params, values=give, full_data=True, alone=True)
        except _Enough:
            pass
        if waiting:
            raise SiteError(
                f"site {min(waiting)!r} is drawn where its prior cannot be read (inside scan or cond): write it outside, "
                "or use another guide family"
            )
        return Drawn(drawn, priors, records)

    def _outer(self, args: Any, kwargs: Any) -> Params:
        """The model's own parameters, as the surroundings give them."""
        if not self.latents.structure(args, kwargs).params:
            return {}
        found = self.backend.tracer.outer_params(self.model, args, kwargs)
        self.model_params = frozenset(found)
        return found

    # parameters

    def _global_params(self, split: Split, layout: Layout, start: Callable[[], Array]) -> Params:
        ops, size = self.ops, split.num_globals
        frame = self.frame(size, 0.1, lambda: self._cut(split, layout, start())[0], dense=True)
        base = self.base_params(Full(), 1.0, lambda: ops.xp.zeros(size, dtype=ops.float_dtype()))
        return {**base, "center": frame.center, "root": frame.root}

    def _draw_globals(self, params: Params, noise: Array, wanted: str) -> tuple[Array, Array, Array]:
        """A draw, its log density, and the draw in the frame."""
        from vi_reparam.gaussians.preconditioner import Preconditioner

        ops = self.ops
        frame = Preconditioner(params["center"], params["root"])
        base = {name: params[name] for name in Full.names}
        tail = ops.xp.zeros((), dtype=noise.dtype)
        g, log_q = path.gaussian(ops, Full(), base, frame, tail, noise, gradient=wanted)
        inverse = ops.xp.linalg.inv(frame.root)
        return g, log_q, inverse @ (g - frame.center)

    def _local_params(self, split: Split, layout: Layout, start: Callable[[], Array]) -> Params:
        xp, dtype = self.ops.xp, self.ops.float_dtype()
        size, num, more = split.num_locals, split.num_globals, split.most_siblings

        def zeros(*shape: int) -> Array:
            return xp.zeros(shape, dtype=dtype)

        found = {
            "place": self.constant("place", lambda _: self._cut(split, layout, start())[1]),
            "unit": self.constant("unit", xp.ones(size, dtype=dtype)),
            "shift": self.param("shift", zeros(size)),
            "weight": self.param("weight", zeros(size)),
        }
        if num:
            found["shift_slopes"] = self.param("shift_slopes", zeros(size, num))
            found["weight_slopes"] = self.param("weight_slopes", zeros(size, num))
        if more:
            found["sibling_slopes"] = self.param("sibling_slopes", zeros(size, more))
        return found

    def _factors(self, split: Split, own: Params, u: Array | None) -> Factors:
        """The factors of all sites at the globals' coordinates `u`."""
        xp, unit = self.ops.xp, own["unit"]
        shift, weight = own["shift"], own["weight"]
        if u is not None:
            shift = shift + own["shift_slopes"] @ u
            weight = weight + own["weight_slopes"] @ u
        parts = {part.site.name: part for part in split.locals}

        def cut(vector: Array, part: Part) -> Array:
            at = split.offsets[part.site.name]
            return xp.reshape(vector[at : at + part.size], part.shape)

        def factor(name: str, drawn: dict[str, Array]) -> Factor:
            part = parts[name]
            move = cut(shift, part)
            for i, sibling in enumerate(split.siblings[name]):
                known = (drawn[sibling.site.name] - cut(own["place"], sibling)) / cut(unit, sibling)
                move = move + cut(own["sibling_slopes"][:, i], part) * known
            scale = cut(unit, part)
            return Factor(cut(own["place"], part) + scale * move, cut(weight, part) - 2.0 * xp.log(scale))

        return factor

    def _cut(self, split: Split, layout: Layout, vector: Array) -> tuple[Array, Array]:
        """The globals' and the locals' coordinates of a vector."""
        xp, chosen = self.ops.xp, {p.site.name for p in split.globals.parts} if split.globals else set()
        first = [vector[p.offset : p.offset + p.size] for p in layout.parts if p.site.name in chosen]
        rest = [vector[p.offset : p.offset + p.size] for p in split.locals]
        empty = vector[:0]
        return (xp.concat(first) if first else empty), (xp.concat(rest) if rest else empty)

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Key) -> list[Params]:
        return [{}]

    def matched(self, layout: Layout, draws: Draws) -> Params:
        raise SiteError("vr.Structured draws all latents of a model: give it to vr.guide, not to a part of vr.Sites")


def conditional(ops: Ops, prior: Any, factor: Factor) -> Conditional:
    """The normal prior times the factor; the factor alone where there is none."""
    xp = ops.xp
    if prior is None:
        return Conditional(factor.loc, xp.exp(-0.5 * factor.log_precision))
    ratio = xp.exp(factor.log_precision) * prior.scale**2  # of the two precisions
    pull = ratio / (1.0 + ratio)
    return Conditional(prior.mean + pull * (factor.loc - prior.mean), prior.scale / xp.sqrt(1.0 + ratio))
