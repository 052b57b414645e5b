"""Globals by a mixture, all other latents by the normal at their mode given the globals."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vi_reparam.errors import SiteError
from vi_reparam.gaussians.skew import skew
from vi_reparam.numerics.special import LOG_2PI, log_sum_exp
from vi_reparam.programs.curvature import Curvature, Root
from vi_reparam.programs.joint import Array, Draws, JointGuide, Key, Layout, Params
from vi_reparam.programs.layout import Part
from vi_reparam.programs.leaning import lean
from vi_reparam.programs.student_t import standard
from vi_reparam.programs.vector import Vector

SHARES = (1.0, 0.5, 0.2, 0.05, 0.0)
"""Of a Newton step, of which the one that ends highest is taken."""

ROUNDING = 1e-7

DF, WIDE = 16, 1.5
"""Of the tails of the globals: degrees of freedom, and how much wider than a component they are. Many globals are
logarithms: fewer degrees would reach where no model is."""

NO_GRADIENT = (
    "vr.NestedLaplace() is fitted by importance sampling, and no gradient goes through its draws: use vr.Structured() "
    "or vr.FullRank() with an optimizer of your own"
)


class Halves(NamedTuple):
    """The parts of a layout: those that the mixture draws, and the others."""

    globals: tuple[Part, ...]
    locals: tuple[Part, ...]

    @property
    def sizes(self) -> tuple[int, int]:
        """Coordinates of both."""
        return sum(p.size for p in self.globals), sum(p.size for p in self.locals)

    def cut(self, first: Array, second: Array) -> Iterator[tuple[Part, Array]]:
        """Each part and its own coordinates of the two halves' vectors."""
        for parts, vector in ((self.globals, first), (self.locals, second)):
            offset = 0
            for part in parts:
                yield part, vector[offset : offset + part.size]
                offset += part.size

    def join(self, ops: Any, layout: Layout, first: Array, second: Array) -> Array:
        """All latents' vector of the two halves'."""
        pieces = {part.offset: own for part, own in self.cut(first, second)}
        return ops.xp.concat([pieces[part.offset] for part in layout.parts])

    def unpack(self, layout: Layout, first: Array, second: Array) -> dict[str, tuple[Array, Array]]:
        """As `Layout.unpack`, of the two halves' vectors: what depends on the first alone is computed once for many
        second ones, and has no slopes in them.
        """
        xp = layout.backend.ops.xp
        pieces = self.cut(first, second)
        return {part.site.name: layout.place(part, xp.reshape(own, part.shape)) for part, own in pieces}

    def indices(self) -> tuple[list[int], list[int]]:
        """The places of both halves' coordinates in all latents' vector."""
        first, second = ([i for p in parts for i in range(p.offset, p.offset + p.size)] for parts in self)
        return first, second


def halves(layout: Layout, names: tuple[str, ...]) -> Halves:
    """Cut a layout in two by the names of the sites in the first half."""
    first = tuple(part for part in layout.parts if part.site.name in names)
    return Halves(first, tuple(part for part in layout.parts if part.site.name not in names))


class NestedLaplaceGuide(JointGuide):
    """Draws the globals, climbs to the others' mode given them, and draws these from about the normal there."""

    kind = "laplace"

    def copies(self, params: Params) -> int:
        form = Curvature(*(params[f"{self.prefix}_{name}"] for name in Curvature._fields))
        return max(form.seeds.shape[0] + form.width, 1)

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> Any:
        ops, xp, dtype = self.ops, self.ops.xp, self.ops.float_dtype()
        if self.family.globals is None:
            raise SiteError("vr.NestedLaplace() chooses its globals as it is fitted: call fit(), or name them")
        parts = halves(layout, self.family.globals)
        num, size = parts.sizes
        own = self._params(layout, parts, self.start(layout, args, kwargs))
        known, form = mixed(ops, own), Curvature(*(own[name] for name in Curvature._fields))
        upper = xp.cumulative_sum(xp.exp(own["log_weight"]))
        upper = upper / upper[-1]
        lower = xp.concat([xp.zeros_like(upper[:1]), upper[:-1]])
        log_p = self.log_joint_of(functools.partial(parts.unpack, layout), {}, args, kwargs)

        def noise(key: Key, lead: tuple[int, ...]) -> tuple[Array, Array]:
            key, choice = ops.split(key, 2)
            return ops.normal(key, (*lead, num + size + DF), dtype), ops.uniform(choice, (*lead, 2), dtype)

        def draw(own_noise: tuple[Array, Array], row: Array | None) -> Vector:
            (n, ways, squares), choice = _cut(own_noise[0], num, size), own_noise[1]
            chosen = xp.astype((choice[:1] > lower) & (choice[:1] <= upper), dtype)
            root = xp.reshape(chosen @ xp.reshape(known.roots, (known.roots.shape[0], -1)), (num, num))
            far = WIDE * n * xp.sqrt(DF / xp.sum(squares**2))
            y = chosen @ known.centers + root @ xp.where(choice[1:] <= own["tail"], far, n)
            g, log_q = bent(ops, own, known, y)
            begun = own["place"] + own["slopes"] @ g
            g, begun, log_q = (ops.refuse_gradient(NO_GRADIENT, ops.once(x)) for x in (g, begun, log_q))

            def height(x: Array) -> Array:
                return log_p(g, x)

            def turn(state: tuple[Array, Any], share: Array) -> tuple[tuple[Array, Any], Array]:
                found = climb(ops, height, state[0], form)
                return (found.at, found.root), share

            (x, root), _ = ops.scan(turn, (begun, form.none(ops, begun)), own["turns"])
            others = lean(ops, height, x, root, form, own["probes"], own["lean"])
            value, log_others = others.draw(ops, ways)
            return Vector(ops.once(parts.join(ops, layout, g, value)), log_q + log_others)

        return self.vector(layout, noise, draw, features)

    def _params(self, layout: Layout, parts: Halves, start: Callable[[], Array]) -> Params:
        """None of them is moved by a gradient; the length of `turns` is the number of Newton steps, and `probes` and
        `lean` are those of `leaning.lean`.
        """
        xp, dtype, (num, size) = self.ops.xp, self.ops.float_dtype(), parts.sizes

        def at(half: int) -> Array:
            vector = start()
            own = [vector[p.offset : p.offset + p.size] for p in parts[half]]
            return xp.concat([vector[:0], *own])

        return {
            "loc": self.param("loc", lambda _: at(0)),
            "scale": self.param("scale", lambda _: xp.ones(num, dtype=dtype)),
            "bend": self.param("bend", lambda _: xp.zeros(num, dtype=dtype)),
            "center": self.param("center", lambda _: xp.zeros((1, num), dtype=dtype)),
            "root": self.param("root", lambda _: xp.eye(num, dtype=dtype)[None]),
            "log_weight": self.param("log_weight", lambda _: xp.zeros(1, dtype=dtype)),
            "place": self.param("place", lambda _: at(1)),
            "slopes": self.param("slopes", lambda _: xp.zeros((size, num), dtype=dtype)),
            "tail": self.tail(),
            "seeds": self.param("seeds", lambda _: xp.eye(size, dtype=dtype)),
            "rows": self.param("rows", lambda _: xp.arange(size, dtype=dtype)),
            "band": self.param("band", lambda _: xp.zeros((0, 1, 2), dtype=dtype)),
            "shared": self.param("shared", lambda _: xp.zeros((0, size), dtype=dtype)),
            "turns": self.param("turns", lambda _: xp.ones(2, dtype=dtype)),
            "probes": self.param("probes", lambda _: xp.zeros((0, size), dtype=dtype)),
            "lean": self.param("lean", lambda _: xp.zeros((), dtype=dtype)),
        }

    def matched(self, layout: Layout, draws: Draws) -> Params:
        raise AssertionError("vr.Sites refuses it as a part")


