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
from vi_reparam.gaussians.bases import Coupled
from vi_reparam.gaussians.preconditioner import Preconditioner
from vi_reparam.guides.flow import CHEAP_INVERSES
from vi_reparam.numerics.special import LOG_2PI
from vi_reparam.programs.conditionals import Conditionals, Factors
from vi_reparam.programs.conjugate import Conjugate
from vi_reparam.programs.gaussian import fold, frame_of
from vi_reparam.programs.joint import Array, JointGuide, Key, Layout, Params
from vi_reparam.programs.priors import Factor
from vi_reparam.programs.split import MOST_COUPLED, Draws, Split, split_of
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
            return split_of(self.backend, self.model, layout, args, kwargs)

        split = self.latents.layouts.get((type(self), self.ops.form((args, kwargs))), look).at(layout)
        self.transports = not split.rows
        return split

    def covers_mean_field(self, args: Any, kwargs: Any) -> bool:
        """Whether a mean field would draw all latents by normals or gammas: as this guide can, or nearly."""
        return all(part.site.kind in ("real", "positive") for part in self.split(args, kwargs).locals)

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> Any:
        ops, xp, split = self.ops, self.ops.xp, self.split(args, kwargs)
        dtype, num = ops.float_dtype(), split.num_globals
        wanted = self.gradient(self.family.gradient)
        start = self.start(layout, args, kwargs)
        frame = self.frame(num, 0.1, lambda: split.parted(ops, start())[0], dense=True) if num else None
        inverse = None if frame is None else xp.linalg.inv(frame.root)
        own, base = self._factor_params(split, start), self._base_params(split)
        held, held_base = ({n: ops.stop_gradient(p) for n, p in known.items()} for known in (own, base))
        normal = ops.asarray([p.site.name not in split.rows for p in split.locals for _ in range(p.size)], dtype)
        outer, bend = self._outer(args, kwargs), self._bends(split, own, normal)
        move = None if frame is None else self._flow(num, frame, held_base, bend[0], wanted)

        def noise(key: Key, lead: tuple[int, ...]) -> Array | tuple[Array, Key]:
            if not split.rows:
                return ops.normal(key, (*lead, layout.size), dtype)
            key, own_key = ops.split(key, 2)
            return ops.normal(key, (*lead, layout.size), dtype), own_key

        def standard(n: Array, bend: Array | None, counted: Array) -> path.Standard:
            return path.bent(ops, (n, -0.5 * xp.sum(counted * (n * n + LOG_2PI)), -n), bend)

        def draw(noise: Any, row: Array | None) -> Vector:
            n, own_key = noise if isinstance(noise, tuple) else (noise, None)
            conditionals = Conditionals(self.backend, self.model, split, args, kwargs, outer, own_key)
            locals_ = standard(n[num:], bend[1], normal)
            first, log_q, at = standard(n[:num], bend[0], xp.ones(num, dtype=dtype)), xp.zeros((), dtype=dtype), n[:num]
            g = n[:num]
            if move is not None and frame is not None and inverse is not None:
                g, log_q = move(n[:num])
                at = inverse @ (g - frame.center)
                # the locals know of the flow's draw where the Gaussian has its noise
                blind = self._standardized(split, held_base, xp.concat([at, xp.zeros_like(n[num:])]))[:num]
                first = blind, xp.zeros((), dtype=dtype), xp.zeros(num, dtype=dtype)
            y = self._coupled(split, base, xp.concat([first[0], locals_[0]]))
            if move is None and frame is not None:
                at = y[:num]
                g, log_q = frame.place(at), -frame.log_det(ops)
            given = split.named(g)
            drawn = conditionals.draw(given, self._factors(split, own, at), y[num:])
            again = self._factors(split, held if wanted == "path" else own, at)
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
            density, known = first[1] + locals_[1], base
            if wanted == "path":
                y_again = xp.concat([at, *(back[part.site.name] for part in split.locals)])
                x_again = self._standardized(split, held_base, y_again)
                density, known = path.moving(ops, density, x_again, xp.concat([first[2], locals_[2]])), held_base
            if known:
                density = density - xp.sum(known["log_scale"][0 if move is None else num :])
            vector = split.joined(ops, {**given, **drawn.values})
            return Vector(vector, log_q + density, frozen=self.family.gradient == "path")

        return self.vector(layout, noise, draw, features)

    def _outer(self, args: Any, kwargs: Any) -> Params:
        """The model's own parameters, as the surroundings give them."""
        found = {}
        if self.latents.structure(args, kwargs).params:
            found = self.backend.tracer.outer_params(self.model, args, kwargs)
        self.model_params = frozenset(found)
        return found

    def _base_params(self, split: Split) -> Params:
        """Of the Gaussian from which the noise of the globals and of the coupled locals is drawn."""
        size = split.num_globals + sum(p.size for p in split.locals if p.site.name in split.coupled)
        zeros = self.ops.xp.zeros(size, dtype=self.ops.float_dtype())
        return self.base_params(Coupled(), 1.0, lambda: zeros) if size else {}

    def _coupled(self, split: Split, base: Params, x: Array) -> Array:
        """That Gaussian's draw, of independent noise of all latents."""
        return self._with(split, functools.partial(Coupled().to_latent, self.ops, base), x) if base else x

    def _standardized(self, split: Split, base: Params, y: Array) -> Array:
        """The noise of a draw."""
        return self._with(split, functools.partial(Coupled().standardize, self.ops, base), y) if base else y

    def _with(self, split: Split, change: Callable[[Array], Array], x: Array) -> Array:
        ops, num = self.ops, split.num_globals
        changed = change(ops.xp.concat([x[:num], split.gathered(ops, x[num:])]))
        return ops.xp.concat([changed[:num], split.replaced(ops, x[num:], changed[num:])])

    def _bends(self, split: Split, own: Params, normal: Array) -> tuple[Array | None, Array | None]:
        """The one-sided tails of the globals' and of the locals' noise."""
        first = self.bends(split.globals, None)(None) if split.globals else None
        return first, normal * own["bend"] if own else None

    def _flow(
        self, num: int, frame: Preconditioner, base: Params, bend: Array | None, wanted: str
    ) -> Callable[[Array], tuple[Array, Array]] | None:
        """A flow of the globals, of a Gaussian that stays as it is; None where they are that Gaussian."""
        ops, family = self.ops, self.family.globals
        if family is None:
            return None
        network = self.host.bijection(family, num, None)
        weights = self.weights(network)
        return functools.partial(
            path.flow,
            ops,
            network.bind(weights),
            network.bind({name: ops.stop_gradient(weight) for name, weight in weights.items()}),
            Preconditioner.of(ops, frame.fold(ops, Coupled.plain(base, num))),
            ops.xp.zeros((), dtype=ops.float_dtype()),
            bend=bend,
            gradient=wanted,
            cheap_inverse=family.kind_at(num) in CHEAP_INVERSES,
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
        root = max(split.num_globals + split.num_small, 1) ** 0.5  # a step turns as much in many dimensions as in few

        def standard(name: str, drawn: Draws) -> Array:
            if name not in known:
                known[name] = (drawn[name] - cut(name, own["place"])) / cut(name, own["unit"])
            return known[name]

        def factor(name: str, drawn: Draws) -> Factor:
            flat = [at, *(ops.xp.reshape(standard(n, drawn), (-1,)) for n in split.small if n in drawn)]
            context, unit = ops.xp.concat(flat), cut(name, own["unit"])

            def affine(what: str) -> Array:
                slopes = split.rows_of(name, own[f"{what}_slopes"])[:, : context.shape[0]]
                return cut(name, own[what]) + ops.xp.reshape(slopes @ context, tuple(unit.shape)) / root

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
        structure, split = self.latents.structure(*data.call), self.split(*data.call)
        if structure.params or structure.mutable or len(split.locals) > MOST_SITES:  # parameters are not known yet
            return [{}]
        if not split.num_globals:  # the paths are those of globals
            return [{}]
        return [self.named(params) for params in StructuredSearch(self.backend, self).run(data, key)]

    def has_noise_to_match(self, data: Data) -> bool:
        return self.transports and self.family.globals is None and self.layout(*data.call).size <= MOST_COUPLED

    def location(self, params: Params) -> Preconditioner | None:
        names = ("center", "root", *Coupled.names)
        if f"{self.prefix}_center" not in params:
            return None
        center, root, *own = (params[f"{self.prefix}_{name}"] for name in names)
        base = Coupled.plain(dict(zip(Coupled.names, own, strict=True)), center.shape[0])
        return frame_of(self.backend, fold(self.backend, center, root, base))

    def matched(self, layout: Layout, draws: Any) -> Params:
        raise AssertionError("vr.Sites refuses it as a part")


def _no_factor(name: str, drawn: Draws) -> Factor:
    raise AssertionError(f"{name!r} is drawn among the globals")
