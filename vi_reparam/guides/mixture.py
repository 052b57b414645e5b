"""Several Gaussians over all latents: for posteriors with separate modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vi_reparam.checks import check_choice, check_integer
from vi_reparam.errors import SiteError
from vi_reparam.gaussians.bases import Base, DiagonalMixture
from vi_reparam.gaussians.pathfinder import LARGEST
from vi_reparam.guides.gaussian import GRADIENTS
from vi_reparam.guides.joint import JointFamily


@dataclass(frozen=True, repr=False)
class Mixture(JointFamily):
    """Gaussians with full covariances over all continuous latents, one at each mode that the search finds.

    All are fitted together, with the weights that the search gives them. Then the weights are those under which the
    mixture has the highest likelihood of the posterior, by importance sampling. As ``vr.SDE(base=vr.Mixture(4))`` it
    stands for four diagonal Gaussians of equal weights.

    Args:
        num_components: how many; None for as many as modes were found.
        spread: how far apart those components start that no mode of their own was found for, in scales.
        gradient: ``"path"``, or ``"reparameterization"``, which keeps log q's own parameters.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    num_particles: ClassVar[int] = 32
    max_steps: ClassVar[int] = 2_000
    has_tail: ClassVar[bool] = True

    num_components: int | None = None
    spread: float = 0.5
    gradient: str = "path"

    def __post_init__(self) -> None:
        if self.num_components is not None:
            check_integer("num_components", self.num_components, "Mixture")
        self.as_base  # noqa: B018  (refuses a wrong spread)
        check_choice("gradient", self.gradient, GRADIENTS, "Mixture")

    @property
    def as_base(self) -> Base:
        """The base of an `SDE` that is written so."""
        return DiagonalMixture(self.num_components or DiagonalMixture.num_components, self.spread)

    def check_size(self, size: int) -> None:
        if size > LARGEST:
            raise SiteError(
                f"{self!r} covers at most {LARGEST} coordinates, and the latents have {size:,}: no search for modes "
                "is affordable there; use vr.Structured() or vr.LowRank(rank=8)"
            )
