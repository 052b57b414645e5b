"""Each latent's own prior, times what the data say of it: for hierarchies of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vi_reparam.checks import check_choice
from vi_reparam.errors import ArgumentError
from vi_reparam.guides.flow import Flow
from vi_reparam.guides.gaussian import GRADIENTS
from vi_reparam.guides.joint import JointFamily

NUM_WITH_FLOW = 32
"""Particles of a step in which a flow draws the globals."""


@dataclass(frozen=True, repr=False)
class Structured(JointFamily):
    """The model's own conditionals, each times a learned normal factor: for hierarchies.

    Globals are the latents outside plates whose prior depends on no other latent. They are drawn together, by a
    Gaussian with a full covariance whose positive coordinates have one-sided tails, or by a flow. Every other latent is
    drawn in the model's order (those of small plates first, where it can be), from its own prior given what was drawn
    before it, times a factor that says what the data say of it. The factor's location and log precision are affine in
    the globals and in what was drawn in small plates. Its location is also affine in what was drawn before it in the
    same plate. So the prior's dependence on its parents is kept as it is, and a
    hierarchy of normals comes out exactly. A step costs about what a mean field's does.

    A prior that is normal on the unconstrained scale is taken as it is, a multivariate one too. A gamma, an inverse
    gamma, an exponential or a beta keeps its family: what the data say is added to its parameters. Other priors are
    taken by the normal that has their mode and their curvature there. Of a prior without one the factor is all.
    Locals that are drawn from a normal have one-sided tails, too.

    Args:
        globals: None for a Gaussian; or a `Flow` for the globals, which starts from a fit with the Gaussian.
        gradient: ``"path"``, or ``"reparameterization"``, which keeps log q's own parameters.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    max_steps: ClassVar[int] = 4_000
    by_losses: ClassVar[bool] = True  # some of its many parameters never stand still
    least: ClassVar[float] = 0.2

    globals: Flow | None = None
    gradient: str = "path"

    def __post_init__(self) -> None:
        if self.globals is not None and (not isinstance(self.globals, Flow) or self.globals.is_local):
            raise ArgumentError(
                f"Structured(globals={self.globals!r}): expected None, or a vr.Flow() without condition"
            )
        check_choice("gradient", self.gradient, GRADIENTS, "Structured")

    @property
    def num_particles(self) -> int:  # type: ignore[override]
        """A flow takes more."""
        return super().num_particles if self.globals is None else NUM_WITH_FLOW

    # a network's fit is slower

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        return 0.02 if self.globals is None else self.globals.learning_rate

    @property
    def clip(self) -> float | None:  # type: ignore[override]
        return None if self.globals is None else self.globals.clip
