"""Distributions whose draws carry an estimator's gradient."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import constraints
from numpyro.distributions.distribution import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    TransformedDistribution,
)
from numpyro.distributions.util import sum_rightmost

from vi_reparam.draw import Branch, Draw
from vi_reparam.errors import SiteError
from vi_reparam.estimators import Auto, Estimator, MeasureValued, ScoreFunction
from vi_reparam.families import FAMILIES, Family
from vi_reparam.families.own import SamplerFamily
from vi_reparam.samplers import RejectionSampler
from vi_reparam_numpyro import listener
from vi_reparam_numpyro.host.families import read, require_inverse
from vi_reparam_numpyro.host.guard import refuse_gradient, running_objective
from vi_reparam_numpyro.ops.ops import ops

Array = Any


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A draw of a whole (wrapped) distribution.

    Attributes:
        draw: value, and log_prob and score_term of the distribution's batch shape. Branch
            weights keep the lanes' shape, ``batch + reinterpreted``.
        family: of the distribution inside all wrappers; `estimator`: the one that drew it.
        params: its parameters.
        lane_dims: reinterpreted dimensions between the batch and the family's event.
        scores: for an optimal baseline, pairs (theta - stop(theta), dlog q/dtheta) of lanes' shape.
    """

    draw: Draw
    family: Family
    estimator: Estimator
    params: tuple[Array, ...]
    lane_dims: int = 0
    scores: tuple[tuple[Array, Array], ...] = ()


def resolve(estimator: Estimator, distribution: Distribution, site: str = "") -> tuple[Estimator, Family]:
    """The estimator that draws from this distribution, `Auto` resolved, and the family inside.

    Raises:
        SiteError: if it does not serve the family.
    """
    inner: Any = distribution
    while is_wrapper(inner) or isinstance(inner, Estimated):
        inner = inner.base if isinstance(inner, Estimated) else inner.base_dist
    family, _ = read(inner)
    if isinstance(estimator, Auto):
        estimator = estimator.choose(family)
    estimator.require(family, site)
    return estimator, family


def sample_with(
    distribution: Distribution,
    estimator: Estimator,
    key: Any,
    lanes: tuple[int, ...],
    value: Array | None = None,
) -> Sampled:
    """Draw from a distribution, whatever wraps it, with an estimator's gradient.

    Args:
        lanes: batch shape to draw, to which the distribution's batch shape broadcasts.
        value: hold the draw at this value.
    """
    d: Any = distribution
    if isinstance(d, MaskedDistribution):
        inner = sample_with(d.base_dist, estimator, key, lanes, value)
        # Only the density is masked: the value is drawn all the same, and its score term stays.
        return _with_draw(inner, log_prob=jnp.where(d._mask, inner.draw.log_prob, 0.0))
    if isinstance(d, ExpandedDistribution):
        return sample_with(d.base_dist, estimator, key, lanes, value)
    if isinstance(d, Independent):
        n = d.reinterpreted_batch_ndims
        extra = tuple(d.event_shape[:n])
        inner = sample_with(d.base_dist, estimator, key, lanes + extra, value)
        score_term = inner.draw.score_term
        summed = _with_draw(
            inner,
            log_prob=sum_rightmost(inner.draw.log_prob, n),
            score_term=None if score_term is None else sum_rightmost(score_term, n),
        )
        return dataclasses.replace(summed, lane_dims=inner.lane_dims + n)
    if isinstance(d, Estimated):
        return sample_with(d.base, estimator, key, lanes, value)
    if is_wrapper(d):
        return _sample_transformed(d, estimator, key, lanes, value)
    return _sample_leaf(d, estimator, key, lanes, value)


def _with_draw(sampled: Sampled, **changes: Any) -> Sampled:
    return dataclasses.replace(sampled, draw=dataclasses.replace(sampled.draw, **changes))


def _sample_transformed(
    d: TransformedDistribution, estimator: Estimator, key: Any, lanes: tuple[int, ...], value: Array | None
) -> Sampled:
    given = value
    if given is not None:
        for t in reversed(d.transforms):
            given = t.inv(given)
    inner = sample_with(d.base_dist, estimator, key, lanes, given)
    steps = [inner.draw.value]
    for t in d.transforms:
        steps.append(t(steps[-1]))
    log_prob: Array = 0.0
    event_dim = d.event_dim
    for t, x, y in reversed(list(zip(d.transforms, steps[:-1], steps[1:], strict=True))):
        outside = event_dim - t.codomain.event_dim
        log_prob = log_prob - sum_rightmost(t.log_abs_det_jacobian(x, y), outside)
        event_dim = t.domain.event_dim + outside
    branches = tuple(Branch(_push(d.transforms, b.value), b.weight) for b in inner.draw.branches)
    return _with_draw(inner, value=steps[-1], log_prob=inner.draw.log_prob + log_prob, branches=branches, logs=None)


def _push(transforms: list[Any], x: Array) -> Array:
    for t in transforms:
        x = t(x)
    return x


def is_wrapper(d: Distribution) -> bool:
    """Whether a distribution only rewraps its `base_dist`, so that its draw is the inner draw, moved."""
    if isinstance(d, MaskedDistribution | Independent | ExpandedDistribution):
        return True
    return (
        isinstance(d, TransformedDistribution)
        and type(d).log_prob is TransformedDistribution.log_prob
        and not isinstance(d, dist.InverseGamma)
    )


