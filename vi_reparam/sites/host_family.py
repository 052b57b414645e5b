"""A framework's distributions, read as families of the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vi_reparam.backend.host import Reader
from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.draw import Draw
from vi_reparam.errors import GradientError, SiteError
from vi_reparam.estimators import Estimator
from vi_reparam.families import FAMILIES, Family
from vi_reparam.samplers import Primitive

Reading = tuple[Family, tuple[Array, ...]]
Row = Callable[[Any], Reading | None]


class HostFamily(Family):
    """Any distribution that is no family of the core: its own sampler where that is differentiable, its own density.

    Args:
        reader: draws from it.
        distribution: the distribution, in no wrapper.
    """

    name = "host"
    parameters = ()
    parameter_event_dims = ()

    def __init__(self, reader: Reader, distribution: Any) -> None:
        self.reader = reader
        self.distribution = distribution
        self.name = type(distribution).__name__  # type: ignore[misc]
        self.event_dim = len(distribution.event_shape)  # type: ignore[misc]  # torch's own bases have no `event_dim`
        differentiable = distribution.has_rsample and not is_discrete(distribution)
        self.kinds = frozenset({"score_function"} | ({"pathwise"} if differentiable else set()))  # type: ignore[misc]

    def build(self, primitive: Primitive, ops: Ops, key: Any, shape: Shape, *params: Array, value: Held = None) -> Draw:
        shape_type = type(self.distribution.batch_shape)  # torch has its own, which some distributions insist on
        lanes = self.distribution.expand(shape_type(shape))
        value = self.reader.draw(lanes, key) if value is None else ops.stop_gradient(value)
        return Draw(value=value, log_prob=lanes.log_prob(value))

    def log_prob(self, value: Array, *params: Array, logs: tuple[Array, ...] | None = None) -> Array:
        return self.distribution.log_prob(value)

    def entropy(self, *params: Array) -> Array:
        try:
            return self.distribution.entropy()
        except NotImplementedError:
            raise SiteError(f"{self.name} has no entropy in closed form: use entropy='monte_carlo'") from None


def is_discrete(distribution: Any) -> bool:
    """Whether a distribution lives on a countable set."""
    return bool(getattr(distribution.support, "is_discrete", False))


def family_of(reader: Reader, distribution: Any) -> Reading:
    """The family of a distribution in no wrapper, and its parameters; none for a `HostFamily`."""
    found = reader.read(distribution)
    return (HostFamily(reader, distribution), ()) if found is None else found


def row(family: str, *attributes: str) -> Row:
    """A row of a table of readings: a family's parameters are these attributes of the distribution."""
    return lambda d: (FAMILIES[family], tuple(getattr(d, a) for a in attributes))


def shared_rows(dist: Any) -> dict[type, Row]:
    """The rows that all frameworks share, by class in the framework's module of distributions."""
    poisson = row("poisson", "rate")
    return {
        dist.Normal: row("normal", "loc", "scale"),
        dist.Gamma: row("gamma", "concentration", "rate"),
        dist.InverseGamma: row("inverse_gamma", "concentration", "rate"),
        dist.Chi2: row("chi2", "df"),
        dist.Beta: row("beta", "concentration1", "concentration0"),
        dist.Dirichlet: row("dirichlet", "concentration"),
        dist.StudentT: row("student_t", "df", "loc", "scale"),
        dist.VonMises: row("von_mises", "loc", "concentration"),
        dist.Poisson: lambda d: None if d.is_sparse else poisson(d),
    }


def read_by(rows: Mapping[type, Row], ops: Ops, distribution: Any) -> Reading | None:
    """A distribution by its own `as_family` or its class's row, parameters in one float dtype; None without either."""
    own = getattr(distribution, "as_family", None)
    read = rows.get(type(distribution))
    found = own() if own is not None else read(distribution) if read is not None else None
    if found is None:
        return None
    family, params = found
    xp = ops.xp
    floats = [p for p in params if hasattr(p, "dtype") and xp.isdtype(p.dtype, "real floating")]
    dtype = xp.result_type(*floats) if floats else ops.float_dtype()
    return family, tuple(ops.asarray(p, dtype) for p in params)


def require_inverse(family: Family, estimator: Estimator) -> None:
    """Refuse a gradient for a given value of a host sampler, whose noise cannot be had.

    Raises:
        GradientError: naming both.
    """
    if isinstance(family, HostFamily) and estimator.kind == "pathwise":
        raise GradientError(
            f"{estimator!r} on {family.name}: the value was given (replayed or substituted), and the noise behind it "
            "cannot be recovered; let the guide draw it, or use ScoreFunction()"
        )
