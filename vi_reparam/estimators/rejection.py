"""Acceptance-rejection reparameterization, with the baseline that its authors left out."""

from __future__ import annotations

from typing import Any, ClassVar

from vi_reparam.backend.ops import Array, Held, Ops, Shape
from vi_reparam.checks import check_choice, check_integer
from vi_reparam.draw import Draw
from vi_reparam.errors import ArgumentError, GradientError
from vi_reparam.estimators.base import Estimator
from vi_reparam.estimators.score_function import Baseline
from vi_reparam.families.base import Family
from vi_reparam.samplers.primitive import AcceptedNoise


class Rejection(Estimator):
    """grad f dh/dtheta + (f - b) grad log pi (Naesseth et al. 2017, eqs. 5-9; b is ours).

    The accepted noise has density pi = s q / r; the mean of grad log pi is zero, so a baseline b
    that does not depend on this draw leaves the gradient unbiased and takes most of the
    correction's variance away.

    Args:
        boost: shape augmentations of every gamma draw; 1 or more serves any concentration, and
            more make the correction smaller. 0 needs a concentration of at least 1.
        baseline: ``"leave_one_out"`` over particles (where there are two or more; with one
            particle a decaying average where a guide holds its state, else none),
            ``"decaying_average"`` or None. The default is the first where it can be had;
            naming one that cannot be had raises.
        min_concentration: your promise, for boost 0 under jit where the concentration is not
            known, that it stays at or above this value (at least 1). A lane that breaks the
            promise gets NaN.

    Raises:
        ArgumentError: for a negative boost or an unknown baseline.
    """

    kind = "rejection"
    has_score_term = True
    default_boost: ClassVar[int] = 3

    def __init__(
        self, *, boost: int = default_boost, baseline: Baseline | str = "auto", min_concentration: float | None = None
    ) -> None:
        check_integer("boost", boost, "Rejection", least=0)
        if baseline != "auto":
            check_choice("baseline", baseline, ("leave_one_out", "decaying_average", None), "Rejection")
        if min_concentration is not None and not min_concentration >= 1.0:
            raise ArgumentError(f"Rejection(min_concentration={min_concentration!r}): expected at least 1")
        self.boost = boost
        self.baseline = baseline
        self.min_concentration = min_concentration

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"boost": self.boost}
        if self.baseline != "auto":
            options["baseline"] = self.baseline
        if self.min_concentration is not None:
            options["min_concentration"] = self.min_concentration
        return options

    def draw(self, ops: Ops, key: Any, family: Family, shape: Shape, *params: Array, value: Held = None) -> Draw:
        self.require(family)
        if self.boost == 0:
            params = self._shapes_of_at_least_one(ops, family, params)
        return family.build(AcceptedNoise(self.boost), ops, key, shape, *params, value=value)

    def _shapes_of_at_least_one(self, ops: Ops, family: Family, params: tuple[Array, ...]) -> tuple[Array, ...]:
        checked = list(params)
        for index, factor in family.shape_parameters:
            concentration = params[index] * factor
            name = family.parameters[index]
            known = ops.concrete(concentration)
            if known is not None:
                if (lowest := float(ops.xp.min(known))) < 1.0:
                    raise GradientError(
                        f"{self!r} on {family.name} with {name} giving a gamma concentration of {lowest:.4g}: without "
                        "boost it must be at least 1, or the correction has a boundary term; use boost=1 or more"
                    )
            elif self.min_concentration is None:
                raise GradientError(
                    f"{self!r} on {family.name}: under jit the {name} is not known, and below 1 the gradient would "
                    "be wrong; use boost=1 or more, or promise min_concentration=1.0"
                )
            else:
                zero, kept = 0.0 * ops.stop_gradient(concentration), concentration >= self.min_concentration
                checked[index] = params[index] + ops.xp.where(kept, zero, float("nan"))
        return tuple(checked)
