"""Guides that draw all continuous latents together."""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Array, Key
from vi_reparam.backend.tracer import Record
from vi_reparam.gaussians import skew as skewing
from vi_reparam.gaussians.bases import Base, DiagonalMixture
from vi_reparam.gaussians.preconditioner import Preconditioner
from vi_reparam.guides.condition import features_of, plate_of, saturated
from vi_reparam.guides.selection import ALL, SiteSelection
from vi_reparam.programs.latents import Latents
from vi_reparam.programs.layout import Layout
from vi_reparam.programs.network import Network
from vi_reparam.programs.plates import enter
from vi_reparam.programs.searcher import Searcher
from vi_reparam.programs.starts import values_and_draws
from vi_reparam.programs.vector import SITE, drawer
from vi_reparam.sites.totals import mask_of, stand_in, total_log_prob, where_masked

Params = dict[str, Array]
Draws = Mapping[str, Array]
Bends = Callable[[Array | None], Array | None]
"""The bends of a vector's coordinates given its row of features; None for none."""


class JointGuide(abc.ABC):
    """A plain guide that draws one vector and cuts the model's latents from it.

    The vector is an auxiliary site. Every latent is a Delta that carries the change of volume.

    Args:
        selection: which latents it draws.

    Attributes:
        scope: begins the names of its parameters where it is called; `posterior.params` leaves it out.
    """

    kind: ClassVar[str]
    """Of the guide: part of its parameters' names."""

    transports: bool = False
    """Whether a draw is a bijection of standard normal noise of the vector's size."""

    def __init__(self, backend: Backend, model: Any, family: Any, selection: SiteSelection = ALL) -> None:
        self.backend, self.ops, self.host = backend, backend.ops, backend.host
        self.model = model
        self.latents = Latents(backend, model)
        self.family = family
        self.selection = selection
        self.prefix, self.site = selection.named(self.kind), selection.named(SITE)
        self.scope = self.host.scope()

    def layout(self, args: Any, kwargs: Any) -> Layout:
        """Where the model's latents lie; laid out once for every new form of the arguments, with their own bounds.

        Raises:
            SiteError: for a latent that no joint family covers.
        """
        sites = self.selection.pick(self.latents.sites(args, kwargs))

        def lay_out() -> Layout:
            plate = None
            if self.family.is_local:
                plate = plate_of([s.plates for s in sites.values()], len(self._given(args, kwargs)))
            made = Layout.of(self.backend, sites, type(self.family).__name__, plate=plate)
            self.family.check_size(made.size)
            return made

        form = self.selection, self.family.is_local, self.ops.form((args, kwargs))
        return self.latents.layouts.get(form, lay_out).at(sites)

    def start(self, layout: Layout, args: Any, kwargs: Any) -> Callable[[], Array]:
        """Computes, once it is asked, a sensible vector to start from; the mean over a plate's elements."""

        def compute() -> Array:
            values = self._values_and_draws(args, kwargs)[0]
            return layout.pack(values) if layout.plate is None else self.ops.xp.mean(layout.pack_each(values), axis=0)

        return functools.cache(compute)

    def start_and_draws(self, layout: Layout, args: Any, kwargs: Any) -> tuple[Array, Draws]:
        """As `start`, and draws of the prior by site; these are of a part of each plate, where a run sees a part."""
        values, draws = self._values_and_draws(args, kwargs)
        return layout.pack(values), draws

    def _values_and_draws(self, args: Any, kwargs: Any) -> tuple[Params, Params]:
        sites = self.latents.sites(args, kwargs)
        return values_and_draws(self.backend, self.model, args, kwargs, sites, self.latents.given)

    def param(self, name: str, init: Any) -> Array:
        """A parameter of this guide; `init` is a value, or computes it from a key."""
        return self.host.param(f"{self.scope}{self.prefix}_{name}", init)

    def constant(self, name: str, init: Any) -> Array:
        """A parameter that no gradient moves."""
        return self.ops.stop_gradient(self.param(name, init))

    def _given(self, args: Any, kwargs: Any) -> Array:
        """The features that the elements of the plate are conditioned on, a row for each. Shape ``[N, F]``."""
        found = self.ops.asarray(features_of(self.family.condition, self.model, args, kwargs), self.ops.float_dtype())
        return found.reshape(found.shape[0], -1)

    def features(self, args: Any, kwargs: Any, indices: Array) -> Array:
        """The rows of these elements, standardized as the first data were. Shape ``[B, F]``."""
        xp, rows = self.ops.xp, self._given(args, kwargs)
        mean = self.constant("feature_mean", lambda _: xp.mean(rows, axis=0))
        spread = self.constant("feature_scale", lambda _: xp.std(rows, axis=0))
        spread = xp.where(spread > 0.0, spread, xp.ones_like(spread))
        return saturated(self.ops, (rows[indices] - mean[None]) / spread[None])

    @functools.cached_property
    def searcher(self) -> Searcher:
        """Finds the places where the posterior's mass lies."""
        return Searcher(self.backend, self)

    def share(self, other: JointGuide) -> None:
        """Take over what another guide of the same model knows of it."""
        self.latents, self.searcher = other.latents, other.searcher

    @abc.abstractmethod
    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> Any:
        """The distribution of the vector (`vector`); its parameters are `param`.

        Args:
            features: of the elements of `layout.plate` at hand, shape ``[B, F]``; None without one.
        """

    def vector(self, layout: Layout, noise: Any, draw: Any, features: Array | None) -> Any:
        """The distribution that `noise` and `draw` make, as in `vi_reparam.programs.vector.drawer`."""
        self._drawing = draw
        batch_shape: tuple[int, ...] = ()
        if features is not None and layout.plate is not None:
            batch_shape = (features.shape[0], *(1 for _ in range(-1 - (layout.plate.dim or 0))))
        make = drawer(self.ops, layout.size, noise, draw, features, batch_shape)
        return self.host.vector(layout.size, make, site=self.site, batch_shape=batch_shape)

    def transport(
        self, layout: Layout, args: Any, kwargs: Any, params: Params
    ) -> Callable[[Array], tuple[Array, Array]]:
        """The map from standard normal noise, shape ``[D]``, to (the vector, its log q); only where it `transports`."""
        key = self.ops.key(0)
        build = functools.partial(self.distribution, layout, args, kwargs)
        self.backend.tracer.run(lambda: build(), (), {}, key, params=params, alone=True)
        draw = self._drawing

        def move(noise: Array) -> tuple[Array, Array]:
            made = draw(noise, None)
            return made.value, made.log_q

        return move

    def gradient(self, wanted: str) -> str:
        """The gradient that is asked for; where none can be, the one that costs least: the draw is the same."""
        return wanted if self.host.differentiating() else "reparameterization"

    def log_joint(self, layout: Layout, params: Params, args: Any, kwargs: Any) -> Callable[[Array], Array]:
        """log p of a latent vector on all of the data, with the change of volume; data and parameters are live."""
        return self.log_joint_of(layout.unpack, params, args, kwargs)

    def log_joint_of(self, unpack: Callable[..., Any], params: Params, args: Any, kwargs: Any) -> Callable[..., Array]:
        """The same of the vectors that `unpack` takes, which gives what `Layout.unpack` does."""
        ops, tracer = self.ops, self.backend.tracer

        def at(*vectors: Array) -> Array:
            sites = unpack(*vectors)
            values = {name: value for name, (value, _) in sites.items()}
            key = ops.key(0)
            found = tracer.run(self.model, args, kwargs, key, params=params, values=values, full_data=True, alone=True)
            moved = sum(ops.xp.sum(self._moved(found[name], *placed)) for name, placed in sites.items())
            return total_log_prob(self.backend, found) + moved

        return at

    def _moved(self, record: Record, value: Array, log_det: Array) -> Array:
        """The change of volume of a latent; where it is masked, the density that stands for its own."""
        mask = mask_of(self.host, record)
        return log_det if mask is None else where_masked(log_det, mask, stand_in(self.host, record, value))

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Key) -> list[Params]:
        """Values of some parameters to start a fit from, by name; several where runs should be kept apart.

        Args:
            fit: ``fit(family, num_steps, key)`` fits another family to this model and data, and returns its posterior.
            data: the model's arguments.
        """
        return [{}]

    def copies(self, params: Params) -> int:
        """Runs of the model that a draw holds at once."""
        return 1

    def has_noise_to_match(self, data: Data) -> bool:
        """Whether its starts leave the Gaussian of its noise open, so that this can be matched to the posterior."""
        return False

    @abc.abstractmethod
    def matched(self, layout: Layout, draws: Draws) -> Params:
        """Values of some parameters to start from, by name, that are near these draws.

        Args:
            draws: by site, shape ``[num, *site]``.
        """

    def named(self, values: Params) -> Params:
        """These parameters by their names in `posterior.params`."""
        return {f"{self.prefix}_{name}": value for name, value in values.items()}

    def location(self, params: Params) -> Preconditioner | None:
        """Where the guide with these parameters lies, and how wide; None where that is not known."""
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        return self.draw(args, kwargs, {})

    def draw(self, args: Any, kwargs: Any, plates: dict[str, Any]) -> dict[str, Array]:
        """The latents that it draws; `plates` are those entered before in this run, by name."""
        xp, host, layout = self.ops.xp, self.host, self.layout(args, kwargs)
        sites = {part.site.name: part.site for part in layout.parts}
        with self.latents.sized(sites), contextlib.ExitStack() as stack:
            features = None
            if layout.plate is not None:
                features = self.features(args, kwargs, enter(host, stack, plates, layout.plate))
            distribution = self.distribution(layout, args, kwargs, features)
            vector = host.sample(self.site, distribution, infer={"is_auxiliary": True})
        found = layout.unpack(vector) if features is None else layout.unpack_each(vector.reshape(-1, layout.size))
        values = {}
        for part in layout.parts:
            site = part.site
            value, log_det = found[site.name]
            with contextlib.ExitStack() as stack:
                for plate in site.plates:
                    indices = enter(host, stack, plates, plate)
                    whole = plate != layout.plate and len(indices) != plate.size
                    if whole and plate.size != plate.subsample_size:
                        axis = len(site.shape) - site.event_dim + (plate.dim or 0)
                        value, log_det = xp.take(value, indices, axis=axis), xp.take(log_det, indices, axis=axis)
                delta = host.dist.Delta(value, log_density=-log_det, event_dim=site.event_dim)
                values[site.name] = host.sample(site.name, delta)
        return values

    # parts that several families share

    def frame(self, size: int, scale: float, start: Callable[[], Array], *, dense: bool) -> Preconditioner:
        """Coordinates of about unit scale, as parameters that no gradient moves."""
        xp, dtype = self.ops.xp, self.ops.float_dtype()
        center = self.constant("center", lambda _: start())
        if tuple(center.shape) != (size,):
            raise ValueError(f"the guide's center has shape {tuple(center.shape)}, expected {(size,)}")
        root = self.constant(
            "root", lambda _: scale * (xp.eye(size, dtype=dtype) if dense else xp.ones(size, dtype=dtype))
        )
        return Preconditioner(center, root)

    def tail(self) -> Array:
        """h of `vi_reparam.gaussians.tails`, as a parameter that no gradient moves."""
        return self.constant("tail", self.ops.xp.zeros((), dtype=self.ops.float_dtype()))

    def base_params(self, base: Base, scale: float, start: Callable[[], Array]) -> Params:
        """The parameters of a base, by scale and location at the start; that is computed if a parameter is new."""
        ops = self.ops

        def made(loc: Array) -> Params:
            return base.parameters(ops, ops.key(0), loc, ops.xp.full_like(loc, scale))

        return {name: self.param(name, lambda _, name=name: made(start())[name]) for name in base.names}

    def weights(self, network: Network) -> Params:
        """A network's weights as parameters; the start of all of them is made at once."""
        first: Params = {}

        def start(key: Key, name: str) -> Array:
            if not first:
                first.update(network.init(key))
            return first[name]

        return {name: self.param(name, lambda key, name=name: start(key, name)) for name in network.names}

    def drawn_params(self, shapes: Mapping[str, tuple[tuple[int, ...], float]]) -> Params:
        """Parameters by name, of these shapes and standard deviations at the start (0: zeros)."""
        ops, dtype = self.ops, self.ops.float_dtype()

        def init(shape: tuple[int, ...], deviation: float) -> Any:
            if deviation == 0.0:
                return ops.xp.zeros(shape, dtype=dtype)
            return lambda key: deviation * ops.normal(key, shape, dtype)

        return {name: self.param(name, init(*own)) for name, own in shapes.items()}

    def bends(self, layout: Layout, features: Array | None, *, wanted: bool = True) -> Bends:
        """The one-sided tails of positive sites' coordinates, as parameters, if any are wanted."""
        mask = layout.positive()
        if not wanted or not any(mask):
            return lambda row: None
        params = self.drawn_params(skewing.shapes(layout.size, 0 if features is None else features.shape[1]))
        held = self.ops.asarray(mask, self.ops.float_dtype())
        return lambda row: skewing.raw_of(self.ops, params, held, row)

    def match_draws(self, layout: Layout, draws: Draws, *, bends: bool) -> tuple[Array, Array, Array]:
        """Location, scale and bend of each coordinate, as draws by site have them; without `bends` those are zero."""
        vectors = self.ops.vmap(layout.pack)({p.site.name: draws[p.site.name] for p in layout.parts})
        mask = [bends and positive for positive in layout.positive()]
        return skewing.match(self.ops, vectors, self.ops.asarray(mask, vectors.dtype))

    def matched_frame(self, layout: Layout, draws: Draws, *, bends: bool, dense: bool) -> Params:
        """Start values of a frame, and of the bends if any, that are near these draws; by full name."""
        center, scale, bend = self.match_draws(layout, draws, bends=bends)
        root = scale[:, None] * self.ops.xp.eye(layout.size, dtype=scale.dtype) if dense else scale
        found = {"center": center, "root": root}
        if bends and any(layout.positive()):
            found["skew"] = bend
        return self.named(found)

    def choose_component(self, base: Base, key: Key, lead: tuple[int, ...] = ()) -> tuple[Key, Array | None]:
        """A key and one of a mixture's components, one-hot in the last dimension; None where there is one alone."""
        ops = self.ops
        if not isinstance(base, DiagonalMixture):
            return key, None
        key, choice = ops.split(key, 2)
        place = base.num_components * ops.uniform(choice, (*lead, 1), ops.float_dtype())  # in (0, components]
        index = ops.xp.arange(base.num_components, dtype=place.dtype).reshape(*(1 for _ in lead), -1)
        return key, ((place > index) & (place <= index + 1.0)) * ops.xp.ones_like(place)
