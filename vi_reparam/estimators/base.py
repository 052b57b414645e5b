"""What a user writes at a site: the rule by which its draw carries a gradient."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.backend.registry import host_package
from vi_reparam.draw import Draw
from vi_reparam.errors import SiteError
from vi_reparam.families.base import Family


class Estimator(abc.ABC):
    """A gradient estimator, chosen per site. Instances are immutable, hashable and equal by options.

    Attributes:
        kind: the name by which a family says that it is served.
        has_score_term: whether its draws leave a term for the objective to honour.
    """

    kind: ClassVar[str]
    has_score_term: ClassVar[bool] = False

    def options(self) -> dict[str, Any]:
        """The constructor's keywords that differ from their defaults."""
        return {}

    def applies_to(self, family: Family) -> bool:
        """Whether this estimator serves a family."""
        return self.kind in family.kinds

    def require(self, family: Family, site: str = "") -> None:
        """Refuse a family that this estimator does not serve.

        Raises:
            SiteError: naming the estimators that do.
        """
        if not self.applies_to(family):
            where = f"site {site!r}: " if site else ""
            names = ", ".join(sorted(kind.title().replace("_", "") for kind in family.kinds))  # as the classes are
            raise SiteError(f"{where}{self!r} does not apply to {family.name}; use one of {names}")

    @abc.abstractmethod
    def draw(self, ops: Ops, key: Any, family: Family, shape: Shape, *params: Array, value: Held = None) -> Draw:
        """Draw `shape` values of the family, with this estimator's gradient.

        Args:
            key: a key of the backend.
            shape: the batch shape; parameters broadcast to it.
            value: a value that arrived without its noise (replayed or substituted): the draw
                then has this value, and its noise comes from inversion or its conditional law.

        Raises:
            SiteError: if the estimator does not serve the family.
            GradientError: if a value is given whose noise can be had neither way.
        """

    def __call__(self, distribution: Any) -> Any:
        """Annotate a host distribution, so that its draws carry this estimator's gradient.

        It stays outermost under expand, to_event and mask. Differentiating its draws under an objective that would
        drop their score term raises.

        Raises:
            BackendError: if this is not a distribution of an installed backend.
        """
        return host_package(distribution).annotate(distribution, self)

    def _key(self) -> tuple[Any, ...]:
        return (type(self), *sorted(self.options().items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Estimator) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.options().items())
        return f"{type(self).__name__}({inside})"
