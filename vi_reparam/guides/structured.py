"""Each latent's own prior, times what the data say of it: for hierarchies of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vi_reparam.checks import check_choice
from vi_reparam.errors import ArgumentError
from vi_reparam.guides.base import GuideFamily
from vi_reparam.guides.flow import Flow
from vi_reparam.guides.gaussian import GRADIENTS, FullRank
from vi_reparam.guides.joint import JointFamily


@dataclass(frozen=True, repr=False)
class Structured(JointFamily):
    """The model's own conditionals, each times a learned normal factor: for hierarchies.

    Globals, which are the latents outside plates that depend on no other latent, are drawn together. Every other latent
    is drawn in the model's order from its own prior, given what was drawn before it, times a factor that says what the
    data say of it. The factor's location and log precision are affine in the globals and in the latents drawn before
    it in the same plate. So the prior's dependence on its parents is kept as it is, and a hierarchy of normals comes
    out exactly. The cost of a step grows with the number of latents as a mean field's does.

    A prior that is normal on the unconstrained scale is used as it is. Other priors are used by the normal that is
    nearest at their mode, and a prior that has none by its factor alone.

    Args:
        globals: the family of the globals, `FullRank` or `Flow`.
        gradient: ``"path"``, or ``"reparameterization"``, which keeps log q's own parameters.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    learning_rate: ClassVar[float] = 0.02
    max_steps: ClassVar[int] = 4_000

    globals: GuideFamily = FullRank()
    gradient: str = "path"

    def __post_init__(self) -> None:
        if type(self.globals) not in (FullRank, Flow) or getattr(self.globals, "condition", None) is not None:
            raise ArgumentError(f"Structured(globals={self.globals!r}): expected vr.FullRank() or vr.Flow()")
        check_choice("gradient", self.gradient, GRADIENTS, "Structured")
