"""Distributions whose draws carry an estimator's gradient."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution, TorchDistribution
from pyro.distributions.util import sum_rightmost
from pyro.ops.provenance import extract_provenance, get_provenance, track_provenance

from vi_reparam.draw import Branch, Draw
from vi_reparam.errors import GradientError, SiteError
from vi_reparam.estimators import Auto, Estimator, MeasureValued, ScoreFunction
from vi_reparam.families import FAMILIES, Family
from vi_reparam.families.own import SamplerFamily
from vi_reparam.samplers import RejectionSampler
from vi_reparam_pyro import listener
from vi_reparam_pyro.host.families import is_discrete, read, require_inverse
from vi_reparam_pyro.host.guard import HONOURING, refuse_gradient, running_objective, wrapping_distribution
from vi_reparam_pyro.ops.ops import ops

Array = Any

_ZERO: Any = 0
"""What Pyro takes for no score function at all."""


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


def resolve(estimator: Estimator, distribution: Any, site: str = "") -> tuple[Estimator, Family]:
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
    distribution: Any,
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
    d = distribution
    if isinstance(d, MaskedDistribution):
        inner = sample_with(d.base_dist, estimator, key, lanes, value)
        # Only the density is masked: the value is drawn all the same, and its score term stays.
        return _with_draw(inner, log_prob=_masked(d._mask, inner.draw.log_prob))
    if isinstance(d, ExpandedDistribution):
        return sample_with(d.base_dist, estimator, key, lanes, value)
    if isinstance(d, torch.distributions.Independent):
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


def _masked(mask: Any, term: Array) -> Array:
    if isinstance(mask, bool):
        return term if mask else torch.zeros_like(term)
    return torch.where(mask, term, torch.zeros((), dtype=term.dtype))


def _sample_transformed(d: Any, estimator: Estimator, key: Any, lanes: tuple[int, ...], value: Array | None) -> Sampled:
    given = value
    if given is not None:
        for t in reversed(d.transforms):
            given = t.inv(given)
    inner = sample_with(d.base_dist, estimator, key, lanes, given)
    steps = [inner.draw.value]
    for t in d.transforms:
        steps.append(t(steps[-1]))
    log_prob: Any = 0.0
    event_dim = len(d.event_shape)
    for t, x, y in reversed(list(zip(d.transforms, steps[:-1], steps[1:], strict=True))):
        outside = event_dim - t.codomain.event_dim
        log_prob = log_prob - sum_rightmost(t.log_abs_det_jacobian(x, y), outside)
        event_dim = t.domain.event_dim + outside
    base_log_prob = inner.draw.log_prob
    base_log_prob = sum_rightmost(base_log_prob, event_dim - len(d.base_dist.event_shape))
    branches = tuple(Branch(_push(d.transforms, b.value), b.weight) for b in inner.draw.branches)
    return _with_draw(inner, value=steps[-1], log_prob=base_log_prob + log_prob, branches=branches, logs=None)


def _push(transforms: Any, x: Array) -> Array:
    for t in transforms:
        x = t(x)
    return x


def is_wrapper(d: Any) -> bool:
    """Whether a distribution only rewraps its `base_dist`, so that its draw is the inner draw, moved."""
    if isinstance(d, MaskedDistribution | torch.distributions.Independent | ExpandedDistribution):
        return True
    return (
        isinstance(d, torch.distributions.TransformedDistribution)
        and type(d).log_prob is torch.distributions.TransformedDistribution.log_prob
        and not isinstance(d, dist.InverseGamma | torch.distributions.InverseGamma)
    )


def _sample_leaf(d: Any, estimator: Estimator, key: Any, lanes: tuple[int, ...], value: Array | None) -> Sampled:
    family, params = read(d)
    if isinstance(estimator, Auto):
        estimator = estimator.choose(family)
    if value is not None:
        require_inverse(family, estimator)
    if isinstance(estimator, MeasureValued):
        params = tuple(
            p if name in family.weak_parameters else refuse_gradient(_unserved(family, name), p)
            for name, p in zip(family.parameters, params, strict=True)
        )
    params = tuple(
        p.expand(lanes + tuple(p.shape[p.ndim - n :])) for p, n in zip(params, family.parameter_event_dims, strict=True)
    )
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
    value = draw.value.detach()

    def total(*held: Array) -> Array:
        return family.log_prob(value, *held, logs=draw.logs).sum()

    held = tuple(p.detach() for p in params)
    slopes = torch.func.grad(total, argnums=tuple(range(len(held))))(*held)
    return tuple((p - h, slope) for p, h, slope in zip(params, held, slopes, strict=True))


def precise_log_prob(distribution: Any, value: Array, family: Family, logs: tuple[Array, ...] | None) -> Array:
    """Log density of the model at a guide's draw, from the draw's precise logarithms where they fit."""
    d = distribution
    if logs is None:
        return d.log_prob(value)
    if isinstance(d, MaskedDistribution) and not isinstance(d._mask, bool):
        return _masked(d._mask, precise_log_prob(d.base_dist, value, family, logs))
    if isinstance(d, torch.distributions.Independent):
        return sum_rightmost(precise_log_prob(d.base_dist, value, family, logs), d.reinterpreted_batch_ndims)
    if isinstance(d, ExpandedDistribution):
        lp = precise_log_prob(d.base_dist, value, family, logs)
        return lp.expand(value.shape[: value.ndim - len(d.event_shape)])
    model_family, params = read(d)
    if _SCALE.get(model_family.name) != _SCALE.get(family.name, "none"):
        return d.log_prob(value)
    return model_family.log_prob(value, *params, logs=logs)


_SCALE = {
    "gamma": "positive",
    "inverse_gamma": "positive",
    "chi2": "positive",
    "beta": "unit_interval",
    "dirichlet": "simplex",
}
"""Families whose draw logs mean the same thing."""


def entropy_of(distribution: Any) -> Array:
    """Entropy in closed form through the wrappers, shape of the batch.

    Raises:
        SiteError: where there is none.
    """
    d = distribution
    if isinstance(d, Estimated):
        return entropy_of(d.base)
    if isinstance(d, MaskedDistribution):
        return _masked(d._mask, entropy_of(d.base_dist))
    if isinstance(d, torch.distributions.Independent):
        return sum_rightmost(entropy_of(d.base_dist), d.reinterpreted_batch_ndims)
    if isinstance(d, ExpandedDistribution):
        return entropy_of(d.base_dist).expand(d.batch_shape)
    family, params = read(d)
    return family.entropy(*params)


class Estimated(TorchDistribution):
    """A distribution that draws through an estimator. It stays outermost under expand, to_event and mask.

    While an objective of ours listens, a draw reports itself under its site's name. Pyro's
    `Trace_ELBO`, `TraceGraph_ELBO` and `TraceEnum_ELBO` get the score term through `score_parts`;
    under any other, the value of a draw with a score term raises when it is differentiated.

    Args:
        base: the distribution, wrapped or not.
        estimator: its gradient estimator.
        site: the site's name, once known.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (as torch declares it)

    def __init__(self, base: Any, estimator: Estimator, site: str = "") -> None:
        if not isinstance(base, torch.distributions.Distribution) or not hasattr(base, "score_parts"):
            raise SiteError(f"{estimator!r} annotates Pyro distributions (pyro.distributions), not {base!r}")
        self.base: Any = base
        self.estimator, self.family = resolve(estimator, base, site)
        self.site = site
        self._last: tuple[Array, Sampled] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base.support

    @property
    def has_rsample(self) -> bool:
        # provenance marks what is not, and so finds the costs of a score term
        return not self.estimator.has_score_term

    @property
    def has_enumerate_support(self) -> bool:
        return False

    @property
    def is_discrete(self) -> bool:
        return is_discrete(self.base)

    @property
    def mean(self) -> Array:
        return self.base.mean

    @property
    def variance(self) -> Array:
        return self.base.variance

    def draw(self, key: Any, sample_shape: Any = (), value: Array | None = None) -> Sampled:
        """A draw with its score term, `value` held if given. Shape ``sample_shape + batch + event``."""
        lanes = tuple(sample_shape) + tuple(self.batch_shape)
        return sample_with(self.base, self.estimator, key, lanes, value)

    def __call__(self, sample_shape: Any = torch.Size()) -> Array:  # noqa: B008  (as Pyro's)
        return self._sample(sample_shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Array:  # noqa: B008
        self._refuse_wrapper()
        return self._sample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Array:  # noqa: B008
        self._refuse_wrapper()
        return self._sample(sample_shape)

    def _sample(self, sample_shape: Any) -> Array:
        if torch._C._get_tracing_state() is not None:
            raise GradientError(
                f"{self._who()} cannot be traced by torch.jit, which would freeze its rejection loop; use vr.ELBO() "
                f"instead of {type(running_objective()).__name__}"
            )
        return self.emit(self.draw(ops.root_key(), sample_shape))

    def _refuse_wrapper(self) -> None:
        if self.has_rsample:
            return
        wrapper = wrapping_distribution(2)
        if wrapper is not None and wrapper is not self:
            raise GradientError(
                f"{self._who()} was wrapped in {type(wrapper).__name__}, which would drop its score term; annotate "
                f"the outermost distribution, as in {self.estimator!r}({type(wrapper).__name__}(...))"
            )

    def emit(self, sampled: Sampled) -> Array:
        """Report a draw to the listening objective, or guard it where none listens; return its value."""
        hearing = listener.current()
        if hearing is not None:
            value = hearing.report(self.site, sampled)
        else:
            value = sampled.draw.value
            if not sampled.draw.is_pathwise and torch.is_grad_enabled():
                value = self._guarded(sampled)
        if hearing is None or self.site not in hearing.altered:
            self._last = (value, sampled)
        return value

    def _guarded(self, sampled: Sampled) -> Array:
        objective = running_objective()
        if objective is None:
            return refuse_gradient(self._refusal("this computation"), sampled.draw.value, *sampled.params)
        name = type(objective).__name__
        if type(objective) not in HONOURING or sampled.draw.branches:
            raise GradientError(self._refusal(name))
        if getattr(self.estimator, "baseline", None) not in (None, "auto"):
            raise GradientError(f"{self._who()} asks for a baseline that {name} does not have; use vr.ELBO()")
        return sampled.draw.value

    def _refusal(self, objective: str) -> str:
        return (
            f"{self._who()} leaves a score term that {objective} would drop, and the gradient would be wrong; use "
            "vr.ELBO(), or Implicit() / Pathwise() where they apply"
        )

    def _who(self) -> str:
        where = f"site {self.site!r}: " if self.site else ""
        return f"{where}{self.estimator!r}"

    def log_prob(self, value: Array) -> Array:
        sampled = self._recorded(value)
        return self.base.log_prob(value) if sampled is None else _tagged(sampled.draw.log_prob, value)

    def _recorded(self, value: Array) -> Sampled | None:
        """The draw whose value this is, if it is the last one."""
        if self._last is not None and extract_provenance(value)[0] is extract_provenance(self._last[0])[0]:
            return self._last[1]
        return None

    def score_parts(self, x: Array, *args: Any, **kwargs: Any) -> ScoreParts:
        """What Pyro's objectives add up: log density, score term, and the part whose gradient is always owed.

        Raises:
            GradientError: for a value that this distribution did not draw.
        """
        sampled = self._recorded(x)
        log_prob = self.log_prob(x)
        if self.has_rsample:
            return ScoreParts(log_prob, _ZERO, log_prob)
        if sampled is None:
            if not torch.is_grad_enabled():
                return ScoreParts(log_prob, log_prob, log_prob)
            raise GradientError(
                f"{self._who()} was given its value (replayed or substituted), and its noise is not known to Pyro's "
                "objectives; use vr.ELBO(), which recovers it"
            )
        score_term = sampled.draw.score_term
        return ScoreParts(log_prob, _ZERO if score_term is None else _tagged(score_term, x), log_prob)

    def entropy(self) -> Array:
        return entropy_of(self.base)

    def at(self, site: str) -> Estimated:
        """The same, under a site's name."""
        return Estimated(self.base, self.estimator, site)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Estimated:
        return Estimated(self.base.expand(torch.Size(batch_shape)), self.estimator, self.site)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        return Estimated(self.base.to_event(reinterpreted_batch_ndims), self.estimator, self.site)

    def mask(self, mask: Any) -> Estimated:
        return Estimated(self.base.mask(mask), self.estimator, self.site)


def _tagged(term: Array, value: Array) -> Array:
    """The term, with the provenance of the value it belongs to."""
    return track_provenance(term, get_provenance(value))


def annotate(distribution: Any, estimator: Estimator) -> Estimated:
    """A distribution whose draws carry this estimator's gradient, in any guide.

    Raises:
        SiteError: if the estimator does not serve it, or it is not a Pyro distribution.
    """
    if isinstance(distribution, Estimated):
        return Estimated(distribution.base, estimator, distribution.site)
    return Estimated(distribution, estimator)


class FamilyDistribution(TorchDistribution):
    """A family of the core as a Pyro distribution."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, family: Family, params: tuple[Any, ...], support: Any, *, event_shape: Any = ()) -> None:
        self.family = family
        self.params = tuple(torch.as_tensor(p) for p in params)
        self._support = support
        super().__init__(torch.Size(family.batch_shape(*self.params)), torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> Any:
        return self._support

    @property
    def has_rsample(self) -> bool:
        return "implicit" in self.family.kinds

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        shape = tuple(batch_shape)
        params = (
            p.expand(shape + tuple(p.shape[p.ndim - n :]))
            for p, n in zip(self.params, self.family.parameter_event_dims, strict=True)
        )
        new = object.__new__(type(self))
        FamilyDistribution.__init__(new, self.family, tuple(params), self._support, event_shape=self.event_shape)
        return new

    def as_family(self) -> tuple[Family, tuple[Array, ...]]:
        return self.family, self.params

    def rsample(self, sample_shape: Any = torch.Size()) -> Array:  # noqa: B008
        lanes = tuple(sample_shape) + tuple(self.batch_shape)
        drawn = sample_with(self, Auto(), ops.root_key(), lanes)
        if drawn.draw.is_pathwise or not torch.is_grad_enabled():
            return drawn.draw.value
        message = f"{self.family.name} has no pathwise gradient: annotate it, as in vr.Rejection()(distribution)"
        return refuse_gradient(message, drawn.draw.value, *drawn.params)

    def sample(self, sample_shape: Any = torch.Size()) -> Array:  # noqa: B008
        return self.rsample(sample_shape).detach() if self.has_rsample else self.rsample(sample_shape)

    def log_prob(self, value: Array) -> Array:
        return self.family.log_prob(value, *self.params)

    def entropy(self) -> Array:
        return self.family.entropy(*self.params)


class VonMisesFisher(FamilyDistribution):
    """The von Mises-Fisher distribution on the unit sphere.

    Args:
        direction: unit vectors, shape ``batch + (p,)``.
        concentration: positive, shape ``batch``.
    """

    def __init__(self, direction: Array, concentration: Array) -> None:
        direction = torch.as_tensor(direction)
        super().__init__(
            FAMILIES["von_mises_fisher"],
            (direction, concentration),
            constraints.sphere,
            event_shape=direction.shape[-1:],
        )


class TruncatedNormal(FamilyDistribution):
    """A normal held to an interval, which Pyro does not have.

    Args:
        loc: of the normal; `scale`: its standard deviation.
        low: the lower edge; `high`: the upper one. Either may be infinite.
    """

    def __init__(self, loc: Any, scale: Any, *, low: Any = -torch.inf, high: Any = torch.inf) -> None:
        dtype = torch.get_default_dtype()
        params = tuple(
            p if isinstance(p, torch.Tensor) else torch.tensor(p, dtype=dtype) for p in (loc, scale, low, high)
        )
        super().__init__(FAMILIES["truncated_normal"], params, constraints.interval(params[2], params[3]))


class FromSampler(FamilyDistribution):
    """A distribution that a user's own `RejectionSampler` defines.

    Args:
        sampler: the sampler.
        params: its parameters, of shapes that broadcast to the batch.
        support: a constraint, the reals unless given.
        event_shape: shape of one value.
    """

    def __init__(
        self,
        sampler: RejectionSampler,
        *params: Array,
        support: Any = constraints.real,
        event_shape: tuple[int, ...] = (),
    ) -> None:
        arrays = tuple(torch.as_tensor(p) for p in params)
        super().__init__(SamplerFamily(sampler, len(arrays)), arrays, support, event_shape=event_shape)
