"""What a model written once asks of the framework that hosts it.

A ready model takes a `Host` and returns a plain model function for that framework. Distributions and their arguments
have the names that `numpyro.distributions` and `pyro.distributions` share.
"""

# The docstring of a protocol's method is its body.
# pyright: reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from vi_reparam.backend.ops import Array, Key, Shape


class Wrapping(NamedTuple):
    """A distribution around another.

    Attributes:
        kind: ``"masked"``, ``"expanded"``, ``"independent"``, ``"transformed"`` or ``"estimated"``.
        inner: the distribution inside.
        detail: the mask; the batch shape; the number of reinterpreted dimensions; the transforms; the estimator.
    """

    kind: str
    inner: Any
    detail: Any


class Reader(Protocol):
    """How a framework's distributions are read, and drawn by their own samplers."""

    def unwrap(self, distribution: Any) -> Wrapping | None:
        """How a distribution wraps another; None if it wraps none."""

    def read(self, distribution: Any) -> tuple[Any, tuple[Array, ...]] | None:
        """An unwrapped distribution as (family of the core, parameters in one float dtype); None where it is none."""

    def draw(self, distribution: Any, key: Key) -> Array:
        """A draw by a distribution's own sampler."""


@runtime_checkable
class Host(Reader, Protocol):
    """The statements of a probabilistic program, and the arrays they work on."""

    name: str
    """The backend's name, ``"numpyro"`` or ``"pyro"``."""

    title: str
    """The framework's name, for messages: ``"NumPyro"``."""

    dist: Any
    """Its distributions (``Normal``, ``Gamma``, ...) and, as ``dist.constraints``, their supports."""

    xp: Any
    """Array functions under their NumPy names, restricted to what both frameworks have."""

    def sample(
        self, name: str, distribution: Any, *, obs: Array | None = None, infer: Mapping[str, Any] | None = None
    ) -> Array:
        """A random variable, observed if `obs` is given."""

    def param(
        self, name: str, init: Array | Callable[[Key], Array], *, constraint: Any = None, event_dim: int | None = None
    ) -> Array:
        """A learned parameter that starts at `init`; on the reals unless constrained.

        Args:
            init: a value; or what computes it from a key, called only if the parameter is new.
            event_dim: trailing dimensions that no plate is one of; all of them unless given.
        """

    def known_params(self) -> Collection[str]:
        """Names of the parameters that a program which runs now is given, or that were made before."""

    def plate(
        self, name: str, size: int, *, dim: int | None = None, subsample_size: int | None = None
    ) -> AbstractContextManager[Array]:
        """Conditionally independent elements along `dim`; yields their indices, a random subset if asked for."""

    def part_of(self, plate: str, size: int) -> AbstractContextManager[Any]:
        """Inside, a plate of this name holds a part of its `size` elements, and its terms are scaled to all of them."""

    def deterministic(self, name: str, value: Array) -> Array:
        """Record a quantity that other sites determine."""

    def factor(self, name: str, log_factor: Array) -> None:
        """Add a term to the log joint density."""

    def array(self, x: Any) -> Array:
        """Data as this framework's array, in its default floating-point type."""

    def adam(self, learning_rate: float) -> Any:
        """The Adam optimizer in the form that this backend's ``fit`` takes."""

    def scope(self) -> str:
        """What the names of a new guide's parameters begin with, so that no two guides share a value; may be empty."""

    def support_of(self, distribution: Any) -> Any:
        """The support of a distribution, a mixture's as one of its components' where it can be; None for none."""

    def support_kind(self, support: Any, distribution: Any = None) -> str:
        """The kind of a support, independent dimensions aside.

        Args:
            distribution: tells a circle from the reals, where the support does not.

        Returns:
            ``"real"``, ``"positive"``, ``"unit_interval"``, ``"simplex"``, ``"sphere"``, ``"circular"``,
            ``"boolean"``, ``"count"``, ``"discrete"`` (others), ``"other"``.
        """

    def biject_to(self, support: Any) -> Any:
        """The bijection from the reals to a support: callable, with `inv`, `log_abs_det_jacobian`, `inverse_shape`.

        Raises:
            NotImplementedError: if the framework has none.
        """

    def von_mises_fisher(self, direction: Array, concentration: Array) -> Any:
        """The von Mises-Fisher distribution on the unit sphere."""

    def vector(self, size: int, make: Callable[[Key], Any], *, site: str, batch_shape: Shape = ()) -> Any:
        """The distribution of a vector that is known by its draws: only they can be scored.

        Args:
            size: D, coordinates of the vector.
            make: a draw from a key, a `vi_reparam.programs.vector.Vector`.
            site: the site's name.
            batch_shape: of the plate each of whose elements has a vector of its own.
        """

    def differentiating(self) -> bool:
        """Whether a derivative may be asked of what runs now; where one cannot be, cheaper formulas serve."""

    def bijection(self, family: Any, size: int, num_features: int | None) -> Any:
        """The network of a flow, a `vi_reparam.programs.network.Network`, as the framework's libraries have it.

        Raises:
            BackendError: if the library is missing.
        """

    def drift(self, module: Any, name: str) -> Any:
        """A user's own drift network, its weights registered as parameters under this name: functions (live, frozen) of
        (x, lambda, features...), the second with its weights as constants.
        """
