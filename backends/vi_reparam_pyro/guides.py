"""Guide families as Pyro guides."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch.distributions import biject_to

from vi_reparam.errors import SiteError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam.guides import SDE, Gaussian, GuideFamily, MeanField
from vi_reparam_pyro.arguments import signature
from vi_reparam_pyro.distributions import VonMisesFisher
from vi_reparam_pyro.joint import GaussianGuide
from vi_reparam_pyro.plates import enter
from vi_reparam_pyro.prototype import Site, prototype
from vi_reparam_pyro.sde import SDEGuide

Array = Any

_COUNT = itertools.count()


def build_guide(family: GuideFamily, model: Any, estimators: dict[str, Estimator]) -> Any:
    """The guide of a family for a model.

    Raises:
        SiteError: if the family is not one that this backend builds.
    """
    if isinstance(family, MeanField):
        return MeanFieldGuide(model, family, estimators)
    if isinstance(family, Gaussian):
        return GaussianGuide(model, family)
    if isinstance(family, SDE):
        return SDEGuide(model, family)
    raise SiteError(f"{family!r} is not a guide family that this backend builds: use vr.MeanField() or vr.SDE()")


class MeanFieldGuide:
    """Independent sites, each drawn on its own support. A plain Pyro guide.

    The model is looked at once for every new shape of the arguments. In Pyro's store the
    parameters' names begin with a scope of this guide's own, so that no two guides share a value.

    Args:
        model: the model.
        family: the specification.
        estimators: named estimators, which discrete sites need.
    """

    def __init__(self, model: Any, family: MeanField, estimators: dict[str, Estimator]) -> None:
        self.model = model
        self.family = family
        self.estimators = estimators
        self.scope = f"vr{next(_COUNT)}/"
        self._known: dict[Any, dict[str, Site]] = {}

    def sites(self, args: Any, kwargs: Any) -> dict[str, Site]:
        """The model's latents, as `prototype.prototype`."""
        key = signature(args, kwargs), torch.get_default_dtype()
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = prototype(self.model, args, kwargs)
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
        sites = self.sites(args, kwargs)
        plates: dict[str, Any] = {}
        values = {}
        for site in sites.values():
            with contextlib.ExitStack() as stack:
                for plate in site.plates:
                    enter(stack, plates, plate)
                name = self.family.family_at(site.name, site.kind)
                made = _BUILDERS[name](_Maker(self.scope, site), site, self.family.init_scale)
                values[site.name] = pyro.sample(site.name, made)
        return values


class _Maker:
    """The parameters of one site."""

    def __init__(self, scope: str, site: Site) -> None:
        self.prefix = f"{scope}{site.name}_"
        self.event_dim = site.event_dim

    def real(self, name: str, init: Any, *, event_dim: int | None = None) -> Array:
        return pyro.param(self.prefix + name, init, event_dim=self.event_dim if event_dim is None else event_dim)

    def positive(self, name: str, init: Any, *, event_dim: int | None = None) -> Array:
        event_dim = self.event_dim if event_dim is None else event_dim
        return pyro.param(self.prefix + name, init, constraint=constraints.positive, event_dim=event_dim)


def _start(site: Site) -> Array:
    return torch.as_tensor(site.start, dtype=torch.get_default_dtype(), device=torch.get_default_device())


def _jittered(start: Array, amount: float) -> Any:
    """Start times a random factor near one: sites that the model cannot tell apart must not start equal."""
    return lambda: start * torch.exp(amount * torch.randn_like(start))


def _constant(value: float, shape: tuple[int, ...]) -> Array:
    return torch.full(shape, value)


def _normal(make: _Maker, site: Site, scale: float) -> Any:
    start = _start(site)
    loc = make.real("loc", lambda: start + scale * torch.randn_like(start))
    spread = make.positive("scale", _constant(scale, site.shape))
    return dist.Normal(loc, spread).to_event(site.event_dim)


def _gamma(make: _Maker, site: Site, scale: float) -> Any:
    concentration = make.positive("concentration", _constant(scale**-2, site.shape))
    mean = make.positive("mean", _jittered(_start(site).clamp(1e-3, 1e6), 2.0 * scale))
    return dist.Gamma(concentration, concentration / mean).to_event(site.event_dim)


def _inverse_gamma(make: _Maker, site: Site, scale: float) -> Any:
    concentration = make.positive("concentration", _constant(scale**-2, site.shape))
    inverse_mean = make.positive("inverse_mean", _jittered(1.0 / _start(site).clamp(1e-6, 1e3), 2.0 * scale))
    return dist.InverseGamma(concentration, concentration / inverse_mean).to_event(site.event_dim)


def _beta(make: _Maker, site: Site, scale: float) -> Any:
    total = 0.25 / scale**2
    middle = _start(site).clamp(0.02, 0.98)
    first = make.positive("concentration1", _jittered(total * middle, scale))
    second = make.positive("concentration0", _jittered(total * (1.0 - middle), scale))
    return dist.Beta(first, second).to_event(site.event_dim)


def _dirichlet(make: _Maker, site: Site, scale: float) -> Any:
    start = _start(site)
    start = start / start.sum(-1, keepdim=True)
    size = start.shape[-1]
    concentration = make.positive("concentration", _jittered(10.0 * size * start.clamp(0.02 / size, 1.0), scale))
    return dist.Dirichlet(concentration).to_event(site.event_dim - 1)


def _von_mises(make: _Maker, site: Site, scale: float) -> Any:
    loc = make.real("loc", _start(site))
    concentration = make.positive("concentration", _constant(0.1 / scale**2, site.shape))
    return dist.VonMises(loc, concentration).to_event(site.event_dim)


def _von_mises_fisher(make: _Maker, site: Site, scale: float) -> Any:
    vector = make.real("direction", _start(site))
    direction = vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    shape, event_dim = site.shape[:-1], site.event_dim - 1
    concentration = make.positive("concentration", _constant(0.1 / scale**2, shape), event_dim=event_dim)
    return VonMisesFisher(direction, concentration).to_event(event_dim)


def _bernoulli(make: _Maker, site: Site, scale: float) -> Any:
    return dist.Bernoulli(logits=make.real("logits", _constant(0.0, site.shape))).to_event(site.event_dim)


def _poisson(make: _Maker, site: Site, scale: float) -> Any:
    return dist.Poisson(make.positive("rate", _start(site).clamp(0.5, 1e6))).to_event(site.event_dim)


def _transformed_normal(make: _Maker, site: Site, scale: float) -> Any:
    transform = biject_to(site.support)
    start = transform.inv(_start(site))
    start = torch.where(torch.isfinite(start), start, 0.0)
    event_dim = start.ndim - (len(site.shape) - site.event_dim)
    loc = make.real("loc", start, event_dim=event_dim)
    spread = make.positive("scale", _constant(scale, tuple(start.shape)), event_dim=event_dim)
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
