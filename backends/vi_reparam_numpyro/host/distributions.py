"""Distributions whose draws carry an estimator's gradient."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax.numpy as jnp
from numpyro.distributions import constraints
from numpyro.distributions.distribution import Distribution

from vi_reparam.errors import SiteError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam.families import FAMILIES, Family
from vi_reparam.families.own import SamplerFamily
from vi_reparam.samplers import RejectionSampler
from vi_reparam.sites import density
from vi_reparam.sites.draw import Sampled, resolve, sample_with
from vi_reparam.sites.emission import dropped, emit
from vi_reparam_numpyro.host.families import reader
from vi_reparam_numpyro.host.guard import running_objective
from vi_reparam_numpyro.ops.ops import ops

Array = Any

precise_log_prob = functools.partial(density.precise_log_prob, reader)
entropy_of = functools.partial(density.entropy_of, reader)


class Estimated(Distribution):
    """A distribution that draws through an estimator. It stays outermost under expand, to_event and mask.

    While an objective of ours listens, a draw reports itself under its site's name. With no
    objective listening, the value of a draw with a score term raises when it is differentiated.

    Args:
        base: the distribution, wrapped or not.
        estimator: its gradient estimator.
        site: the site's name, once known.
    """

    pytree_data_fields = ("base",)
    pytree_aux_fields = ("estimator", "site")

    def __init__(self, base: Distribution, estimator: Estimator, site: str = "") -> None:
        self.base = base
        self.estimator, self.family = resolve(reader, estimator, base, site)
        self.site = site
        self._last: tuple[Array, Sampled] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint | None:
        return self.base.support

    @property
    def has_rsample(self) -> bool:
        return not self.estimator.has_score_term

    @property
    def is_discrete(self) -> bool:
        return self.base.is_discrete

    @property
    def mean(self) -> Array:
        return self.base.mean

    @property
    def variance(self) -> Array:
        return self.base.variance

    def draw(self, key: Any, sample_shape: tuple[int, ...] = (), value: Array | None = None) -> Sampled:
        """A draw with its score term, `value` held if given. Shape ``sample_shape + batch + event``."""
        lanes = tuple(sample_shape) + tuple(self.batch_shape)
        value = None if value is None else jnp.asarray(value)
        return sample_with(reader, ops, self.base, self.estimator, key, lanes, value)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.emit(self.draw(key, sample_shape))

    def emit(self, sampled: Sampled) -> Array:
        """Report a draw to the listening objective, or guard it where none listens; return its value."""
        value, known = emit(self.site, sampled, self._guarded)
        if known:
            self._last = (value, sampled)
        return value

    def _guarded(self, sampled: Sampled) -> Array:
        refusal = dropped(self.estimator, self.site, running_objective())
        return ops.refuse_gradient(refusal, sampled.draw.value, sampled.params)

    def drawn(self, value: Array) -> Sampled | None:
        """The draw that gave this very value, if it was the last one."""
        return self._last[1] if self._last is not None and value is self._last[0] else None

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        sampled = self.drawn(value)
        return self.base.log_prob(value) if sampled is None else sampled.draw.log_prob

    def entropy(self) -> Array:
        return entropy_of(self.base)

    def at(self, site: str) -> Estimated:
        """The same, under a site's name."""
        return Estimated(self.base, self.estimator, site)

    def expand(self, batch_shape: Any) -> Estimated:
        return Estimated(self.base.expand(tuple(batch_shape)), self.estimator, self.site)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Estimated:
        return Estimated(self.base.to_event(reinterpreted_batch_ndims), self.estimator, self.site)

    def mask(self, mask: Any) -> Estimated:
        return Estimated(self.base.mask(mask), self.estimator, self.site)

    def tree_flatten(self) -> Any:
        return (self.base,), (self.estimator, self.site)

    @classmethod
    def tree_unflatten(cls, aux: Any, data: Any) -> Estimated:
        return cls(data[0], *aux)


def annotate(distribution: Distribution, estimator: Estimator, site: str = "") -> Estimated:
    """A distribution whose draws carry this estimator's gradient, in any guide.

    Args:
        site: the site's name, once known.

    Raises:
        SiteError: if the estimator does not serve it, or it is not a NumPyro distribution.
    """
    if not isinstance(distribution, Distribution):
        raise SiteError(f"{estimator!r} annotates NumPyro distributions (numpyro.distributions), not {distribution!r}")
    if isinstance(distribution, Estimated):
        return Estimated(distribution.base, estimator, site or distribution.site)
    return Estimated(distribution, estimator, site)


class FamilyDistribution(Distribution):
    """A family of the core as a NumPyro distribution."""

    def __init__(
        self, family: Family, params: tuple[Array, ...], support: Any, *, event_shape: tuple[int, ...]
    ) -> None:
        self.family = family
        self.params = tuple(jnp.asarray(p) for p in params)
        self._support = support
        super().__init__(family.batch_shape(*self.params), event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self._support

    @property
    def has_rsample(self) -> bool:
        return "implicit" in self.family.kinds

    def as_family(self) -> tuple[Family, tuple[Array, ...]]:
        return self.family, self.params

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        lanes = tuple(sample_shape) + tuple(self.batch_shape)
        drawn = sample_with(reader, ops, self, Auto(), key, lanes)
        if drawn.draw.is_pathwise:
            return drawn.draw.value
        message = f"{self.family.name} has no pathwise gradient: annotate it, as in vr.Rejection()(distribution)"
        return ops.refuse_gradient(message, drawn.draw.value, drawn.params)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        return self.family.log_prob(value, *self.params)

    def entropy(self) -> Array:
        return self.family.entropy(*self.params)

    def tree_flatten(self) -> Any:
        return (self.params,), (self.family, self._support, self.event_shape)

    @classmethod
    def tree_unflatten(cls, aux: Any, data: Any) -> FamilyDistribution:
        family, support, event_shape = aux
        made = object.__new__(cls)
        FamilyDistribution.__init__(made, family, data[0], support, event_shape=event_shape)
        return made


class VonMisesFisher(FamilyDistribution):
    """The von Mises-Fisher distribution on the unit sphere.

    Args:
        direction: unit vectors, shape ``batch + (p,)``.
        concentration: positive, shape ``batch``.
    """

    arg_constraints: ClassVar[Any] = {"direction": constraints.sphere, "concentration": constraints.positive}

    def __init__(self, direction: Array, concentration: Array) -> None:
        direction, concentration = jnp.asarray(direction), jnp.asarray(concentration)
        self.direction, self.concentration = direction, concentration
        super().__init__(
            FAMILIES["von_mises_fisher"],
            (direction, concentration),
            constraints.sphere,
            event_shape=direction.shape[-1:],
        )


class FromSampler(FamilyDistribution):
    """A distribution that a user's own `RejectionSampler` defines.

    Args:
        sampler: the sampler.
        params: its parameters, of shapes that broadcast to the batch.
        support: a NumPyro constraint, the reals unless given.
        event_shape: shape of one value.
    """

    def __init__(
        self,
        sampler: RejectionSampler,
        *params: Array,
        support: Any = constraints.real,
        event_shape: tuple[int, ...] = (),
    ) -> None:
        arrays = tuple(jnp.asarray(p) for p in params)
        super().__init__(SamplerFamily(sampler, len(arrays)), arrays, support, event_shape=event_shape)
