"""Globals together, every other latent by its own prior times a learned factor."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from vi_reparam.backend.data import Data
from vi_reparam.errors import SiteError
from vi_reparam.gaussians import path_gradient as path
from vi_reparam.gaussians.bases import Full
from vi_reparam.gaussians.preconditioner import Preconditioner
from vi_reparam.gaussians.skew import skew
from vi_reparam.gaussians.tails import widen
from vi_reparam.guides.flow import CHEAP_INVERSES
from vi_reparam.numerics.special import LOG_2PI
from vi_reparam.programs.conditionals import Conditionals, Factors
from vi_reparam.programs.conjugate import Conjugate
from vi_reparam.programs.gaussian import fold, frame_of
from vi_reparam.programs.joint import Array, JointGuide, Key, Layout, Params
from vi_reparam.programs.priors import Factor
from vi_reparam.programs.split import Draws, Split, split_of
from vi_reparam.programs.structured_search import StructuredSearch
from vi_reparam.programs.vector import Vector

Start = Callable[[], Array]

MOST_JOINT = 8
"""Coordinates of a vector site up to which its factor is one for all of them together."""


MOST_SITES = 16
"""Sites drawn one after the other up to which a start is searched: the search holds several copies of the model."""


class StructuredGuide(JointGuide):
    """The model's prior statements, run again in the guide with a factor for each.

    Attributes:
        model_params: names of the model's parameters, on which its priors may depend.
    """

    kind = "structured"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_params = frozenset[str]()
        self.transports = True

    def split(self, args: Any, kwargs: Any) -> Split:
        """Globals and locals, found once for every new form of the arguments.

        Raises:
            SiteError: for a masked latent.
        """
        layout = self.layout(args, kwargs)
        for part in layout.parts:
            if part.site.is_masked:
                raise SiteError(
                    f"site {part.site.name!r} is masked, and vr.Structured() draws each latent from its prior, which "
                    "the masked parts have none of: use vr.FullRank(), vr.Flow() or vr.MeanField()"
                )

        def look() -> Split:
            with self.backend.tracer.constants():
                return split_of(self.backend, self.model, layout, args, kwargs)

        split = self.latents.layouts.get((type(self), self.ops.form((args, kwargs))), look).at(layout)
        self.transports = not split.rows
        return split

    def covers_mean_field(self, args: Any, kwargs: Any) -> bool:
        """Whether a mean field would draw all latents by normals, as this guide can."""
        return all(part.site.kind == "real" for part in self.split(args, kwargs).locals)

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> Any:
        ops, xp, split = self.ops, self.ops.xp, self.split(args, kwargs)
        dtype, num = ops.float_dtype(), split.num_globals
        wanted = self.gradient(self.family.gradient)
        start = self.start(layout, args, kwargs)
        draw_globals = self._globals(split, start, wanted)
        own = self._factor_params(split, start)
        held = {n: ops.stop_gradient(p) for n, p in own.items()} if wanted == "path" else own
        outer = self._outer(args, kwargs)

        normal = ops.asarray([p.site.name not in split.rows for p in split.locals for _ in range(p.size)], dtype)
        num_normal = sum(p.size for p in split.locals if p.site.name not in split.rows)

        def standard(n: Array) -> path.Standard:
            """Noise of the locals, of which small ones know of each other, bent; as `path.Standard`."""
            slope, square = -n, xp.sum(normal * n * n)
            if split.num_small:
                coupling = xp.eye(split.num_small, dtype=dtype) + xp.tril(own["coupling"], k=-1)
                small = split.gathered(ops, n)
                n = split.replaced(ops, n, coupling @ small)
                slope = split.replaced(ops, slope, -xp.linalg.inv(coupling).T @ small)
            x, log_rise, more = skew(ops, n, own["bend"])
            density = -0.5 * square - xp.sum(normal * log_rise)
            return x, density - 0.5 * num_normal * LOG_2PI, (slope - more) * xp.exp(-log_rise)

        def noise(key: Key, lead: tuple[int, ...]) -> Array | tuple[Array, Key]:
            if not split.rows:
                return ops.normal(key, (*lead, layout.size), dtype)
            key, own_key = ops.split(key, 2)
            return ops.normal(key, (*lead, layout.size), dtype), own_key

        def draw(noise: Any, row: Array | None) -> Vector:
            n, own_key = noise if isinstance(noise, tuple) else (noise, None)
            conditionals = Conditionals(self.backend, self.model, split, args, kwargs, outer, own_key)
            g, log_q, at = draw_globals(n[:num])
            given = split.named(g)
            local, density, slope = standard(n[num:]) if own else (n[num:], xp.zeros((), dtype=dtype), n[num:])
            drawn = conditionals.draw(given, self._factors(split, own, at), local)
            again = self._factors(split, held, at)
            before, back = dict[str, Array](), dict[str, Array]()
            for name, value in drawn.values.items():
                product = drawn.priors[name].times(ops, again(name, before))
                before[name] = value
                if isinstance(product, Conjugate):
                    log_q = log_q + product.log_prob(ops, value)
                    back[name] = xp.zeros(math.prod(value.shape), dtype=dtype)
                else:
                    log_q = log_q - product.log_det
                    back[name] = xp.reshape(product.standardize(value), (-1,))
            if wanted == "path":
                at_again = xp.concat([n[:0], *(back[part.site.name] for part in split.locals)])
                density = path.moving(ops, density, at_again, slope)
            log_q = log_q + density
            vector = split.joined(ops, {**given, **drawn.values})
            return Vector(vector, log_q, frozen=self.family.gradient == "path")

        return self.vector(layout, noise, draw, features)

    def _outer(self, args: Any, kwargs: Any) -> Params:
        """The model's own parameters, as the surroundings give them."""
        found = {}
        if self.latents.structure(args, kwargs).params:
            found = self.backend.tracer.outer_params(self.model, args, kwargs)
        self.model_params = frozenset(found)
        return found

    def _globals(self, split: Split, start: Start, wanted: str) -> Callable[[Array], tuple[Array, Array, Array]]:
        """What draws the globals from noise: their vector, its log q, and its coordinates in the frame."""
        ops, size, dtype = self.ops, split.num_globals, self.ops.float_dtype()
        if not size:
            return lambda noise: (noise, ops.xp.zeros((), dtype=noise.dtype), noise)
        frame = self.frame(size, 0.1, lambda: split.parted(ops, start())[0], dense=True)
        params = self.base_params(Full(), 1.0, lambda: ops.xp.zeros(size, dtype=dtype))
        inverse, tail = ops.xp.linalg.inv(frame.root), ops.xp.zeros((), dtype=dtype)
        bend = self.bends(split.globals, None)(None) if split.globals else None

        move = self._flow(size, frame, params, tail, bend, wanted)

        def draw(noise: Array) -> tuple[Array, Array, Array]:
            if move is not None:
                g, log_q = move(noise)
            else:
                drawn = path.bent(ops, widen(ops, noise, tail), bend)
                g, log_q = path.affine(ops, Full(), params, frame, drawn, gradient=wanted)
            return g, log_q, inverse @ (g - frame.center)

        return draw

    def _flow(
        self, size: int, frame: Preconditioner, params: Params, tail: Array, bend: Array | None, wanted: str
    ) -> Callable[[Array], tuple[Array, Array]] | None:
        """A flow of the globals, of a Gaussian that stays as it is; None where they are that Gaussian."""
        ops, family = self.ops, self.family.globals
        if family is None:
            return None
        found = {name: ops.stop_gradient(p) for name, p in frame.fold(ops, params).items()}
        network = self.host.bijection(family, size, None)
        weights = self.weights(network)
        return functools.partial(
            path.flow,
            ops,
            network.bind(weights),
            network.bind({name: ops.stop_gradient(weight) for name, weight in weights.items()}),
            Preconditioner.of(ops, found),
            tail,
            bend=bend,
            gradient=wanted,
            cheap_inverse=family.kind_at(size) in CHEAP_INVERSES,
        )

    def _factor_params(self, split: Split, start: Start) -> Params:
        """Of all locals, their coordinates end to end."""
        xp, dtype = self.ops.xp, self.ops.float_dtype()
        size, num, small = split.num_locals, split.num_globals, split.num_small
        shapes: dict[str, tuple[int, ...]] = {
            "shift": (size,),
            "weight": (size,),
            "shift_slopes": (size, num + small),
            "weight_slopes": (size, num + small),
            "sibling_slopes": (size, split.most_siblings),
            "bend": (size,),
            "coupling": (small, small),
        }
        for part in split.locals:
            if part.site.plates and part.site.event_dim and 1 < part.shape[-1] <= MOST_JOINT:
                shapes[f"upper_{part.site.name}"] = (*part.shape, part.shape[-1])
        if not size:
            return {}
        found = {
            "place": self.constant("place", lambda _: split.parted(self.ops, start())[1]),
            "unit": self.constant("unit", xp.ones(size, dtype=dtype)),
        }
        # an empty array is no parameter
        zeros = {name: xp.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
        return found | {name: self.param(name, zero) if math.prod(zero.shape) else zero for name, zero in zeros.items()}

    def _factors(self, split: Split, own: Params, at: Array) -> Factors:
        """The factors of all sites, affine in the globals' coordinates `at` and in the locals before them."""
        ops, cut = self.ops, functools.partial(split.cut, self.ops)
        if not own:
            return _no_factor
        known: dict[str, Array] = {}

        def standard(name: str, drawn: Draws) -> Array:
            if name not in known:
                known[name] = (drawn[name] - cut(name, own["place"])) / cut(name, own["unit"])
            return known[name]

        def factor(name: str, drawn: Draws) -> Factor:
            flat = [at, *(ops.xp.reshape(standard(n, drawn), (-1,)) for n in split.small if n in drawn)]
            context, unit = ops.xp.concat(flat), cut(name, own["unit"])

            def affine(what: str) -> Array:
                slopes = split.rows_of(name, own[f"{what}_slopes"])[:, : context.shape[0]]
                return cut(name, own[what]) + ops.xp.reshape(slopes @ context, tuple(unit.shape))

            move, weight = affine("shift"), affine("weight")
            for i, sibling in enumerate(split.siblings[name]):
                move = move + cut(name, own["sibling_slopes"][:, i]) * standard(sibling, drawn)
            place, upper = cut(name, own["place"]), own.get(f"upper_{name}")
            shear = None if upper is None else (ops.xp.triu(upper, k=1), place)
            return Factor(place + unit * move, weight - 2.0 * ops.xp.log(unit), shear)

        return factor

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Key) -> list[Params]:
        if self.family.globals is not None:
            return [dict(fit(dataclasses.replace(self.family, globals=None), None, key).params)]
        structure = self.latents.structure(*data.call)
        if structure.params or structure.mutable:  # their values are not known yet
            return [{}]
        if len(self.split(*data.call).locals) > MOST_SITES:
            return [{}]
        found = StructuredSearch(self.backend, self).run(data, key)
        return [self.named(params) for params in found] or [{}]

    def location(self, params: Params) -> Preconditioner | None:
        names = ("center", "root", *Full.names)
        if f"{self.prefix}_center" not in params:
            return None
        center, root, *own = (params[f"{self.prefix}_{name}"] for name in names)
        return frame_of(self.backend, fold(self.backend, center, root, dict(zip(Full.names, own, strict=True))))

    def matched(self, layout: Layout, draws: Any) -> Params:
        raise AssertionError("vr.Sites refuses it as a part")


def _no_factor(name: str, drawn: Draws) -> Factor:
    raise AssertionError(f"{name!r} is drawn among the globals")
