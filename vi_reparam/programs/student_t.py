"""A multivariate Student-t over all latents: a full covariance, and tails that fall as a power."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Ops
from vi_reparam.checks import check_choice, check_integer, check_positive
from vi_reparam.gaussians import path_gradient as path
from vi_reparam.gaussians.bases import Full
from vi_reparam.guides.gaussian import GRADIENTS, FullRank
from vi_reparam.guides.joint import JointFamily
from vi_reparam.programs.gaussian import frame_of, take_gaussian
from vi_reparam.programs.joint import Array, Draws, JointGuide, Key, Layout, Params
from vi_reparam.programs.vector import Vector


@dataclass(frozen=True, repr=False)
class StudentT(JointFamily):
    """A Student-t with a full covariance over all continuous latents, for posteriors with heavy tails.

    It starts from a `FullRank` fit. Draws are z = m + S n sqrt(df / c), with n standard normal and c chi-squared.

    Args:
        df: degrees of freedom, an integer of at least 3; fewer mean heavier tails.
        init_scale: standard deviation at the start, where no search finds a better one.
        gradient: ``"path"``, or ``"reparameterization"``, which keeps log q's own parameters.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    max_steps: ClassVar[int] = 3_000

    df: int = 5
    init_scale: float = 0.1
    gradient: str = "path"

    def __post_init__(self) -> None:
        check_integer("df", self.df, "StudentT", least=3)
        check_positive("init_scale", self.init_scale, "StudentT")
        check_choice("gradient", self.gradient, GRADIENTS, "StudentT")

    def check_size(self, size: int) -> None:
        FullRank().check_size(size)


class StudentTGuide(JointGuide):
    """One Student-t over all latents, in the coordinates of a Gaussian's fit."""

    kind = "student_t"

    def distribution(self, layout: Layout, args: Any, kwargs: Any, features: Array | None = None) -> Any:
        ops, size, df, dtype = self.ops, layout.size, self.family.df, self.ops.float_dtype()
        frame = self.frame(size, self.family.init_scale, self.start(layout, args, kwargs), dense=True)
        params = self.base_params(Full(), 1.0, lambda: ops.xp.zeros(size, dtype=dtype))
        gradient = self.gradient(self.family.gradient)

        def noise(key: Key, lead: tuple[int, ...]) -> Array:
            return ops.normal(key, (*lead, size + df), dtype)

        def draw(own: Array, row: Array | None) -> Vector:
            chi_squared = ops.xp.sum(own[size:] ** 2)
            t = own[:size] * ops.xp.sqrt(df / chi_squared)
            made = path.affine(ops, Full(), params, frame, (t, *standard(ops, t, df)), gradient=gradient)
            return Vector(*made, frozen=self.family.gradient == "path")

        return self.vector(layout, noise, draw, features)

    def warm_starts(self, fit: Callable[..., Any], data: Data, key: Key) -> list[Params]:
        params = dict(fit(FullRank(self.family.init_scale), None, key).params)
        found = frame_of(self.backend, take_gaussian(self.backend, params, Full()))
        return [{**params, **self.named({"center": found.center, "root": found.root})}]

    def matched(self, layout: Layout, draws: Draws) -> Params:
        return self.matched_frame(layout, draws, bends=False, dense=True)


def standard(ops: Ops, t: Array, df: int) -> tuple[Array, Array]:
    """Log density of the standard Student-t at a vector, and its slope there, of shapes ``[]`` and ``[D]``."""
    size, stretch = t.shape[-1], 1.0 + ops.xp.sum(t * t) / df
    norm = math.lgamma(0.5 * (df + size)) - math.lgamma(0.5 * df) - 0.5 * size * math.log(df * math.pi)
    return norm - 0.5 * (df + size) * ops.xp.log(stretch), -(df + size) / df * t / stretch
