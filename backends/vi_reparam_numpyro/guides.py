"""Guide families as NumPyro guides."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.distributions import biject_to, constraints

from vi_reparam.backend.data import Data
from vi_reparam.errors import SiteError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam.guides import SDE, Flow, GaussianFamily, GuideFamily, MeanField, Sites
from vi_reparam.guides.selection import ALL, SiteSelection
from vi_reparam.guides.sites import start_from
from vi_reparam_numpyro.flow import FlowGuide
from vi_reparam_numpyro.host.distributions import VonMisesFisher
from vi_reparam_numpyro.joint import GaussianGuide
from vi_reparam_numpyro.plates import enter
from vi_reparam_numpyro.prototype import Latents, Site, form_of
from vi_reparam_numpyro.sde import SDEGuide
from vi_reparam_numpyro.starts import starting_values

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
    """Several guides, one after the other, in the same plates. A plain NumPyro guide.

    Args:
        family: the specification.
        parts: the guides.
    """

    def __init__(self, family: Sites, parts: list[Any]) -> None:
        self.family, self.parts = family, parts

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Any) -> list[dict[str, Array]]:
        """As `JointGuide.warm_starts`, by a fit in which these parts are mean fields."""
        found = self.family.simpler()
        if found is None:
            return [{}]
        simpler, steps = found
        args, kwargs = data.call
        pairs = zip(self.parts, simpler.families, strict=True)
        new = [(part, part.layout(args, kwargs)) for part, (_, family) in pairs if family != part.family]
        return [start_from(fit(simpler, steps, key), new, key)]

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        plates: dict[str, numpyro.plate] = {}
        values = {}
        for part in self.parts:
            values.update(part.draw(args, kwargs, plates))
        return values


class MeanFieldGuide:
    """Independent sites, each drawn on its own support. A plain NumPyro guide.

    The model is looked at once for every new shape of the arguments.

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
        self._known: dict[Any, dict[str, Site]] = {}

    def sites(self, args: Any, kwargs: Any) -> dict[str, Site]:
        """The model's latents, as `prototype.prototype`."""
        shapes = form_of(args, kwargs)
        known = self._known.get(shapes)
        if known is None:
            known = self._known[shapes] = self.cover.pick(self.latents.sites(args, kwargs))
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

    def draw(self, args: Any, kwargs: Any, plates: dict[str, numpyro.plate]) -> dict[str, Array]:
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
                distribution = build(site, self.family.init_scale, lambda name=site.name: starts()[name])
                values[site.name] = numpyro.sample(site.name, distribution)
        return values


Start = Callable[[], Array]
"""A sensible value of the site to start from, of its full shape, computed when it is called."""


def _real(site: Site, name: str, init: Any, *, event_dim: int | None = None) -> Array:
    event_dim = site.event_dim if event_dim is None else event_dim
    return numpyro.param(f"{site.name}_{name}", init, event_dim=event_dim)


def _positive(site: Site, name: str, init: Any, *, event_dim: int | None = None) -> Array:
    event_dim = site.event_dim if event_dim is None else event_dim
    return numpyro.param(f"{site.name}_{name}", init, constraint=constraints.positive, event_dim=event_dim)


def _float(x: Array) -> Array:
    return jnp.asarray(x, jnp.result_type(float))


def _from(start: Start, change: Callable[[Array], Array], *, jitter: float = 0.0) -> Any:
    """The initial value made of a start, times a random factor near one.

    Without the factor, sites that the model cannot tell apart would start equal and stay so.
    """

    def init(key: Any) -> Array:
        value = change(_float(start()))
        return value * jnp.exp(jitter * random.normal(key, value.shape, value.dtype))

    return init


def _constant(value: float, shape: tuple[int, ...]) -> Array:
    return jnp.full(shape, value, jnp.result_type(float))


