"""Few latents by a mixture, all others by the normal at their mode given these: for latents that are tied together."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import ClassVar

from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.guides.joint import JointFamily

MOST_GLOBALS, MOST_LOCALS, MOST_TIED = 24, 4_096, 1_024
"""Coordinates: of those that are drawn by importance sampling, of the others, and of those that know of most others."""


@dataclass(frozen=True, repr=False)
class NestedLaplace(JointFamily):
    """A few globals, such as scales, by a mixture of Gaussians; given each draw of them, all others by a normal.

    That normal lies at the others' mode, found by Newton steps, and has the curvature there (nested Laplace; Rue,
    Martino and Chopin 2009). So crossed effects, Gaussian processes, state spaces and regressions whose noise is normal
    come out exactly given the globals, and those with counts nearly. The mixture is fitted by adaptive importance
    sampling of the globals' marginal posterior (Cappé et al. 2008; Cornuet et al. 2012), without any step: `fit` takes
    no `num_steps`, `optimizer` or `num_particles`.

    A draw costs a few matrices of second derivatives of all latents but the globals. Where each knows of few others, as
    in groups, walks and on maps, only the entries that are not zero are computed, and there may be 4,096 latents;
    else 1,024.

    Args:
        globals: names of the latents that the mixture draws, at most 24 coordinates; None to choose them: latents
            outside plates on which the curvature of the others depends.

    Raises:
        ArgumentError: for names that cannot be used.
    """

    takes_steps: ClassVar[bool] = False
    num_particles: ClassVar[int] = 1

    globals: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        given = self.globals
        if given is None:
            return
        if isinstance(given, str) or not given or not all(isinstance(name, str) for name in given):
            raise ArgumentError(f"NestedLaplace(globals={given!r}): expected names of latents, a tuple, or None")
        object.__setattr__(self, "globals", tuple(given))

    @classmethod
    def named(cls, text: str) -> NestedLaplace | None:
        """The family that is written so, with its globals; None for another one."""
        head, _, rest = text.partition("(globals=")
        return cls(globals=ast.literal_eval(rest[:-1])) if head == cls.__name__ and rest else None

    def check_size(self, size: int) -> None:
        if size > MOST_GLOBALS + MOST_LOCALS:
            raise SiteError(
                f"NestedLaplace() covers at most {MOST_LOCALS} coordinates beside {MOST_GLOBALS} of globals, and the "
                f"latents have {size:,}: use vr.Structured()"
            )
