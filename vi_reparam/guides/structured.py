"""Each latent's own prior, times what the data say of it: for hierarchies of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vi_reparam.checks import check_choice
from vi_reparam.guides.gaussian import GRADIENTS
from vi_reparam.guides.joint import JointFamily


@dataclass(frozen=True, repr=False)
class Structured(JointFamily):
    """The model's own conditionals, each times a learned normal factor: for hierarchies.

    Globals are the latents outside plates whose prior depends on no other latent. They are drawn together, by a
    Gaussian with a full covariance whose positive coordinates have one-sided tails. Every other latent is drawn in the
    model's order, from its own prior given what was drawn before it, times a factor that says what the data say of it.
    The factor's location and log precision are affine in the globals. Its location is also affine in what was drawn
    before it in the same plate, or in a small one. So the prior's dependence on its parents is kept as it is, and a
    hierarchy of normals comes out exactly. A step costs about what a mean field's does.

    A prior that is normal on the unconstrained scale is taken as it is, a multivariate one too. Other priors are taken
    by the normal that has their mode and their curvature there. Of a prior without one the factor is all.

    Args:
        gradient: ``"path"``, or ``"reparameterization"``, which keeps log q's own parameters.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    learning_rate: ClassVar[float] = 0.02
    max_steps: ClassVar[int] = 4_000

    gradient: str = "path"

    def __post_init__(self) -> None:
        check_choice("gradient", self.gradient, GRADIENTS, "Structured")
