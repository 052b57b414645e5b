"""What a model written once asks of the framework that hosts it.

A ready model takes a `Host` and returns a plain model function for that framework: NumPyro or
Pyro then sees a model like any other. Distribution names and their arguments are those that
`numpyro.distributions` and `pyro.distributions` share.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

Array = Any


@runtime_checkable
class Host(Protocol):
    """The statements of a probabilistic program, and the arrays they work on."""

    name: str
    """The backend's name, ``"numpyro"`` or ``"pyro"``."""

    dist: Any
    """Its distributions (``Normal``, ``Gamma``, ...) and, as ``dist.constraints``, their supports."""

    xp: Any
    """Array functions under their NumPy names, restricted to what both frameworks have."""

    def sample(self, name: str, distribution: Any, *, obs: Array | None = None) -> Array:
        """A random variable, observed if `obs` is given."""
        ...

    def param(self, name: str, init: Array, *, constraint: Any = None) -> Array:
        """A learned parameter that starts at `init`; on the reals unless constrained."""
        ...

    def plate(
        self, name: str, size: int, *, dim: int | None = None, subsample_size: int | None = None
    ) -> AbstractContextManager[Array]:
        """Conditionally independent elements along `dim`; yields their indices, a random subset if asked for."""
        ...

    def deterministic(self, name: str, value: Array) -> Array:
        """Record a quantity that other sites determine."""
        ...

    def factor(self, name: str, log_factor: Array) -> None:
        """Add a term to the log joint density."""
        ...

    def array(self, x: Any) -> Array:
        """Data as this framework's array, in its default floating-point type."""
        ...

    def adam(self, learning_rate: float) -> Any:
        """The Adam optimizer in the form that this backend's ``fit`` takes."""
        ...
