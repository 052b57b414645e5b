"""Guides that draw all continuous latents together."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.ops.provenance import extract_provenance, get_provenance, track_provenance

from vi_reparam.backend.data import Data
from vi_reparam.draw import Draw
from vi_reparam.errors import GradientError, SiteError
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
from vi_reparam_pyro.backend import backend
from vi_reparam_pyro.host.guard import running_objective
from vi_reparam_pyro.host.params import new_scope
from vi_reparam_pyro.lanes import vmap as lanes
from vi_reparam_pyro.ops.ops import mix, ops
from vi_reparam_pyro.ops.refusal import refuse_gradient
from vi_reparam_pyro.run import sample_sites
from vi_reparam_pyro.scoring import full_data, total_log_prob

Array = Any

SITE = "vr_joint"
"""The auxiliary site of the vector that latents are cut from; `SiteSelection.label` goes before it."""

SINGLE_SAMPLE = ("ELBO", "Trace_ELBO")
"""Objectives that are linear in log q, so that its parameters may be constants there, and that
honour a Delta's density, which Pyro's divergence in closed form drops."""


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


class Joint(TorchDistribution):
    """The distribution of the vector, known by its draws: only they can be scored.

    Args:
        size: D.
        make: a draw from a key.
        site: its name.
        batch_shape: of the plate whose elements have a vector each.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_rsample = True
    known_by_draws = True

    def __init__(
        self, size: int, make: Callable[[int], Vector], site: str = SITE, batch_shape: tuple[int, ...] = ()
    ) -> None:
        self.make, self.site = make, site
        self._last: tuple[Array, Array] | None = None
        super().__init__(torch.Size(batch_shape), torch.Size((size,)), validate_args=False)

    @classmethod
    def each(
        cls,
        size: int,
        noise: Callable[[int, int], Any],
        make: Callable[[Any, Array], Vector],
        site: str,
        features: Any,
        plate: Plate,
    ) -> Joint:
        """A draw for each element of a plate.

        Args:
            noise: of B elements, from a key and B: tensors with B as their leading dimension.
            make: a draw from an element's noise and its row of features.
            features: of the elements at hand, shape ``[B, F]``.
        """
        num = features.shape[0]
        shape = (num, *(1 for _ in range(-1 - plate.dim)))

        def all_of_them(key: int) -> Vector:
            frozen: list[bool] = []

            def one(own: Any, row: Array) -> tuple[Array, Array]:
                made = make(own, row)
                frozen.append(made.frozen)
                return made.value, made.log_q

            value, log_q = lanes.mapped(one, torch.arange(num), noise(key, num), features)
            return Vector(value.reshape(*shape, size), log_q.reshape(shape), frozen=frozen[0])

        return cls(size, all_of_them, site, shape)

    @property
    def support(self) -> Any:
        return constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Itself where nothing is to be expanded: plates ask even then."""
        same = torch.Size(batch_shape) == self.batch_shape
        return self if same else super().expand(batch_shape, _instance)

    def rsample(self, sample_shape: Any = ()) -> Array:
        if tuple(sample_shape):
            flat = [self.make(ops.root_key()).value for _ in range(torch.Size(sample_shape).numel())]
            return torch.stack(flat).reshape((*sample_shape, *self.batch_shape, *self.event_shape))
        made = self.make(ops.root_key())
        value = self._emitted(made)
        self._last = value, made.log_q
        return value

    def _emitted(self, made: Vector) -> Array:
        hearing, objective = listener.current(), running_objective()
        name = "this computation" if objective is None else type(objective).__name__
        if hearing is not None:
            hearing.frozen[self.site] = made.frozen
        if made.score_term is not None:
            if hearing is None:
                message = (
                    f"site {self.site!r}: this guide's gradient='log_variance' leaves a score term that {name} would "
                    "drop, and the gradient would be wrong; use vr.ELBO(), or gradient='path'"
                )
                return refuse_gradient(message, made.value, made.score_term)
            draw = Draw(value=made.value, log_prob=made.log_q, score_term=made.score_term)
            kind: Any = _Whole()
            value = hearing.report(self.site, Sampled(draw, kind, ScoreFunction(baseline="leave_one_out"), ()))
            hearing.consume(self.site)
            return value
        if hearing is None and objective is not None and name not in SINGLE_SAMPLE and torch.is_grad_enabled():
            if made.frozen:
                raise GradientError(
                    f"this guide's path gradient takes its parameters inside log q as constants, which is right for an "
                    f"ELBO and biased under {name}; use vr.ELBO(), or gradient='reparameterization'"
                )
            if name == "TraceMeanField_ELBO":
                raise GradientError(
                    "TraceMeanField_ELBO drops the density that a Delta carries, and with it the change of volume of "
                    "this guide's latents; use vr.ELBO() or Trace_ELBO()"
                )
        return made.value

    def log_prob(self, value: Array) -> Array:
        if self._last is not None and extract_provenance(value)[0] is extract_provenance(self._last[0])[0]:
            return track_provenance(self._last[1], get_provenance(value))
        raise SiteError(
            f"site {self.site!r}: only a draw of this guide can be scored, together with the path behind it; a value "
            "that was replayed or substituted has lost its path"
        )


class JointGuide(abc.ABC):
    """A plain Pyro guide that draws one vector and cuts the model's latents from it.

    The vector is an auxiliary site; every latent is a Delta that carries the change of volume. In
    Pyro's store the parameters' names begin with a scope of this guide's own.

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
        self.scope = new_scope()
        self._known: dict[Any, Layout] = {}

    def layout(self, args: Any, kwargs: Any) -> Layout:
        """Where the model's latents lie; the model is looked at once for every new shape of the arguments.

        Raises:
            SiteError: for a latent that no joint family covers.
        """
        key = ops.form((args, kwargs))
        known = self._known.get(key)
        if known is None:
            sites, plate = self.cover.pick(self.latents.sites(args, kwargs)), None
            if self.family.is_local:
                plate = plate_of([s.plates for s in sites.values()], len(self._given(args, kwargs)))
            known = Layout.of(backend, sites, type(self.family).__name__, plate=plate)
            self.family.check_size(known.size)
            self._known[key] = known
        return known

    def start(self, layout: Layout, args: Any, kwargs: Any) -> Callable[[], Array]:
        """Computes, once it is asked, a sensible vector to start from; the mean over a plate's elements."""

        def compute() -> Array:
            values = starting_values(backend, self.model, args, kwargs, self.latents.sites(args, kwargs))
            return layout.pack(values) if layout.plate is None else layout.pack_each(values).mean(0)

        return functools.cache(compute)

    def _given(self, args: Any, kwargs: Any) -> Array:
        """The features that the elements of the plate are conditioned on, a row for each. Shape ``[N, F]``."""
        found = features_of(self.family.condition, self.model, args, kwargs)
        found = torch.as_tensor(found, dtype=torch.get_default_dtype(), device=torch.get_default_device())
        return found.reshape(found.shape[0], -1)

    def features(self, args: Any, kwargs: Any, indices: Array) -> Array:
        """The rows of these elements, standardized as the first data were. Shape ``[B, F]``."""
        rows, prefix = self._given(args, kwargs), f"{self.scope}{self.prefix}"
        mean = pyro.param(f"{prefix}_feature_mean", lambda: rows.mean(0)).detach()
        spread = pyro.param(f"{prefix}_feature_scale", lambda: rows.std(0, correction=0)).detach()
        return saturated(ops, (rows[indices] - mean) / torch.where(spread > 0.0, spread, 1.0))

    def share(self, other: JointGuide) -> None:
        """Take over what another guide of the same model knows of it."""
        self.latents, self._known = other.latents, other._known

    @abc.abstractmethod
    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> TorchDistribution:
        """The distribution of the vector; its parameters are `pyro.param` sites.

        Args:
            features: of the elements of `layout.plate` at hand, shape ``[B, F]``; None without one.
        """

    def log_joint(self, layout: Layout, params: dict[str, Array], args: Any, kwargs: Any) -> Callable[[Array], Array]:
        """Log p of a latent vector on all of the data, with the change of volume.

        Data are live, and so are parameters, which come from outside (`params` are none of them).
        """

        def at(vector: Array) -> Array:
            sites = layout.unpack(vector)
            held = {name: value for name, (value, _) in sites.items()}
            with full_data(), poutine.block(hide_fn=_not_a_parameter):
                trace = poutine.trace(poutine.condition(self.model, data=held)).get_trace(*args, **kwargs)
            return total_log_prob(sample_sites(trace)) + sum(log_det.sum() for _, log_det in sites.values())

        return at

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: int) -> list[dict[str, Array]]:
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

    def draw(self, args: Any, kwargs: Any, plates: dict[str, Any]) -> dict[str, Array]:
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
            vector = pyro.sample(self.site, distribution, infer={"is_auxiliary": True})
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
                        value, log_det = value.index_select(axis, indices), log_det.index_select(axis, indices)
                delta = dist.Delta(value, log_density=-log_det, event_dim=site.event_dim)
                values[site.name] = pyro.sample(site.name, delta)
        return values


