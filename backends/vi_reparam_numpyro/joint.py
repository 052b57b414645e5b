"""Guides that draw all continuous latents together."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.distributions import constraints
from numpyro.handlers import block, seed, substitute, trace

from vi_reparam.backend.data import Data
from vi_reparam.draw import Draw
from vi_reparam.errors import SiteError
from vi_reparam.estimators import ScoreFunction
from vi_reparam.gaussians import path_gradient as path
from vi_reparam.gaussians import skew as skewing
from vi_reparam.gaussians.bases import Diagonal, Mixture
from vi_reparam.gaussians.preconditioner import Preconditioner
from vi_reparam.guides import Gaussian, GaussianFamily, JointFamily
from vi_reparam.guides.condition import features_of, plate_of, saturated
from vi_reparam.guides.selection import ALL, SiteSelection
from vi_reparam.programs.latents import Latents, Plate
from vi_reparam.programs.layout import Layout
from vi_reparam.programs.plates import enter
from vi_reparam.programs.searcher import Searcher
from vi_reparam.programs.starts import starting_values
from vi_reparam.sites import recorder as listener
from vi_reparam.sites.draw import Sampled
from vi_reparam_numpyro.backend import backend
from vi_reparam_numpyro.host.guard import running_objective
from vi_reparam_numpyro.ops.ops import ops
from vi_reparam_numpyro.ops.refusal import refuse_gradient
from vi_reparam_numpyro.scoring import full_data, total_log_prob

Array = Any

SITE = "vr_joint"
"""The auxiliary site of the vector that latents are cut from; `SiteSelection.label` goes before it."""

SINGLE_SAMPLE = ("ELBO", "Trace_ELBO", "TraceMeanField_ELBO")
"""Objectives that are linear in log q, so that its parameters may be constants there."""


@dataclasses.dataclass(frozen=True)
class Vector:
    """A draw of the vector, or of one for each element of a plate.

    Attributes:
        value: shape ``[D]``, or ``[*plate, D]``.
        log_q: such that log p - log_q is the log weight, shape ``[]`` or ``[*plate]``.
        score_term: as in `vi_reparam.Draw`.
        frozen: whether log_q leaves out the gradient by the guide's parameters.
    """

    value: Array
    log_q: Array
    score_term: Array | None = None
    frozen: bool = False


@dataclasses.dataclass(frozen=True)
class _Whole:
    """The family of a draw of the vector."""

    name: ClassVar[str] = "joint"
    kinds: ClassVar[frozenset[str]] = frozenset({"score_function"})


class Joint(dist.Distribution):
    """The distribution of the vector, known by its draws: only they can be scored.

    Args:
        size: D.
        make: a draw from a key.
        site: its name.
        batch_shape: of the plate whose elements have a vector each.
    """

    pytree_aux_fields = ("make", "site")
    known_by_draws = True

    def __init__(
        self, size: int, make: Callable[[Array], Vector], site: str = SITE, batch_shape: tuple[int, ...] = ()
    ) -> None:
        self.make, self.site = make, site
        super().__init__(batch_shape, (size,), validate_args=False)

    @classmethod
    def each(cls, size: int, make: Callable[[Array, Array], Vector], site: str, features: Any, plate: Plate) -> Joint:
        """A draw for each element of a plate.

        Args:
            make: a draw from a key and a row of features.
            features: of the elements at hand, shape ``[B, F]``.
        """
        shape = (len(features), *(1 for _ in range(-1 - plate.dim)))

        def all_of_them(key: Array) -> Vector:
            frozen: list[bool] = []

            def one(key: Array, row: Array) -> tuple[Array, Array]:
                made = make(key, row)
                frozen.append(made.frozen)
                return made.value, made.log_q

            value, log_q = jax.vmap(one)(random.split(key, len(features)), features)
            return Vector(value.reshape(*shape, size), log_q.reshape(shape), frozen=frozen[0])

        return cls(size, all_of_them, site, shape)

    @property
    def support(self) -> Any:
        return constraints.real_vector

    @property
    def has_rsample(self) -> bool:
        return True

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Any:
        if sample_shape:
            keys = random.split(key, sample_shape)
            drawn = self.make
            for _ in sample_shape:
                drawn = jax.vmap(drawn)
            made = drawn(keys)
            return made.value, [made.log_q]
        return self._emit(self.make(key))

    def _emit(self, made: Vector) -> Any:
        hearing = listener.current()
        value, log_q = made.value, made.log_q
        if hearing is not None:
            hearing.frozen[self.site] = made.frozen
        if made.score_term is not None:
            if hearing is None:
                message = (
                    f"site {self.site!r}: this guide's gradient='log_variance' leaves a score term that "
                    f"{running_objective()} would drop, and the gradient would be wrong; use vr.ELBO(), or "
                    "gradient='path'"
                )
                return refuse_gradient(message, value, made.score_term), [log_q]
            draw = Draw(value=value, log_prob=log_q, score_term=made.score_term)
            kind: Any = _Whole()
            value = hearing.report(self.site, Sampled(draw, kind, ScoreFunction(baseline="leave_one_out"), ()))
            hearing.consume(self.site)
            if self.site in hearing.altered:  # whoever shifts the draw asks what depends on it
                log_q = log_q + 0.0 * jnp.sum(value)
        elif made.frozen and hearing is None and (name := running_objective()) not in (*SINGLE_SAMPLE, ALONE):
            message = (
                f"this guide's path gradient takes its parameters inside log q as constants, which is right for an "
                f"ELBO and biased under {name}; use vr.ELBO(), or gradient='reparameterization'"
            )
            value = refuse_gradient(message, value, log_q)
        return value, [log_q]

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        if intermediates:
            return intermediates[0]
        raise SiteError(
            f"site {self.site!r}: only a draw of this guide can be scored, together with the path behind it; a value "
            "that was replayed or substituted has lost its path"
        )


ALONE = "this computation"
"""What `running_objective` says where no objective runs."""


class JointGuide(abc.ABC):
    """A plain NumPyro guide that draws one vector and cuts the model's latents from it.

    The vector is an auxiliary site; every latent is a Delta that carries the change of volume.

    Args:
        model: the model.
        family: the specification.
        cover: which latents it draws.
    """

    kind: ClassVar[str]
    """Of the guide: part of its parameters' names."""

    def __init__(self, model: Any, family: JointFamily, cover: SiteSelection = ALL) -> None:
        self.model = model
        self.latents = Latents(backend, model)
        self.family: Any = family
        self.cover = cover
        self.prefix, self.site = cover.named(self.kind), cover.named(SITE)
        self._known: dict[Any, Layout] = {}

    def layout(self, args: Any, kwargs: Any) -> Layout:
        """Where the model's latents lie; the model is looked at once for every new shape of the arguments.

        Raises:
            SiteError: for a latent that no joint family covers.
        """
        shapes = ops.form((args, kwargs))
        known = self._known.get(shapes)
        if known is None:
            sites, plate = self.cover.pick(self.latents.sites(args, kwargs)), None
            if self.family.is_local:
                plate = plate_of([s.plates for s in sites.values()], len(self._given(args, kwargs)))
            known = Layout.of(backend, sites, type(self.family).__name__, plate=plate)
            self.family.check_size(known.size)
            self._known[shapes] = known
        return known

    def start(self, layout: Layout, args: Any, kwargs: Any) -> Callable[[], Array]:
        """Computes, once it is asked, a sensible vector to start from; the mean over a plate's elements."""

        def compute() -> Array:
            values = starting_values(backend, self.model, args, kwargs, self.latents.sites(args, kwargs))
            return layout.pack(values) if layout.plate is None else jnp.mean(layout.pack_each(values), axis=0)

        return functools.cache(compute)

    def _given(self, args: Any, kwargs: Any) -> Array:
        """The features that the elements of the plate are conditioned on, a row for each. Shape ``[N, F]``."""
        found = jnp.asarray(features_of(self.family.condition, self.model, args, kwargs), jnp.result_type(float))
        return found.reshape(found.shape[0], -1)

    def features(self, args: Any, kwargs: Any, indices: Array) -> Array:
        """The rows of these elements, standardized as the first data were. Shape ``[B, F]``."""
        rows = self._given(args, kwargs)
        mean: Any = numpyro.param(f"{self.prefix}_feature_mean", lambda _: jnp.mean(rows, axis=0))
        spread: Any = numpyro.param(f"{self.prefix}_feature_scale", lambda _: jnp.std(rows, axis=0))
        mean, spread = lax.stop_gradient(mean), lax.stop_gradient(spread)
        return saturated(ops, (rows[indices] - mean[None]) / jnp.where(spread > 0.0, spread, 1.0)[None])

    def share(self, other: JointGuide) -> None:
        """Take over what another guide of the same model knows of it."""
        self.latents, self._known = other.latents, other._known

    @abc.abstractmethod
    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> dist.Distribution:
        """The distribution of the vector; its parameters are `numpyro.param` sites.

        Args:
            features: of the elements of `layout.plate` at hand, shape ``[B, F]``; None without one.
        """

    def log_joint(self, layout: Layout, params: dict[str, Array], args: Any, kwargs: Any) -> Callable[[Array], Array]:
        """Log p of a latent vector on all of the data, with the change of volume; data and parameters are live."""

        def at(vector: Array) -> Array:
            sites = layout.unpack(vector)
            held = {**params, **{name: value for name, (value, _) in sites.items()}}
            with block():
                running = substitute(seed(full_data(self.model), random.key(0)), data=held)
                log_p = total_log_prob(trace(running).get_trace(*args, **kwargs))
            return log_p + sum(jnp.sum(log_det) for _, log_det in sites.values())

        return at

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Any) -> list[dict[str, Array]]:
        """Values of some parameters to start a fit from, by name; several where runs should be kept apart.

        Args:
            fit: ``fit(family, num_steps, key)`` fits another family to this model and data, and returns its posterior.
            data: the model's arguments.
        """
        return [{}]

    @abc.abstractmethod
    def matched(self, layout: Layout, draws: dict[str, Array]) -> dict[str, Array]:
        """Values of some parameters to start from, by name, that are near these draws.

        Args:
            draws: by site, shape ``[num, *site]``.
        """

    def location(self, params: dict[str, Array]) -> Preconditioner | None:
        """Where the guide with these parameters lies, and how wide; None where that is not known."""
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        return self.draw(args, kwargs, {})

    def draw(self, args: Any, kwargs: Any, plates: dict[str, numpyro.plate]) -> dict[str, Array]:
        """The latents that it covers.

        Args:
            plates: entered before in this run, by name.
        """
        layout = self.layout(args, kwargs)
        with contextlib.ExitStack() as stack:
            features = None
            if layout.plate is not None:
                features = self.features(args, kwargs, enter(backend.host, stack, plates, layout.plate))
            distribution = self.distribution(layout, args, kwargs, features)
            vector: Any = numpyro.sample(self.site, distribution, infer={"is_auxiliary": True})
        found = layout.unpack(vector) if features is None else layout.unpack_each(vector.reshape(-1, layout.size))
        values = {}
        for part in layout.parts:
            site = part.site
            value, log_det = found[site.name]
            with contextlib.ExitStack() as stack:
                for plate in site.plates:
                    indices = enter(backend.host, stack, plates, plate)
                    whole = plate != layout.plate and len(indices) != plate.size
                    if whole and plate.size != plate.subsample_size:
                        axis = len(site.shape) - site.event_dim + plate.dim
                        value, log_det = jnp.take(value, indices, axis), jnp.take(log_det, indices, axis)
                delta = dist.Delta(value, log_density=-log_det, event_dim=site.event_dim)
                values[site.name] = numpyro.sample(site.name, delta)
        return values


