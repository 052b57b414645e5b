"""A mixture over a few latents, by adaptive importance sampling: for modes, rings, and shapes that no map bends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vi_reparam.errors import SiteError
from vi_reparam.gaussians.pathfinder import SMALL
from vi_reparam.guides.mixture import Mixture

MOST_COORDINATES = SMALL
"""Above, importance sampling from what is known at the start finds too little."""


@dataclass(frozen=True, repr=False)
class AdaptiveMixture(Mixture):
    """Gaussians over all latents, fitted by adaptive importance sampling: without gradients, and without any step.

    Draws of Student-t's at the modes of the search, about a fit of `FullRank` and about the prior are weighted by the
    posterior. A mixture is fitted to them, the next draws come from it, and so on (Cappé et al. 2008; Cornuet et al.
    2012). It sees what lies around a mode: a wide one that holds a narrow one, a ring, two normals that cross. `fit`
    takes no `num_steps`, `optimizer` or `num_particles`. At most 12 coordinates.
    """

    takes_steps: ClassVar[bool] = False
    num_particles: ClassVar[int] = 1

    def check_size(self, size: int) -> None:
        if size > MOST_COORDINATES:
            raise SiteError(
                f"{self!r} covers at most {MOST_COORDINATES} coordinates, and the latents have {size:,}: use "
                "vr.Mixture() or vr.Flow()"
            )
