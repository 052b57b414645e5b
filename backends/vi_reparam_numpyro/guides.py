"""Guide families as NumPyro guides."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.distributions import biject_to, constraints

from vi_reparam.errors import SiteError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam.guides import SDE, Gaussian, GuideFamily, MeanField
from vi_reparam_numpyro.distributions import VonMisesFisher
from vi_reparam_numpyro.joint import GaussianGuide
from vi_reparam_numpyro.plates import enter
from vi_reparam_numpyro.prototype import Site, prototype
from vi_reparam_numpyro.sde import SDEGuide

Array = Any


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
    """Independent sites, each drawn on its own support. A plain NumPyro guide.

    The model is looked at once for every new shape of the arguments.

    Args:
        model: the model.
        family: the specification.
        estimators: named estimators, which discrete sites need.
    """

    def __init__(self, model: Any, family: MeanField, estimators: dict[str, Estimator]) -> None:
        self.model = model
        self.family = family
        self.estimators = estimators
        self._known: dict[Any, dict[str, Site]] = {}

    def sites(self, args: Any, kwargs: Any) -> dict[str, Site]:
        """The model's latents, as `prototype.prototype`."""
        leaves, tree = jax.tree.flatten((args, kwargs))
        shapes = tuple(str((jnp.shape(x), jnp.result_type(x))) if hasattr(x, "shape") else repr(x) for x in leaves)
        known = self._known.get((tree, shapes))
        if known is None:
            with jax.ensure_compile_time_eval():  # the starting values are numbers, also when this is traced
                known = self._known[tree, shapes] = prototype(self.model, args, kwargs)
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
        plates: dict[str, numpyro.plate] = {}
        values = {}
        for site in sites.values():
            with contextlib.ExitStack() as stack:
                for plate in site.plates:
                    enter(stack, plates, plate)
                values[site.name] = numpyro.sample(site.name, self._distribution(site))
        return values

    def _distribution(self, site: Site) -> dist.Distribution:
        name = self.family.family_at(site.name, site.kind)
        return _BUILDERS[name](site, self.family.init_scale)


def _real(site: Site, name: str, init: Any, *, event_dim: int | None = None) -> Array:
    event_dim = site.event_dim if event_dim is None else event_dim
    return numpyro.param(f"{site.name}_{name}", init, event_dim=event_dim)


def _positive(site: Site, name: str, init: Any, *, event_dim: int | None = None) -> Array:
    event_dim = site.event_dim if event_dim is None else event_dim
    return numpyro.param(f"{site.name}_{name}", init, constraint=constraints.positive, event_dim=event_dim)


def _jittered(start: Any, amount: float) -> Any:
    """Start times a random factor near one: sites that the model cannot tell apart must not start equal."""
    return lambda key: (
        jnp.asarray(start, jnp.result_type(float))
        * jnp.exp(amount * random.normal(key, jnp.shape(start), jnp.result_type(float)))
    )


def _constant(value: float, shape: tuple[int, ...]) -> Array:
    return jnp.full(shape, value, jnp.result_type(float))


def _normal(site: Site, scale: float) -> dist.Distribution:
    start = jnp.asarray(site.start, jnp.result_type(float))
    loc = _real(site, "loc", lambda key: start + scale * random.normal(key, start.shape, start.dtype))
    spread = _positive(site, "scale", _constant(scale, site.shape))
    return dist.Normal(loc, spread).to_event(site.event_dim)


def _gamma(site: Site, scale: float) -> dist.Distribution:
    concentration = _positive(site, "concentration", _constant(scale**-2, site.shape))
    mean = _positive(site, "mean", _jittered(jnp.clip(site.start, 1e-3, 1e6), 2.0 * scale))
    return dist.Gamma(concentration, concentration / mean).to_event(site.event_dim)


def _inverse_gamma(site: Site, scale: float) -> dist.Distribution:
    concentration = _positive(site, "concentration", _constant(scale**-2, site.shape))
    inverse_mean = _positive(site, "inverse_mean", _jittered(1.0 / jnp.clip(site.start, 1e-6, 1e3), 2.0 * scale))
    return dist.InverseGamma(concentration, concentration / inverse_mean).to_event(site.event_dim)


def _beta(site: Site, scale: float) -> dist.Distribution:
    total = 0.25 / scale**2
    middle = jnp.clip(site.start, 0.02, 0.98)
    first = _positive(site, "concentration1", _jittered(total * middle, scale))
    second = _positive(site, "concentration0", _jittered(total * (1.0 - middle), scale))
    return dist.Beta(first, second).to_event(site.event_dim)


def _dirichlet(site: Site, scale: float) -> dist.Distribution:
    start = site.start / site.start.sum(-1, keepdims=True)
    size = start.shape[-1]
    concentration = _positive(site, "concentration", _jittered(10.0 * size * jnp.clip(start, 0.02 / size, 1.0), scale))
    return dist.Dirichlet(concentration).to_event(site.event_dim - 1)


def _von_mises(site: Site, scale: float) -> dist.Distribution:
    loc = _real(site, "loc", jnp.asarray(site.start, jnp.result_type(float)))
    concentration = _positive(site, "concentration", _constant(0.1 / scale**2, site.shape))
    return dist.VonMises(loc, concentration).to_event(site.event_dim)


def _von_mises_fisher(site: Site, scale: float) -> dist.Distribution:
    vector = _real(site, "direction", jnp.asarray(site.start, jnp.result_type(float)))
    direction = vector / jnp.linalg.norm(vector, axis=-1, keepdims=True)
    shape, event_dim = site.shape[:-1], site.event_dim - 1
    concentration = _positive(site, "concentration", _constant(0.1 / scale**2, shape), event_dim=event_dim)
    return VonMisesFisher(direction, concentration).to_event(event_dim)


def _bernoulli(site: Site, scale: float) -> dist.Distribution:
    return dist.Bernoulli(logits=_real(site, "logits", _constant(0.0, site.shape))).to_event(site.event_dim)


def _poisson(site: Site, scale: float) -> dist.Distribution:
    return dist.Poisson(_positive(site, "rate", jnp.clip(site.start * 1.0, 0.5, 1e6))).to_event(site.event_dim)


def _transformed_normal(site: Site, scale: float) -> dist.Distribution:
    transform = biject_to(site.support)
    start = transform.inv(jnp.asarray(site.start, jnp.result_type(float)))
    start = jnp.where(jnp.isfinite(start), start, 0.0)
    event_dim = jnp.ndim(start) - (len(site.shape) - site.event_dim)
    loc = _real(site, "loc", start, event_dim=event_dim)
    spread = _positive(site, "scale", _constant(scale, start.shape), event_dim=event_dim)
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