class GaussianGuide(JointGuide):
    """One Gaussian over all latents, in the frame that the search found."""

    kind = "gaussian"

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> TorchDistribution:
        family: GaussianFamily = self.family
        base, prefix = family.gaussian.resolve(layout), f"{self.scope}{self.prefix}"
        start = self.start(layout, args, kwargs)
        frame = frame_params(prefix, layout.size, family.is_dense(layout.size), family.init_scale, start)
        tail = tail_param(prefix)
        params = base_params(prefix, base, 1.0, lambda: torch.zeros(layout.size))

        def make(key: int) -> Vector:
            key, component = choose_component(base, key)
            noise = ops.normal(key, (layout.size,), torch.get_default_dtype())
            if component is None:
                kind = family.gradient if torch.is_grad_enabled() else "reparameterization"  # the value is the same
                made = path.gaussian(ops, base, params, frame, tail, noise, gradient=kind)
                return Vector(*made, frozen=family.gradient == "path")
            y = base.to_latent(ops, base.component(ops, params, component), noise)
            held = {name: p.detach() for name, p in params.items()}
            return Vector(frame.place(y), base.log_prob(ops, held, y) - frame.log_det(ops), frozen=True)

        return Joint(layout.size, make, self.site)

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: int) -> list[dict[str, Array]]:
        layout = self.layout(*data.call)
        if self.family.gaussian.diagonal_first:
            params = dict(fit(Gaussian(Diagonal(), self.family.init_scale), None, key).params)
            found = Preconditioner.of(ops, take_gaussian(params, Diagonal()))
            return [{**params, f"{self.prefix}_center": found.center, f"{self.prefix}_root": found.root}]
        if not self.family.is_dense(layout.size):
            return [{}]
        found = self.searcher.run(layout, data, key)
        return [{f"{self.prefix}_center": f.center, f"{self.prefix}_root": f.root} for f in found] or [{}]

    def matched(self, layout: Layout, draws: dict[str, Array]) -> dict[str, Array]:
        center, scale, _ = match_draws(layout, draws, bends=False)
        root = torch.diag(scale) if self.family.is_dense(layout.size) else scale
        return {f"{self.prefix}_center": center, f"{self.prefix}_root": root}

    @functools.cached_property
    def searcher(self) -> Searcher:
        """Finds a frame."""
        return Searcher(backend, self)

    def location(self, params: dict[str, Array]) -> Preconditioner | None:
        own = {n: params[f"{self.prefix}_{n}"] for n in self.family.gaussian.names}
        frame = Preconditioner(params[f"{self.prefix}_center"], params[f"{self.prefix}_root"])
        return Preconditioner.of(ops, frame.fold(ops, own)) if own["loc"].ndim == 1 else None