class GaussianGuide(JointGuide):
    """One Gaussian over all latents, in the frame that the search found."""

    kind = "gaussian"

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> dist.Distribution:
        family: GaussianFamily = self.family
        base = family.gaussian.resolve(layout)
        start = self.start(layout, args, kwargs)
        frame = frame_params(self.prefix, layout.size, family.is_dense(layout.size), family.init_scale, start)
        tail = tail_param(self.prefix)
        params = base_params(self.prefix, base, 1.0, lambda: jnp.zeros(layout.size, jnp.result_type(float)))

        def make(key: Array) -> Vector:
            key, component = choose_component(base, key)
            noise = random.normal(key, (layout.size,), jnp.result_type(float))
            if component is None:
                made = path.gaussian(ops, base, params, frame, tail, noise, gradient=family.gradient)
                return Vector(*made, frozen=family.gradient == "path")
            y = base.to_latent(ops, base.component(ops, params, component), noise)
            held = {name: lax.stop_gradient(p) for name, p in params.items()}
            return Vector(frame.place(y), base.log_prob(ops, held, y) - frame.log_det(ops), frozen=True)

        return Joint(layout.size, make, self.site)

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Any) -> list[dict[str, Array]]:
        layout = self.layout(*data.call)
        if self.family.gaussian.diagonal_first:
            params = dict(fit(Gaussian(Diagonal(), self.family.init_scale), None, key).params)
            found = frame_of(take_gaussian(params, Diagonal()))
            return [{**params, f"{self.prefix}_center": found.center, f"{self.prefix}_root": found.root}]
        if not self.family.is_dense(layout.size):
            return [{}]
        found = self.searcher.run(layout, data, key)
        return [{f"{self.prefix}_center": f.center, f"{self.prefix}_root": f.root} for f in found] or [{}]

    def matched(self, layout: Layout, draws: dict[str, Array]) -> dict[str, Array]:
        center, scale, _ = match_draws(layout, draws, bends=False)
        root = jnp.diag(scale) if self.family.is_dense(layout.size) else scale
        return {f"{self.prefix}_center": center, f"{self.prefix}_root": root}

    @functools.cached_property
    def searcher(self) -> Searcher:
        """Finds a frame."""
        return Searcher(backend, self)

    def location(self, params: dict[str, Array]) -> Preconditioner | None:
        own = {n: params[f"{self.prefix}_{n}"] for n in self.family.gaussian.names}
        if own["loc"].ndim != 1:
            return None
        return frame_of(_folded(params[f"{self.prefix}_center"], params[f"{self.prefix}_root"], own))


