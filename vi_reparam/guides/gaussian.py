"""One Gaussian over all latents."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vi_reparam.checks import check_choice, check_positive
from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.gaussians.bases import Base, Diagonal, Full
from vi_reparam.gaussians.bases import LowRank as LowRankBase
from vi_reparam.gaussians.pathfinder import LARGEST
from vi_reparam.guides.joint import COPIES, JointFamily

GRADIENTS = ("path", "reparameterization")

LARGEST_FULL_RANK = 10_000
"""Coordinates above which a full covariance, its gradient and its optimizer's state fill gigabytes."""


class GaussianFamily(JointFamily):
    """A Gaussian in the unconstrained coordinates, fitted by path gradients (`vi_reparam.gaussians.path_gradient`).

    Attributes:
        init_scale: standard deviation at the start, where no search finds a better one.
        gradient: ``"path"`` or ``"reparameterization"``.
    """

    max_steps: ClassVar[int] = 3_000
    has_tail: ClassVar[bool] = True

    init_scale: float
    gradient: str

    def is_dense(self, size: int) -> bool:
        """Whether its frame is a matrix, found by search: for a full covariance of moderate size."""
        return isinstance(self.gaussian, Full) and size <= LARGEST

    @property
    @abc.abstractmethod
    def gaussian(self) -> Base:
        """Which Gaussian."""

    def __post_init__(self) -> None:
        check_positive("init_scale", self.init_scale, type(self).__name__)
        check_choice("gradient", self.gradient, GRADIENTS, type(self).__name__)

    def check_size(self, size: int) -> None:
        if isinstance(self.gaussian, Full) and size > LARGEST_FULL_RANK:
            raise SiteError(
                f"{self!r} over {size:,} coordinates would hold {size * size:,} covariances, and several times as many "
                f"in the optimizer; use vr.LowRank(rank=8), or vr.MeanField()"
            )
        super().check_size(size)

    def held(self, size: int) -> int:
        return super().held(size) + COPIES * numbers_of(self.gaussian, size)


def numbers_of(base: Any, size: int) -> int:
    """Parameters of a Gaussian over so many coordinates; of one whose size is not known, the least."""
    return size * size if isinstance(base, Full) else size * (2 + int(getattr(base, "rank", 0)))


@dataclass(frozen=True, repr=False)
class FullRank(GaussianFamily):
    """A Gaussian with a full covariance over all continuous latents.

    Args:
        init_scale: standard deviation at the start, where no search finds a better one.
        gradient: ``"path"``, or ``"reparameterization"``, which keeps log q's own parameters.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    init_scale: float = 0.1
    gradient: str = "path"

    @property
    def gaussian(self) -> Base:
        return Full()


@dataclass(frozen=True, repr=False)
class LowRank(GaussianFamily):
    """A Gaussian whose covariance is a diagonal and a few directions.

    Args:
        rank: how many directions.
        init_scale: standard deviation at the start.
        gradient: ``"path"``, or ``"reparameterization"``, which keeps log q's own parameters.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    rank: int = 8
    init_scale: float = 0.1
    gradient: str = "path"

    def __post_init__(self) -> None:
        LowRankBase(rank=self.rank)
        super().__post_init__()

    @property
    def gaussian(self) -> Base:
        return LowRankBase(rank=self.rank)


@dataclass(frozen=True, repr=False)
class Gaussian(GaussianFamily):
    """A Gaussian, or a mixture of them, by its base: what `SDE` starts from.

    Raises:
        ArgumentError: for a base that is none, or a scale that is not positive.
    """

    base: Base = field(default_factory=Diagonal)
    init_scale: float = 0.1
    gradient: str = "path"

    def __post_init__(self) -> None:
        if not isinstance(self.base, Base):
            raise ArgumentError(f"Gaussian(base={self.base!r}): expected one such as Diagonal()")
        super().__post_init__()

    @property
    def gaussian(self) -> Base:
        return self.base
