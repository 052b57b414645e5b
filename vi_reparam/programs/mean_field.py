"""Independent sites, each drawn on its own support, as a program over a `Host`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.ops import Array
from vi_reparam.estimators import Auto
from vi_reparam.guides import MeanField
from vi_reparam.guides.selection import ALL, SiteSelection
from vi_reparam.programs.latents import Latents, Site, bijection, refuse_discrete
from vi_reparam.programs.plates import enter
from vi_reparam.programs.starts import starting_values


class MeanFieldGuide:
    """Independent sites, each drawn on its own support. A plain guide of the framework.

    The model runs for new arguments, to find its latents.

    Args:
        estimators: named estimators, which discrete sites need.
        selection: which latents it draws.

    Attributes:
        scope: before its parameters' names, so that no two guides share a value.
    """

    def __init__(
        self, backend: Backend, model: Any, family: MeanField, estimators: Mapping, selection: SiteSelection = ALL
    ) -> None:
        self.backend, self.model, self.family = backend, model, family
        self.latents = Latents(backend, model)
        self.selection = selection
        self.estimators = estimators
        self.scope = backend.host.scope()

    def sites(self, args: Any, kwargs: Any) -> dict[str, Site]:
        """The latents that it draws.

        Raises:
            SiteError: for a discrete latent that no family covers, or that has no discrete estimator.
        """
        sites = self.selection.pick(self.latents.sites(args, kwargs))
        for site in sites.values():
            self._check_discrete(site)
        return sites

    def _with_parameters(self, sites: dict[str, Site], args: Any, kwargs: Any) -> dict[str, Site]:
        """Of a guide that is called with parameters of some sites alone, those sites: it was fitted to no others.

        So it is with parameters of another process, whose fit observed what is left out here.
        """
        known = () if self.latents.is_fitted_to(args, kwargs) else self.backend.host.known_params()
        own = {n: s for n, s in sites.items() if any(k.startswith(f"{self.scope}{n}_") for k in known)}
        return own or sites

    def _check_discrete(self, site: Site) -> None:
        if not site.support.is_discrete:
            return
        if site.kind == "discrete":
            raise refuse_discrete(
                self.backend.host,
                site,
                f": no family covers discrete latents with support {site.support!r}; marginalize it in the model, or "
                "write its guide by hand with vr.estimate and ScoreFunction()",
            )
        chosen = self.estimators.get(site.name) or self.estimators.get("*")
        if chosen is None or isinstance(chosen, Auto):
            raise refuse_discrete(
                self.backend.host,
                site,
                f" is discrete and needs a discrete estimator: estimators={{{site.name!r}: vr.ScoreFunction()}} or "
                "vr.MeasureValued()",
            )

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        return self.draw(args, kwargs, {})

    def draw(self, args: Any, kwargs: Any, plates: dict[str, Any]) -> dict[str, Array]:
        """The latents that it draws; `plates` are those entered before in this run, by name."""
        backend, host = self.backend, self.backend.host
        sites = self._with_parameters(self.sites(args, kwargs), args, kwargs)

        @functools.cache  # only if a parameter asks
        def starts() -> dict[str, Array]:
            own, given = self.latents.sites(args, kwargs), self.latents.given
            return starting_values(backend, self.model, args, kwargs, own, given)

        values = {}
        for site in sites.values():
            shape = list(site.shape)
            with self.latents.sized(sites), contextlib.ExitStack() as stack:
                for plate in site.plates:
                    shape[len(shape) - site.event_dim + (plate.dim or 0)] = len(enter(host, stack, plates, plate))
                build = _BUILDERS[self.family.family_at(site.name, site.kind)]
                maker = Maker(backend, self.scope, site, lambda name=site.name: starts()[name])
                value = host.sample(site.name, build(maker, site, self.family.init_scale))
                if list(value.shape)[value.ndim - len(shape) :] != shape:
                    raise ValueError(
                        f"site {site.name!r}: drawn in shape {tuple(value.shape)}, expected {tuple(shape)}"
                    )
            values[site.name] = value
        return values


class Maker:
    """The parameters of one site.

    Args:
        backend: the guide's; `scope`: of the guide.
        site: the site.
        start: computes a sensible value to start from, of the site's full shape.
    """

    def __init__(self, backend: Backend, scope: str, site: Site, start: Callable[[], Array]) -> None:
        self.ops, self.host, self.xp = backend.ops, backend.host, backend.ops.xp
        self.dist = backend.host.dist
        self.prefix = f"{scope}{site.name}_"
        self.event_dim = site.event_dim
        self._start = start

    def constant(self, value: float, shape: tuple[int, ...]) -> Array:
        """An array of one value."""
        return self.xp.full(shape, value, dtype=self.ops.float_dtype())

    def near(
        self, change: Callable[[Array], Array] = lambda x: x, *, jitter: float = 0.0, spread: float = 0.0
    ) -> Callable[[Any], Array]:
        """The initial value: the start, changed; times a random factor near one, plus a random shift near zero.

        Without those, sites that the model cannot tell apart would start equal and stay so.

        Args:
            jitter: standard deviation of the factor's logarithm; `spread`: of the shift.
        """

        def init(key: Any) -> Array:
            value = change(self.ops.asarray(self._start(), self.ops.float_dtype()))
            noise = self.ops.normal(key, tuple(value.shape), value.dtype) if jitter or spread else 0.0
            return value * self.xp.exp(jitter * noise) if jitter else value + spread * noise

        return init

    def real(self, name: str, init: Any, *, event_dim: int | None = None) -> Array:
        """A parameter on the reals."""
        return self.host.param(self.prefix + name, init, event_dim=self.event_dim if event_dim is None else event_dim)

    def positive(self, name: str, init: Any, *, event_dim: int | None = None) -> Array:
        """A positive parameter."""
        event_dim = self.event_dim if event_dim is None else event_dim
        return self.host.param(self.prefix + name, init, constraint=self.dist.constraints.positive, event_dim=event_dim)


def _normal(make: Maker, site: Site, scale: float) -> Any:
    loc = make.real("loc", make.near(spread=scale))
    return make.dist.Normal(loc, make.positive("scale", make.constant(scale, site.shape))).to_event(site.event_dim)


def _gamma(make: Maker, site: Site, scale: float) -> Any:
    concentration = make.positive("concentration", make.constant(scale**-2, site.shape))
    mean = make.positive("mean", make.near(lambda x: make.xp.clip(x, 1e-3, 1e6), jitter=2.0 * scale))
    return make.dist.Gamma(concentration, concentration / mean).to_event(site.event_dim)


def _inverse_gamma(make: Maker, site: Site, scale: float) -> Any:
    concentration = make.positive("concentration", make.constant(scale**-2, site.shape))
    inverse = make.near(lambda x: 1.0 / make.xp.clip(x, 1e-6, 1e3), jitter=2.0 * scale)
    rate = concentration / make.positive("inverse_mean", inverse)
    return make.dist.InverseGamma(concentration, rate).to_event(site.event_dim)


def _beta(make: Maker, site: Site, scale: float) -> Any:
    total = 0.25 / scale**2

    def middle(x: Array) -> Array:
        return make.xp.clip(x, 0.02, 0.98)

    first = make.positive("concentration1", make.near(lambda x: total * middle(x), jitter=scale))
    second = make.positive("concentration0", make.near(lambda x: total * (1.0 - middle(x)), jitter=scale))
    return make.dist.Beta(first, second).to_event(site.event_dim)


def _dirichlet(make: Maker, site: Site, scale: float) -> Any:
    size = site.shape[-1]

    def spread(x: Array) -> Array:
        return 10.0 * size * make.xp.clip(x / make.xp.sum(x, axis=-1, keepdims=True), 0.02 / size, 1.0)

    concentration = make.positive("concentration", make.near(spread, jitter=scale))
    return make.dist.Dirichlet(concentration).to_event(site.event_dim - 1)


def _von_mises(make: Maker, site: Site, scale: float) -> Any:
    loc = make.real("loc", make.near())
    concentration = make.positive("concentration", make.constant(0.1 / scale**2, site.shape))
    return make.dist.VonMises(loc, concentration).to_event(site.event_dim)


def _von_mises_fisher(make: Maker, site: Site, scale: float) -> Any:
    vector = make.real("direction", make.near())
    direction = vector / make.xp.linalg.vector_norm(vector, axis=-1, keepdims=True)
    shape, event_dim = site.shape[:-1], site.event_dim - 1
    concentration = make.positive("concentration", make.constant(0.1 / scale**2, shape), event_dim=event_dim)
    return make.host.von_mises_fisher(direction, concentration).to_event(event_dim)


def _bernoulli(make: Maker, site: Site, scale: float) -> Any:
    logits = make.real("logits", make.constant(0.0, site.shape))
    return make.dist.Bernoulli(logits=logits).to_event(site.event_dim)


def _poisson(make: Maker, site: Site, scale: float) -> Any:
    rate = make.positive("rate", make.near(lambda x: make.xp.clip(x, 0.5, 1e6)))
    return make.dist.Poisson(rate).to_event(site.event_dim)


def _transformed_normal(make: Maker, site: Site, scale: float) -> Any:
    transform = bijection(make.host, site.support)
    shape = tuple(transform.inverse_shape(site.shape))
    event_dim = len(shape) - (len(site.shape) - site.event_dim)

    def unconstrained(x: Array) -> Array:
        value = transform.inv(x)
        return make.xp.where(make.xp.isfinite(value), value, make.xp.zeros_like(value))

    loc = make.real("loc", make.near(unconstrained), event_dim=event_dim)
    spread = make.positive("scale", make.constant(scale, shape), event_dim=event_dim)
    return make.dist.TransformedDistribution(make.dist.Normal(loc, spread).to_event(event_dim), transform)


_BUILDERS: dict[str, Callable[[Maker, Site, float], Any]] = {
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
