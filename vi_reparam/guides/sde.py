"""A learned diffusion as the posterior."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from vi_reparam.checks import check_choice, check_positive
from vi_reparam.errors import ArgumentError
from vi_reparam.gaussians.bases import Base, Diagonal, DiagonalMixture, Full, LowRank
from vi_reparam.guides.condition import check_condition
from vi_reparam.guides.gaussian import GaussianFamily, numbers_of
from vi_reparam.guides.joint import COPIES, JointFamily, check_skew
from vi_reparam.guides.mixture import Mixture
from vi_reparam.sde.network import MLP
from vi_reparam.sde.parameterizations import PARAMETERIZATIONS
from vi_reparam.sde.path import GRADIENTS
from vi_reparam.sde.schedules import Schedule, UniformLogSNR
from vi_reparam.sde.solver import Adams
from vi_reparam.sde.tau import as_tau
from vi_reparam.sde.variances import VARIANCES, kernel_variances

if TYPE_CHECKING:
    from vi_reparam.programs.layout import Layout

BASES: dict[str, Base] = {"diagonal": Diagonal(), "low_rank": LowRank(), "full": Full(), "mixture": DiagonalMixture()}

LARGEST_FULL = 100
"""Dimensions up to which the base has a full covariance unless asked otherwise."""


@dataclass(frozen=True, repr=False)
class SDE(JointFamily):
    """A diffusion from Gaussian noise to the posterior, with a learned drift.

    It draws all continuous latents together, on any support. A path takes `num_steps` exact
    exponential steps; the bound is that of the kernels that were simulated (`vi_reparam.sde.path`).

    Args:
        parameterization: what the network predicts: ``"data"``, ``"noise"``, ``"score"`` or ``"velocity"``.
        variance: of the kernels: ``"learned"`` by step and dimension, from ``"ddpm"`` on; or fixed:
            ``"data"``, ``"noise"`` (what the exact step of that form injects), ``"ddpm"``.
        num_steps: steps of a path.
        solver: the steps' form and order. Higher orders serve sampling after training.
        tau: noise of a step relative to the reverse SDE's: a number or a schedule.
        base: the Gaussian in whose coordinates the process runs: ``"diagonal"``, ``"low_rank"``,
            ``"full"``, ``"mixture"``, or one such as ``vr.LowRank(rank=4)`` or ``vr.Blocks("pixels")``; ``"auto"`` is
            full up to 100 dimensions and of low rank above.
        network: the drift's network: `MLP`, or a module of the backend, called with x of shape
            ``[D]`` and lambda, that returns shape ``[D]``.
        gradient: ``"path"`` (the guide's parameters are constants inside log q),
            ``"reparameterization"``, or ``"log_variance"`` (for targets of several modes).
        schedule: of the noise.
        warm_start: steps for which the base is fitted alone before `fit` begins; 0 for none.
        init_scale: standard deviation at which the base starts.
        learn_base: whether the base goes on learning with the drift. Held, a wide base does not
            close in on a few modes before the drift has found the others.
        checkpoint: recompute each step in the backward pass instead of keeping it.
        condition: makes it a guide for the local latents of a plate, one drift for all its elements,
            conditioned on a row of features for each (amortized), as in `Flow`. Such a drift goes without the
            gradient of log p; a module of one's own is called with x, lambda and the row.
        skew: whether the coordinates of positive sites have a learned one-sided tail (`vi_reparam.gaussians.skew`).

    Raises:
        ArgumentError: for options that cannot be used.
    """

    num_particles: ClassVar[int] = 128
    learning_rate: ClassVar[float] = 0.005
    clip: ClassVar[float | None] = 10.0
    max_steps: ClassVar[int] = 3_000
    converges: ClassVar[bool] = False  # its rate must fall with the steps
    warmup: ClassVar[float] = 0.05  # the last kernels are narrow: a first step at full rate leaves them

    parameterization: str = "data"
    variance: str = "learned"
    num_steps: int = 32
    solver: Adams = field(default_factory=Adams)
    tau: Any = 1.0
    base: Any = "auto"
    network: Any = field(default_factory=MLP)
    gradient: str = "path"
    schedule: Schedule = field(default_factory=UniformLogSNR)
    warm_start: int = 2_000
    init_scale: float = 0.1
    learn_base: bool = True
    checkpoint: bool = True
    condition: Any = None
    skew: bool = True

    def __post_init__(self) -> None:
        check_condition("SDE", self.condition)
        check_choice("parameterization", self.parameterization, PARAMETERIZATIONS)
        check_choice("variance", self.variance, VARIANCES)
        if isinstance(self.base, str) and self.base in BASES:
            object.__setattr__(self, "base", BASES[self.base])
        if isinstance(self.base, GaussianFamily):
            object.__setattr__(self, "base", self.base.gaussian)
        if isinstance(self.base, Mixture):
            object.__setattr__(self, "base", self.base.as_base)
        if self.base != "auto" and not isinstance(self.base, Base):
            names = ["auto", *sorted(BASES)]
            raise ArgumentError(f"SDE(base={self.base!r}): expected one of {names}, or one such as LowRank(4)")
        check_choice("gradient", self.gradient, GRADIENTS, "SDE")
        if not isinstance(self.solver, Adams):
            raise ArgumentError(f"SDE(solver={self.solver!r}): expected one such as Adams(order=1)")
        if self.solver.corrector:
            raise ArgumentError(
                f"SDE(solver={self.solver!r}): a corrected step has no tractable kernel, so no bound; train with "
                "corrector=0, and sample with posterior.draws(num, solver=...)"
            )
        if not isinstance(self.schedule, Schedule):
            raise ArgumentError(f"SDE(schedule={self.schedule!r}): expected one such as UniformLogSNR()")
        if not isinstance(self.network, MLP) and not callable(self.network):
            raise ArgumentError(f"SDE(network={self.network!r}): expected MLP(...) or a module that can be called")
        start = self.warm_start
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise ArgumentError(f"SDE(warm_start={start!r}): expected a number of steps, 0 for none")
        check_positive("init_scale", self.init_scale, "SDE")
        object.__setattr__(self, "tau", as_tau(self.tau))
        check_skew("SDE", self.skew)
        if self.condition is not None and self.gradient == "log_variance":
            raise ArgumentError("SDE(condition=..., gradient='log_variance'): use gradient='path'")
        if self.condition is not None and getattr(self.network, "target", "off") == "full":
            raise ArgumentError("SDE(condition=..., network=MLP(target='full')): a local drift sees its features alone")
        kernel_variances(self.variance, self.schedule, self.schedule.grid(self.num_steps), self.tau)

    def held(self, size: int) -> int:
        width = int(getattr(self.network, "width", 0))
        base = numbers_of(self.base, size) if isinstance(self.base, Base) else 0
        return super().held(size) + self.num_particles * self.num_steps * size + COPIES * (3 * width * size + base)

    def resolve(self, layout: Layout) -> SDE:
        """The same with its base settled, for the vector that is laid out so.

        Raises:
            SiteError: for a base by the elements of a plate that is not around every site.
        """
        if self.base == "auto":
            return replace(self, base=Full() if layout.size <= LARGEST_FULL else LowRank(rank=8))
        base = self.base.resolve(layout)
        return self if base is self.base else replace(self, base=base)