def _normal(site: Site, scale: float, start: Start) -> dist.Distribution:
    def near(key: Any) -> Array:
        value = _float(start())
        return value + scale * random.normal(key, value.shape, value.dtype)

    loc = _real(site, "loc", near)
    spread = _positive(site, "scale", _constant(scale, site.shape))
    return dist.Normal(loc, spread).to_event(site.event_dim)


def _gamma(site: Site, scale: float, start: Start) -> dist.Distribution:
    concentration = _positive(site, "concentration", _constant(scale**-2, site.shape))
    mean = _positive(site, "mean", _from(start, lambda x: jnp.clip(x, 1e-3, 1e6), jitter=2.0 * scale))
    return dist.Gamma(concentration, concentration / mean).to_event(site.event_dim)


def _inverse_gamma(site: Site, scale: float, start: Start) -> dist.Distribution:
    concentration = _positive(site, "concentration", _constant(scale**-2, site.shape))
    inverse = _from(start, lambda x: 1.0 / jnp.clip(x, 1e-6, 1e3), jitter=2.0 * scale)
    inverse_mean = _positive(site, "inverse_mean", inverse)
    return dist.InverseGamma(concentration, concentration / inverse_mean).to_event(site.event_dim)


def _beta(site: Site, scale: float, start: Start) -> dist.Distribution:
    total = 0.25 / scale**2

    def middle(x: Array) -> Array:
        return jnp.clip(x, 0.02, 0.98)

    first = _positive(site, "concentration1", _from(start, lambda x: total * middle(x), jitter=scale))
    second = _positive(site, "concentration0", _from(start, lambda x: total * (1.0 - middle(x)), jitter=scale))
    return dist.Beta(first, second).to_event(site.event_dim)


def _dirichlet(site: Site, scale: float, start: Start) -> dist.Distribution:
    size = site.shape[-1]

    def spread(x: Array) -> Array:
        return 10.0 * size * jnp.clip(x / jnp.sum(x, -1, keepdims=True), 0.02 / size, 1.0)

    concentration = _positive(site, "concentration", _from(start, spread, jitter=scale))
    return dist.Dirichlet(concentration).to_event(site.event_dim - 1)


def _von_mises(site: Site, scale: float, start: Start) -> dist.Distribution:
    loc = _real(site, "loc", _from(start, lambda x: x))
    concentration = _positive(site, "concentration", _constant(0.1 / scale**2, site.shape))
    return dist.VonMises(loc, concentration).to_event(site.event_dim)


def _von_mises_fisher(site: Site, scale: float, start: Start) -> dist.Distribution:
    vector = _real(site, "direction", _from(start, lambda x: x))
    direction = vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)
    shape, event_dim = site.shape[:-1], site.event_dim - 1
    concentration = _positive(site, "concentration", _constant(0.1 / scale**2, shape), event_dim=event_dim)
    return VonMisesFisher(direction, concentration).to_event(event_dim)


def _bernoulli(site: Site, scale: float, start: Start) -> dist.Distribution:
    return dist.Bernoulli(logits=_real(site, "logits", _constant(0.0, site.shape))).to_event(site.event_dim)


def _poisson(site: Site, scale: float, start: Start) -> dist.Distribution:
    rate = _positive(site, "rate", _from(start, lambda x: jnp.clip(x, 0.5, 1e6)))
    return dist.Poisson(rate).to_event(site.event_dim)


def _transformed_normal(site: Site, scale: float, start: Start) -> dist.Distribution:
    transform = biject_to(site.support)
    shape = transform.inverse_shape(site.shape)
    event_dim = len(shape) - (len(site.shape) - site.event_dim)

    def unconstrained(x: Array) -> Array:
        value = transform.inv(x)
        return jnp.where(jnp.isfinite(value), value, 0.0)

    loc = _real(site, "loc", _from(start, unconstrained), event_dim=event_dim)
    spread = _positive(site, "scale", _constant(scale, shape), event_dim=event_dim)
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