def take_gaussian(params: dict[str, Array], spec: Any) -> dict[str, Array]:
    """Take a `GaussianGuide`'s parameters out of these, as those of its base in the model's own coordinates."""
    frame = Preconditioner(params.pop("gaussian_center"), params.pop("gaussian_root"))
    params.pop("gaussian_tail")
    return _folded(frame.center, frame.root, {name: params.pop(f"gaussian_{name}") for name in spec.names})


@jax.jit
def _folded(center: Array, root: Array, params: dict[str, Array]) -> dict[str, Array]:
    return Preconditioner(center, root).fold(ops, params)


def frame_of(params: dict[str, Array]) -> Preconditioner:
    """`Preconditioner.of` these, as one program."""
    return Preconditioner(*_frame_of(params))


@jax.jit
def _frame_of(params: dict[str, Array]) -> tuple[Array, Array]:
    found = Preconditioner.of(ops, params)
    return found.center, found.root


def tail_param(prefix: str) -> Array:
    """H of `vi_reparam.gaussians.tails`, as a `numpyro.param` site that no gradient moves."""
    return lax.stop_gradient(numpyro.param(f"{prefix}_tail", jnp.zeros((), jnp.result_type(float))))


def match_draws(layout: Layout, draws: dict[str, Array], *, bends: bool) -> tuple[Array, Array, Array]:
    """Location, scale and bend of each coordinate, as draws by site have them; without `bends` those are zero."""
    vectors = jax.vmap(layout.pack)({p.site.name: draws[p.site.name] for p in layout.parts})
    return skewing.match(ops, vectors, jnp.asarray([bends and p for p in layout.positive()], vectors.dtype))