def _sample_leaf(
    d: Distribution, estimator: Estimator, key: Any, lanes: tuple[int, ...], value: Array | None
) -> Sampled:
    family, params = read(d)
    if isinstance(estimator, Auto):
        estimator = estimator.choose(family)
    if value is not None:
        require_inverse(family, estimator)
        value = jnp.asarray(value)
    if isinstance(estimator, MeasureValued):
        params = tuple(
            p if name in family.weak_parameters else refuse_gradient(_unserved(family, name), p)
            for name, p in zip(family.parameters, params, strict=True)
        )
    shapes = [lanes + p.shape[p.ndim - n :] for p, n in zip(params, family.parameter_event_dims, strict=True)]
    params = tuple(jnp.broadcast_to(p, shape) for p, shape in zip(params, shapes, strict=True))
    draw = estimator.draw(ops, key, family, lanes, *params, value=value)
    scores: tuple[tuple[Array, Array], ...] = ()
    if isinstance(estimator, ScoreFunction) and estimator.baseline == "optimal":
        scores = _own_scores(family, draw, params)
    return Sampled(draw, family, estimator, params, scores=scores)


def _unserved(family: Family, name: str) -> str:
    return (
        f"MeasureValued() serves {', '.join(family.weak_parameters)} of {family.name}, not its {name}, which is being "
        "differentiated here; use Implicit(), Rejection() or ScoreFunction()"
    )


def _own_scores(family: Family, draw: Draw, params: tuple[Array, ...]) -> tuple[tuple[Array, Array], ...]:
    if not params:
        raise SiteError(f"ScoreFunction(baseline='optimal') needs a family of the core, not {family.name}")

    def total(held: tuple[Array, ...]) -> Array:
        return jnp.sum(family.log_prob(lax.stop_gradient(draw.value), *held, logs=draw.logs))

    held = tuple(lax.stop_gradient(p) for p in params)
    slopes = jax.grad(total)(held)
    return tuple((p - h, slope) for p, h, slope in zip(params, held, slopes, strict=True))


def precise_log_prob(distribution: Distribution, value: Array, family: Family, logs: tuple[Array, ...] | None) -> Array:
    """Log density of the model at a guide's draw, from the draw's precise logarithms where they fit."""
    if logs is None:
        return distribution.log_prob(value)
    d = distribution
    if isinstance(d, MaskedDistribution) and not isinstance(d._mask, bool):
        return jnp.where(d._mask, precise_log_prob(d.base_dist, value, family, logs), 0.0)
    if isinstance(d, Independent):
        return sum_rightmost(precise_log_prob(d.base_dist, value, family, logs), d.reinterpreted_batch_ndims)
    if isinstance(d, ExpandedDistribution):
        lp = precise_log_prob(d.base_dist, value, family, logs)
        return jnp.broadcast_to(lp, jnp.shape(value)[: jnp.ndim(value) - d.event_dim])
    model_family, params = read(d)
    if _SCALE.get(model_family.name) != _SCALE.get(family.name, "none"):
        return distribution.log_prob(value)
    return model_family.log_prob(value, *params, logs=logs)


_SCALE = {
    "gamma": "positive",
    "inverse_gamma": "positive",
    "chi2": "positive",
    "beta": "unit_interval",
    "dirichlet": "simplex",
}
"""Families whose draw logs mean the same thing."""


def entropy_of(distribution: Distribution) -> Array:
    """Entropy in closed form through the wrappers, shape of the batch.

    Raises:
        SiteError: where there is none.
    """
    d = distribution
    if isinstance(d, Estimated):
        return entropy_of(d.base)
    if isinstance(d, MaskedDistribution):
        return jnp.where(d._mask, entropy_of(d.base_dist), 0.0)
    if isinstance(d, Independent):
        return sum_rightmost(entropy_of(d.base_dist), d.reinterpreted_batch_ndims)
    if isinstance(d, ExpandedDistribution):
        return jnp.broadcast_to(entropy_of(d.base_dist), d.batch_shape)
    family, params = read(d)
    return family.entropy(*params)


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
        self.estimator, self.family = resolve(estimator, base, site)
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
        return sample_with(self.base, self.estimator, key, lanes, value)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.emit(self.draw(key, sample_shape))

    def emit(self, sampled: Sampled) -> Array:
        """Report a draw to the listening objective, or guard it where none listens; return its value."""
        hearing = listener.current()
        if hearing is not None:
            value = hearing.report(self.site, sampled)
        else:
            value = sampled.draw.value
            if not sampled.draw.is_pathwise:
                value = refuse_gradient(self._refusal(), value, sampled.params)
        if hearing is None or self.site not in hearing.altered:
            self._last = (value, sampled)
        return value

    def _refusal(self) -> str:
        where = f"site {self.site!r}: " if self.site else ""
        return (
            f"{where}{self.estimator!r} leaves a score term that {running_objective()} would drop, and the gradient "
            "would be wrong; use vr.ELBO(), or Implicit() / Pathwise() where they apply"
        )

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
        drawn = sample_with(self, Auto(), key, lanes)
        if drawn.draw.is_pathwise:
            return drawn.draw.value
        message = f"{self.family.name} has no pathwise gradient: annotate it, as in vr.Rejection()(distribution)"
        return refuse_gradient(message, drawn.draw.value, drawn.params)

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

    def __init__(self, direction: Array, concentration: Array) -> None:
        direction = jnp.asarray(direction)
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
