"""One Gaussian over all latents."""

from __future__ import annotations

from dataclasses import dataclass, field

from vi_reparam.errors import ArgumentError
from vi_reparam.guides.joint import JointFamily
from vi_reparam.sde.bases import Base, Diagonal


@dataclass(frozen=True)
class Gaussian(JointFamily):
    """A Gaussian in the unconstrained coordinates: diagonal, low-rank, full, or a mixture.

    Args:
        base: which.
        init_scale: standard deviation at the start.

    Raises:
        ArgumentError: for a base that is none, or a scale that is not positive.
    """

    base: Base = field(default_factory=Diagonal)
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.base, Base):
            raise ArgumentError(f"Gaussian(base={self.base!r}): expected one such as Diagonal() or LowRank(4)")
        if not self.init_scale > 0.0:
            raise ArgumentError(f"Gaussian(init_scale={self.init_scale!r}): expected a positive number")
