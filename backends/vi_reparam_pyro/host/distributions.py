"""Distributions whose draws carry an estimator's gradient."""

from __future__ import annotations

import functools
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.ops.provenance import extract_provenance, get_provenance, track_provenance

from vi_reparam.errors import GradientError, SiteError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam.families import FAMILIES, Family
from vi_reparam.families.own import SamplerFamily
from vi_reparam.samplers import RejectionSampler
from vi_reparam.sites import density
from vi_reparam.sites.draw import Sampled, resolve, sample_with
from vi_reparam.sites.emission import ALONE, drawer, dropped, emit
from vi_reparam.sites.host_family import is_discrete
from vi_reparam_pyro.host.families import reader
from vi_reparam_pyro.host.guard import HONOURING, running_objective, wrapping_distribution
from vi_reparam_pyro.ops.home import at_home, with_params
from vi_reparam_pyro.ops.ops import ops

Array = Any

_ZERO: Any = 0
"""What Pyro takes for no score function at all."""

precise_log_prob = functools.partial(density.precise_log_prob, reader)
entropy_of = functools.partial(density.entropy_of, reader)


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
        self.estimator, self.family = resolve(reader, estimator, base, site)
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

    @with_params
    def draw(self, key: Any, sample_shape: Any = (), value: Array | None = None) -> Sampled:
        """A draw with its score term, `value` held if given. Shape ``sample_shape + batch + event``."""
        lanes = tuple(sample_shape) + tuple(self.batch_shape)
        return sample_with(reader, ops, self.base, self.estimator, key, lanes, value)

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
        value, known = emit(self.site, sampled, self._guarded)
        if known:
            self._last = (value, sampled)
        return value

    def _guarded(self, sampled: Sampled) -> Array:
        if not torch.is_grad_enabled():
            return sampled.draw.value
        objective = running_objective()
        if objective is None:
            refusal = dropped(self.estimator, self.site, ALONE)
            return ops.refuse_gradient(refusal, sampled.draw.value, *sampled.params)
        name = type(objective).__name__
        if type(objective) not in HONOURING or sampled.draw.branches:
            raise GradientError(dropped(self.estimator, self.site, name))
        if getattr(self.estimator, "baseline", None) not in (None, "auto"):
            raise GradientError(f"{self._who()} asks for a baseline that {name} does not have; use vr.ELBO()")
        return sampled.draw.value

    def _who(self) -> str:
        return drawer(self.estimator, self.site)

    @with_params
    def log_prob(self, value: Array) -> Array:
        sampled = self.drawn(value)
        return self.base.log_prob(value) if sampled is None else _tagged(sampled.draw.log_prob, value)

    def drawn(self, value: Array) -> Sampled | None:
        """The draw whose value this is, if it is the last one."""
        if self._last is not None and extract_provenance(value)[0] is extract_provenance(self._last[0])[0]:
            return self._last[1]
        return None

    def score_parts(self, x: Array, *args: Any, **kwargs: Any) -> ScoreParts:
        """What Pyro's objectives add up: log density, score term, and the part whose gradient is always owed.

        Raises:
            GradientError: for a value that this distribution did not draw.
        """
        sampled = self.drawn(x)
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

    @with_params
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


def annotate(distribution: Any, estimator: Estimator, site: str = "") -> Estimated:
    """A distribution whose draws carry this estimator's gradient, in any guide.

    Args:
        site: the site's name, once known.

    Raises:
        SiteError: if the estimator does not serve it, or it is not a Pyro distribution.
    """
    if isinstance(distribution, Estimated):
        return Estimated(distribution.base, estimator, site or distribution.site)
    return Estimated(distribution, estimator, site)


class FamilyDistribution(TorchDistribution):
    """A family of the core as a Pyro distribution."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, family: Family, params: tuple[Any, ...], support: Any, *, event_shape: Any = ()) -> None:
        self.family = family
        with at_home(*params):
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

    @with_params
    def rsample(self, sample_shape: Any = torch.Size()) -> Array:  # noqa: B008
        lanes = tuple(sample_shape) + tuple(self.batch_shape)
        drawn = sample_with(reader, ops, self, Auto(), ops.root_key(), lanes)
        if drawn.draw.is_pathwise or not torch.is_grad_enabled():
            return drawn.draw.value
        message = f"{self.family.name} has no pathwise gradient: annotate it, as in vr.Rejection()(distribution)"
        return ops.refuse_gradient(message, drawn.draw.value, *drawn.params)

    def sample(self, sample_shape: Any = torch.Size()) -> Array:  # noqa: B008
        return self.rsample(sample_shape).detach() if self.has_rsample else self.rsample(sample_shape)

    @with_params
    def log_prob(self, value: Array) -> Array:
        return self.family.log_prob(value, *self.params)

    @with_params
    def entropy(self) -> Array:
        return self.family.entropy(*self.params)


def _require(distribution: Any, parameter: str, expected: str, fits: Array) -> None:
    """As torch does for its own, where it does: under its switch, and in its words."""
    if torch.distributions.Distribution._validate_args and not bool(fits.all()):
        raise ValueError(f"Expected parameter {parameter} of {type(distribution).__name__} to be {expected}")


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
        length = self.params[0].square().sum(-1)
        _require(self, "direction", "of length 1", (length - 1.0).abs() < 1e-3)
        _require(self, "concentration", "above zero", self.params[1] > 0.0)


class TruncatedNormal(FamilyDistribution):
    """A normal held to an interval, which Pyro does not have.

    Args:
        loc: of the normal; `scale`: its standard deviation.
        low: the lower edge; `high`: the upper one. Either may be infinite.
    """

    def __init__(self, loc: Any, scale: Any, *, low: Any = -torch.inf, high: Any = torch.inf) -> None:
        dtype = torch.get_default_dtype()
        given = loc, scale, low, high
        with at_home(*given):
            params = tuple(p if isinstance(p, torch.Tensor) else torch.tensor(p, dtype=dtype) for p in given)
        super().__init__(FAMILIES["truncated_normal"], params, constraints.interval(params[2], params[3]))
        _require(self, "scale", "above zero", self.params[1] > 0.0)
        _require(self, "low", "below high", self.params[2] < self.params[3])


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
        with at_home(*params):
            arrays = tuple(torch.as_tensor(p) for p in params)
        super().__init__(SamplerFamily(sampler, len(arrays)), arrays, support, event_shape=event_shape)
