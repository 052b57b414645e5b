"""What a study asks of a backend."""

from __future__ import annotations

from typing import Any, Protocol

from vi_reparam.errors import ArgumentError
from vi_reparam.guides import GuideFamily


class StudyBackend(Protocol):
    """A backend, as a study sees it."""

    def guided(
        self, model: Any, family: GuideFamily, num_particles: int | None = None, *, entropy: str = "monte_carlo"
    ) -> Any:
        """A model (or that of a guided one) with this family; the family's number of particles unless given."""
        ...

    def size(self, model: Any, args: Any, kwargs: Any) -> int | None:
        """Coordinates of the model's latents; None where no joint family covers them."""
        ...

    def gradient_variance(self, guided: Any, own: tuple[str, ...], posterior: Any, num: int, seed: int) -> float:
        """Total variance of the gradient by the guide's own parameters, where a posterior's fit ended.

        Args:
            guided: whose objective and guide are differentiated.
            own: how the parameters' names begin.
            posterior: of the same model and data, with the parameters.
            num: replicates.
        """
        ...


def check_replicates(num_replicates: Any) -> None:
    """Raise `ArgumentError` unless a variance can be taken from so many."""
    if not isinstance(num_replicates, int) or isinstance(num_replicates, bool) or num_replicates < 2:
        raise ArgumentError(f"num_replicates={num_replicates!r}: expected 2 or more")
