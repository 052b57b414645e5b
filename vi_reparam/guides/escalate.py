"""The default: from the cheapest family up, as far as the diagnostics say that it pays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vi_reparam.checks import check_integer, is_above
from vi_reparam.errors import ArgumentError
from vi_reparam.gaussians.pathfinder import LARGEST
from vi_reparam.guides.adaptive_mixture import MOST_COORDINATES, AdaptiveMixture
from vi_reparam.guides.base import GuideFamily
from vi_reparam.guides.flow import Flow
from vi_reparam.guides.gaussian import FullRank, LowRank
from vi_reparam.guides.joint import JointFamily
from vi_reparam.guides.mean_field import MeanField
from vi_reparam.guides.mixture import Mixture
from vi_reparam.guides.nested_laplace import MOST_GLOBALS, MOST_LOCALS, NestedLaplace
from vi_reparam.guides.sde import SDE
from vi_reparam.guides.structured import Structured

LARGEST_LOW_RANK = 10_000
LARGEST_FLOW = 1_000

OWN: tuple[GuideFamily, ...] = (
    MeanField(),
    FullRank(),
    LowRank(rank=8),
    Structured(),
    Structured(globals=Flow()),
    Mixture(),
    Mixture(num_components=6),
    AdaptiveMixture(),
    Flow(),
    Flow(kind="coupling"),
    SDE(),
)
"""What ladders are made of."""

NUM_GRADIENTS = 2_000_000
"""Of log p, for all families together: enough for a flow, not for an SDE."""


@dataclass(frozen=True, repr=False)
class Escalate(GuideFamily):
    """Try families of growing richness, and stop when the diagnostics are good or no more is gained.

    `MeanField` (where correlations leave it a chance), `FullRank` or, in many dimensions, `LowRank`, then `Flow`, then
    `SDE`; up to 12 coordinates `AdaptiveMixture` before these. Where latents have priors that depend on others,
    `NestedLaplace` and `Structured` come first. Where the search finds separate modes, `Mixture` does.
    `posterior.tried` says what was tried, and `posterior.why` why it ended.

    The budget is counted, so that one seed gives one posterior on every machine, unless seconds are given.

    Args:
        families: the ladder, in place of the one for the model's size.
        budget: seconds; a family that is expected to end later is not begun. None for no clock.
        gradients: of log p, for all families together; a family that may take more is not begun.

    Raises:
        ArgumentError: for an empty ladder, or a budget that is not positive.
    """

    families: tuple[GuideFamily, ...] | None = None
    budget: float | None = None
    gradients: int = NUM_GRADIENTS

    def __post_init__(self) -> None:
        if self.budget is not None and not is_above(self.budget, 0.0):
            raise ArgumentError(f"Escalate(budget={self.budget!r}): expected seconds, a positive number, or None")
        check_integer("gradients", self.gradients, "Escalate")
        if self.families is None:
            return
        object.__setattr__(self, "families", tuple(self.families))
        if not self.families or any(isinstance(f, Escalate) or not isinstance(f, GuideFamily) for f in self.families):
            raise ArgumentError(f"Escalate(families={self.families!r}): expected families such as vr.FullRank()")

    def check_estimators(self, estimators: Any) -> None:
        return None  # they serve the mean field, and settle the ladder

    def ladder(
        self,
        size: int | None,
        *,
        estimators: bool = False,
        subsampled: bool = False,
        hierarchical: bool = False,
        num_globals: int = 0,
        num_locals: int = 0,
    ) -> list[GuideFamily]:
        """The families to try for a model.

        Args:
            size: coordinates of its latents; None where no joint family covers them.
            estimators: whether some were named, which only the mean field takes.
            subsampled: whether it sees minibatches.
            hierarchical: whether `vr.Structured` knows more of it than that its latents are many.
            num_globals: coordinates that it draws together; `num_locals`: the others.
        """
        if self.families is not None:
            joint = size is not None and not estimators
            covering = [f for f in self.families if joint or not isinstance(f, JointFamily)]
            return covering or list(self.families)  # none: the first one's fit says why
        if size is None or estimators or (subsampled and size > LARGEST):
            return [MeanField()]
        is_nested = size <= MOST_GLOBALS + MOST_LOCALS and num_globals > 0 and num_locals > 0
        nested = [NestedLaplace()] if is_nested and not subsampled else []
        if size <= LARGEST:
            bent = [Flow() if size > 1 else Mixture(num_components=6)]  # a flow of one coordinate cannot bend it
            bent = [AdaptiveMixture()] * (size <= MOST_COORDINATES and not subsampled) + bent
            if hierarchical:
                between = [Structured(globals=Flow())] if num_globals > 1 else []
                return [*nested, Structured(), FullRank(), MeanField(), *between, *bent, SDE()]
            return [*nested, FullRank(), MeanField(), *bent, SDE()]
        if hierarchical:
            return [*nested, Structured(), *([Structured(globals=Flow())] if num_globals > 1 else []), MeanField()]
        return [
            MeanField(),
            *([LowRank(rank=8)] if size <= LARGEST_LOW_RANK else []),
            *([Flow(kind="coupling")] if size <= LARGEST_FLOW else []),
        ]

    def with_modes(self, ladder: list[GuideFamily]) -> list[GuideFamily]:
        """The same ladder where the search found several modes: a mixture comes before one Gaussian."""
        if self.families is not None:
            return ladder
        place = ladder.index(FullRank())
        return [*ladder[:place], Mixture(), *ladder[place:]]

    def named(self, name: str) -> GuideFamily | None:
        """The family of the ladder that is written so."""
        known = self.families or OWN
        return next((family for family in known if repr(family) == name), None)


def cost_of(family: GuideFamily, num_steps: int | None) -> int:
    """Gradients of log p that its fit takes, at the most where it ends by itself."""
    per_path = family.num_steps if isinstance(family, SDE) else 1
    return (num_steps or family.max_steps) * family.num_particles * per_path