def bends(prefix: str, layout: Layout, features: Array | None) -> Callable[[Array | None], Array | None]:
    """The bends of a vector's coordinates given its row of features; of `numpyro.param` sites, if any may bend.

    Args:
        features: of all elements, shape ``[B, F]``; None without a plate.
    """
    mask = layout.positive()
    if not any(mask):
        return lambda row: None
    shapes = skewing.shapes(layout.size, 0 if features is None else features.shape[1])
    params: Any = {n: numpyro.param(f"{prefix}_{n}", normal_start(*own)) for n, own in shapes.items()}
    return lambda row: skewing.raw_of(ops, params, jnp.asarray(mask, jnp.result_type(float)), row)


def normal_start(shape: tuple[int, ...], deviation: float) -> Any:
    """What a parameter starts at: zeros, or normal variates."""
    dtype = jnp.result_type(float)
    if deviation == 0.0:
        return jnp.zeros(shape, dtype)
    return lambda key: deviation * random.normal(key, shape, dtype)


def frame_params(prefix: str, size: int, dense: bool, scale: float, start: Callable[[], Array]) -> Preconditioner:
    """The frame, as `numpyro.param` sites that no gradient moves."""
    dtype = jnp.result_type(float)
    center = numpyro.param(f"{prefix}_center", lambda _: start())
    root = numpyro.param(f"{prefix}_root", lambda _: scale * (jnp.eye(size, dtype=dtype) if dense else jnp.ones(size)))
    return Preconditioner(lax.stop_gradient(center), lax.stop_gradient(root))


def base_params(prefix: str, base: Any, scale: float, start: Callable[[], Array]) -> dict[str, Array]:
    """The parameters of a base, as `numpyro.param` sites.

    Args:
        scale: of each coordinate at the start.
        start: computes where the base's location starts, a vector; called only if a parameter is new.
    """

    def made(loc: Array) -> dict[str, Array]:
        return base.parameters(ops, random.key(0), loc, jnp.full_like(loc, scale))

    params: dict[str, Any] = {n: numpyro.param(f"{prefix}_{n}", lambda _, n=n: made(start())[n]) for n in base.names}
    return params


def choose_component(base: Any, key: Array) -> tuple[Array, Array | None]:
    """A key and one of a mixture's components, one-hot; None where there is one alone."""
    if not isinstance(base, Mixture):
        return key, None
    key, choice = random.split(key)
    index = random.randint(choice, (), 0, base.num_components)
    return key, jax.nn.one_hot(index, base.num_components, dtype=jnp.result_type(float))