def take_gaussian(params: dict[str, Array], spec: Any) -> dict[str, Array]:
    """Take a `GaussianGuide`'s parameters out of these, as those of its base in the model's own coordinates."""
    frame = Preconditioner(params.pop("gaussian_center"), params.pop("gaussian_root"))
    params.pop("gaussian_tail")
    return frame.fold(ops, {name: params.pop(f"gaussian_{name}") for name in spec.names})


def _not_a_parameter(msg: Any) -> bool:
    return msg["type"] != "param"


def match_draws(layout: Layout, draws: dict[str, Array], *, bends: bool) -> tuple[Array, Array, Array]:
    """Location, scale and bend of each coordinate, as draws by site have them; without `bends` those are zero."""
    vectors = torch.func.vmap(layout.pack)({p.site.name: draws[p.site.name] for p in layout.parts})
    mask = torch.as_tensor([bends and p for p in layout.positive()], dtype=vectors.dtype, device=vectors.device)
    return skewing.match(ops, vectors, mask)


def bends(prefix: str, layout: Layout, features: Array | None) -> Callable[[Array | None], Array | None]:
    """The bends of a vector's coordinates given its row of features; of `pyro.param` sites, if any may bend.

    Args:
        features: of all elements, shape ``[B, F]``; None without a plate.
    """
    mask = layout.positive()
    if not any(mask):
        return lambda row: None
    shapes = skewing.shapes(layout.size, 0 if features is None else features.shape[1])
    params = {n: pyro.param(f"{prefix}_{n}", normal_start(*own, i)) for i, (n, own) in enumerate(shapes.items())}
    held = torch.as_tensor(mask, dtype=torch.get_default_dtype(), device=torch.get_default_device())
    return lambda row: skewing.raw_of(ops, params, held, row)