class Climb(NamedTuple):
    """A Newton step.

    Attributes:
        at: where it ends, shape ``[L]``.
        root: of the precision where it began.
        gain: twice the nats that the step promised; zero where it kept the promise exactly, and no other is needed.
    """

    at: Array
    root: Root
    gain: Array


class Mixed(NamedTuple):
    """The globals' mixture before their one-sided tails. A part of the draws of each component is wider.

    Attributes:
        centers: shape ``[K, G]``; `roots`: shape ``[K, G, G]``.
        score: log density at a vector.
    """

    centers: Array
    roots: Array
    score: Callable[[Array], Array]


def mixed(ops: Any, own: Params) -> Mixed:
    """Of a guide's parameters."""
    xp, (centers, roots) = ops.xp, (own["center"], own["root"])
    size, floor = centers.shape[1], xp.finfo(roots.dtype).smallest_normal
    back, part = xp.linalg.inv(roots), own["tail"]
    heights = own["log_weight"] - xp.sum(xp.log(xp.abs(xp.linalg.diagonal(roots))), axis=-1)
    inner, outer = xp.log1p(-part) - 0.5 * size * LOG_2PI, xp.log(part + floor) - size * math.log(WIDE)

    def score(y: Array) -> Array:
        ways = (back @ (xp.reshape(y, (1, -1)) - centers)[:, :, None])[:, :, 0]
        near = inner - 0.5 * xp.sum(ways * ways, axis=-1)
        far = outer + ops.vmap(lambda way: standard(ops, way, DF)[0])(ways / WIDE)
        return log_sum_exp(ops, xp.concat([heights + near, heights + far]), axis=0)

    return Mixed(centers, roots, score)


def bent(ops: Any, own: Params, known: Mixed, y: Array) -> tuple[Array, Array]:
    """The globals of a draw of the mixture, and their log density."""
    value, rise, _ = skew(ops, y, own["bend"])
    log_q = known.score(y) - ops.xp.sum(rise + ops.xp.log(own["scale"]))
    return own["loc"] + own["scale"] * value, log_q


def _cut(noise: Array, num: int, size: int) -> tuple[Array, Array, Array]:
    """The globals' noise, the others', and that of the tails' scale."""
    return noise[:num], noise[num : num + size], noise[num + size :]


def climb(ops: Any, height: Callable[[Array], Array], x: Array, form: Curvature) -> Climb:
    """A Newton step up a log density, cut short where that ends higher.

    Args:
        height: the log density; `x`: where to begin, shape ``[L]``.
        form: of its second derivatives.
    """
    xp = ops.xp
    root, slope = form.look(ops, ops.grad(height), x)
    way, gain = form.step(ops, root, slope)
    way = xp.where(xp.isfinite(way), way, xp.zeros_like(way))
    shares = xp.asarray(SHARES, dtype=x.dtype)[:, None]
    trials = x[None] + shares * way[None]
    heights = ops.vmap(height)(trials)
    heights = xp.where(xp.isfinite(heights), heights, xp.full_like(heights, -math.inf))
    best = xp.reshape(xp.argmax(heights), (1,))  # taken, not indexed: it may be a lane's own
    quadratic = xp.abs(heights[0] - heights[-1] - 0.5 * gain) < ROUNDING * (1.0 + gain)
    return Climb(xp.take(trials, best, axis=0)[0], root, xp.where(quadratic, xp.zeros_like(gain), gain))
