"""Guide families as Pyro guides."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from vi_reparam.backend.data import Data
from vi_reparam.errors import SiteError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam.guides import SDE, Flow, GaussianFamily, GuideFamily, MeanField, Sites
from vi_reparam.guides.selection import ALL, SiteSelection
from vi_reparam.guides.sites import start_from
from vi_reparam_pyro.engine.arguments import signature
from vi_reparam_pyro.flow import FlowGuide
from vi_reparam_pyro.host.distributions import VonMisesFisher
from vi_reparam_pyro.host.params import new_scope
from vi_reparam_pyro.joint import GaussianGuide
from vi_reparam_pyro.plates import enter
from vi_reparam_pyro.prototype import Latents, Site, bijection
from vi_reparam_pyro.sde import SDEGuide
from vi_reparam_pyro.starts import starting_values

Array = Any


def build_guide(family: GuideFamily, model: Any, estimators: dict[str, Estimator], cover: SiteSelection = ALL) -> Any:
    """The guide of a family for a model.

    Args:
        cover: which latents it draws.

    Raises:
        SiteError: if the family is not one that this backend builds.
    """
    if isinstance(family, MeanField):
        return MeanFieldGuide(model, family, estimators, cover)
    if isinstance(family, Sites):
        return SitesGuide(family, [build_guide(own, model, estimators, part) for part, own in family.parts()])
    for kind, made in _JOINT.items():
        if isinstance(family, kind):
            return made(model, family, cover)
    known = "vr.MeanField(), vr.FullRank(), vr.LowRank(), vr.Flow(), vr.SDE() or vr.Sites({...})"
    raise SiteError(f"{family!r} is not a guide family that this backend builds: use {known}")


_JOINT: dict[type, Callable[..., Any]] = {GaussianFamily: GaussianGuide, Flow: FlowGuide, SDE: SDEGuide}
"""One row a family over all latents: what draws it."""


class SitesGuide:
    """Several guides, one after the other, in the same plates. A plain Pyro guide.

    Args:
        family: the specification.
        parts: the guides.

    Attributes:
        scope: before their parameters' names in Pyro's store.
    """

    def __init__(self, family: Sites, parts: list[Any]) -> None:
        self.family, self.parts = family, parts
        self.scope = new_scope()
        for part in parts:
            part.scope = self.scope

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        plates: dict[str, Any] = {}
        values = {}
        for part in self.parts:
            values.update(part.draw(args, kwargs, plates))
        return values

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: int) -> list[dict[str, Array]]:
        """As `JointGuide.warm_starts`, by a fit in which these parts are mean fields."""
        found = self.family.simpler()
        if found is None:
            return [{}]
        simpler, steps = found
        pairs = zip(self.parts, simpler.families, strict=True)
        new = [(part, part.layout(*data.call)) for part, (_, family) in pairs if family != part.family]
        return [start_from(fit(simpler, steps, key), new, key)]


class MeanFieldGuide:
    """Independent sites, each drawn on its own support. A plain Pyro guide.

    The model is looked at once for every new shape of the arguments. In Pyro's store the
    parameters' names begin with a scope of this guide's own, so that no two guides share a value.

    Args:
        model: the model.
        family: the specification.
        estimators: named estimators, which discrete sites need.
        cover: which latents it draws.
    """

    def __init__(
        self, model: Any, family: MeanField, estimators: dict[str, Estimator], cover: SiteSelection = ALL
    ) -> None:
        self.model = model
        self.latents = Latents(model)
        self.cover = cover
        self.family = family
        self.estimators = estimators
        self.scope = new_scope()
        self._known: dict[Any, dict[str, Site]] = {}

    def sites(self, args: Any, kwargs: Any) -> dict[str, Site]:
        """The model's latents, as `prototype.prototype`."""
        key = signature(args, kwargs), torch.get_default_dtype()
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self.cover.pick(self.latents.sites(args, kwargs))
            for site in known.values():
                self._check_discrete(site)
        return known

    def _check_discrete(self, site: Site) -> None:
        if not site.support.is_discrete:
            return
        if site.kind == "discrete":
            raise SiteError(
                f"site {site.name!r}: no family covers discrete latents with support {site.support!r}; "
                "marginalize it in the model, or write its guide by hand with vr.estimate and ScoreFunction()"
            )
        chosen = self.estimators.get(site.name) or self.estimators.get("*")
        if chosen is None or isinstance(chosen, Auto):
            raise SiteError(
                f"site {site.name!r} is discrete and needs a discrete estimator: "
                f"estimators={{{site.name!r}: vr.ScoreFunction()}} or vr.MeasureValued()"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        return self.draw(args, kwargs, {})

    def draw(self, args: Any, kwargs: Any, plates: dict[str, Any]) -> dict[str, Array]:
        """The latents that it covers.

        Args:
            plates: entered before in this run, by name.
        """
        sites = self.sites(args, kwargs)
        whole = self.latents.sites(args, kwargs)
        starts = functools.cache(lambda: starting_values(self.model, args, kwargs, whole))  # only if a param asks
        values = {}
        for site in sites.values():
            with contextlib.ExitStack() as stack:
                for plate in site.plates:
                    enter(stack, plates, plate)
                build = _BUILDERS[self.family.family_at(site.name, site.kind)]
                maker = _Maker(self.scope, site, lambda name=site.name: starts()[name])
                values[site.name] = pyro.sample(site.name, build(maker, site, self.family.init_scale))
        return values


class _Maker:
    """The parameters of one site.

    Args:
        scope: of the guide.
        site: the site.
        start: computes a sensible value to start from, of the site's full shape.
    """

    def __init__(self, scope: str, site: Site, start: Callable[[], Array]) -> None:
        self.prefix = f"{scope}{site.name}_"
        self.event_dim = site.event_dim
        self._start = start

    def start(self) -> Array:
        """The starting value in the default dtype, on the default device."""
        return torch.as_tensor(self._start(), dtype=torch.get_default_dtype(), device=torch.get_default_device())

    def near(self, change: Callable[[Array], Array], *, jitter: float = 0.0) -> Callable[[], Array]:
        """The initial value made of the start, times a random factor near one.

        Without the factor, sites that the model cannot tell apart would start equal and stay so.
        """

        def init() -> Array:
            value = change(self.start())
            return value * torch.exp(jitter * torch.randn_like(value)) if jitter else value

        return init

    def real(self, name: str, init: Any, *, event_dim: int | None = None) -> Array:
        return pyro.param(self.prefix + name, init, event_dim=self.event_dim if event_dim is None else event_dim)

    def positive(self, name: str, init: Any, *, event_dim: int | None = None) -> Array:
        event_dim = self.event_dim if event_dim is None else event_dim
        return pyro.param(self.prefix + name, init, constraint=constraints.positive, event_dim=event_dim)


def _constant(value: float, shape: tuple[int, ...]) -> Array:
    return torch.full(shape, value)


def _normal(make: _Maker, site: Site, scale: float) -> Any:
    def near() -> Array:
        start = make.start()
        return start + scale * torch.randn_like(start)

    loc = make.real("loc", near)
    spread = make.positive("scale", _constant(scale, site.shape))
    return dist.Normal(loc, spread).to_event(site.event_dim)


def _gamma(make: _Maker, site: Site, scale: float) -> Any:
    concentration = make.positive("concentration", _constant(scale**-2, site.shape))
    mean = make.positive("mean", make.near(lambda x: x.clamp(1e-3, 1e6), jitter=2.0 * scale))
    return dist.Gamma(concentration, concentration / mean).to_event(site.event_dim)


def _inverse_gamma(make: _Maker, site: Site, scale: float) -> Any:
    concentration = make.positive("concentration", _constant(scale**-2, site.shape))
    inverse = make.near(lambda x: 1.0 / x.clamp(1e-6, 1e3), jitter=2.0 * scale)
    return dist.InverseGamma(concentration, concentration / make.positive("inverse_mean", inverse)).to_event(
        site.event_dim
    )


def _beta(make: _Maker, site: Site, scale: float) -> Any:
    total = 0.25 / scale**2
    first = make.positive("concentration1", make.near(lambda x: total * x.clamp(0.02, 0.98), jitter=scale))
    second = make.positive("concentration0", make.near(lambda x: total * (1.0 - x.clamp(0.02, 0.98)), jitter=scale))
    return dist.Beta(first, second).to_event(site.event_dim)


def _dirichlet(make: _Maker, site: Site, scale: float) -> Any:
    size = site.shape[-1]

    def spread(x: Array) -> Array:
        return 10.0 * size * (x / x.sum(-1, keepdim=True)).clamp(0.02 / size, 1.0)

    return dist.Dirichlet(make.positive("concentration", make.near(spread, jitter=scale))).to_event(site.event_dim - 1)


def _von_mises(make: _Maker, site: Site, scale: float) -> Any:
    loc = make.real("loc", make.start)
    concentration = make.positive("concentration", _constant(0.1 / scale**2, site.shape))
    return dist.VonMises(loc, concentration).to_event(site.event_dim)


def _von_mises_fisher(make: _Maker, site: Site, scale: float) -> Any:
    vector = make.real("direction", make.start)
    direction = vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    shape, event_dim = site.shape[:-1], site.event_dim - 1
    concentration = make.positive("concentration", _constant(0.1 / scale**2, shape), event_dim=event_dim)
    return VonMisesFisher(direction, concentration).to_event(event_dim)


def _bernoulli(make: _Maker, site: Site, scale: float) -> Any:
    return dist.Bernoulli(logits=make.real("logits", _constant(0.0, site.shape))).to_event(site.event_dim)


def _poisson(make: _Maker, site: Site, scale: float) -> Any:
    rate = make.positive("rate", make.near(lambda x: x.clamp(0.5, 1e6)))
    return dist.Poisson(rate).to_event(site.event_dim)


def _transformed_normal(make: _Maker, site: Site, scale: float) -> Any:
    transform = bijection(site.support)
    shape = tuple(transform.inverse_shape(torch.Size(site.shape)))
    event_dim = len(shape) - (len(site.shape) - site.event_dim)

    def unconstrained(x: Array) -> Array:
        value = transform.inv(x)
        return torch.where(torch.isfinite(value), value, 0.0)

    loc = make.real("loc", make.near(unconstrained), event_dim=event_dim)
    spread = make.positive("scale", _constant(scale, shape), event_dim=event_dim)
    return dist.TransformedDistribution(dist.Normal(loc, spread).to_event(event_dim), transform)


_BUILDERS = {
    "normal": _normal,
    "gamma": _gamma,
    "inverse_gamma": _inverse_gamma,
    "beta": _beta,
    "dirichlet": _dirichlet,
    "von_mises": _von_mises,
    "von_mises_fisher": _von_mises_fisher,
    "bernoulli": _bernoulli,
    "poisson": _poisson,
    "transformed_normal": _transformed_normal,
}
"""One row a family: how its parameters are made and started."""