def normal_start(shape: tuple[int, ...], deviation: float, number: int) -> Any:
    """What a parameter starts at: zeros, or normal variates of its own number."""
    if deviation == 0.0:
        return torch.zeros(shape)
    return lambda: deviation * ops.normal(mix(ops.root_key() ^ number), shape, torch.get_default_dtype())


def frame_params(prefix: str, size: int, dense: bool, scale: float, start: Callable[[], Array]) -> Preconditioner:
    """The frame, as `pyro.param` sites that no gradient moves."""
    center = pyro.param(f"{prefix}_center", lambda: start())
    root = pyro.param(f"{prefix}_root", lambda: scale * (torch.eye(size) if dense else torch.ones(size)))
    return Preconditioner(center.detach(), root.detach())


def tail_param(prefix: str) -> Array:
    """H of `vi_reparam.gaussians.tails`, as a `pyro.param` site that no gradient moves."""
    return pyro.param(f"{prefix}_tail", torch.zeros(())).detach()


def base_params(prefix: str, base: Any, scale: float, start: Callable[[], Array]) -> dict[str, Array]:
    """The parameters of a base, as `pyro.param` sites.

    Args:
        scale: of each coordinate at the start.
        start: computes where the base's location starts, a vector; called only if a parameter is new.
    """

    def made(loc: Array) -> dict[str, Array]:
        return base.parameters(ops, mix(0), loc, torch.full_like(loc, scale))

    return {n: pyro.param(f"{prefix}_{n}", lambda n=n: made(start())[n]) for n in base.names}


def choose_component(base: Any, key: int, lead: tuple[int, ...] = ()) -> tuple[int, Array | None]:
    """A key and one of a mixture's components, one-hot in the last dimension; None where there is one alone."""
    if not isinstance(base, Mixture):
        return key, None
    key, choice = ops.split(key, 2)
    place = base.num_components * ops.uniform(choice, (*lead, 1), torch.get_default_dtype())  # in (0, components]
    index = torch.arange(base.num_components, dtype=place.dtype, device=place.device)
    return key, ((place > index) & (place <= index + 1.0)).to(place.dtype)
