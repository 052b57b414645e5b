"""A normalizing flow over all continuous latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vi_reparam.checks import check_choice, check_integer
from vi_reparam.errors import ArgumentError
from vi_reparam.guides.condition import check_condition
from vi_reparam.guides.gaussian import GRADIENTS
from vi_reparam.guides.joint import COPIES, JointFamily, check_skew

KINDS: dict[str, str] = {
    "coupling": "affine",
    "spline_coupling": "spline",
    "autoregressive": "affine",
    "inverse_autoregressive": "affine",
    "spline_autoregressive": "spline",
    "block_autoregressive": "block",
}
"""Kind -> what its layers do to a coordinate."""

CHEAP_INVERSES = ("coupling", "spline_coupling", "autoregressive")
"""Kinds whose inverse costs no more than a draw does."""

INTERVAL = 10.0
"""Splines bend coordinates between -10 and 10 standard deviations of the Gaussian that they start from."""

NUM_KNOTS = 16

LARGEST_JACOBIAN = 128
"""Coordinates up to which a path gradient takes the flow's whole Jacobian, where no inverse is cheap."""


@dataclass(frozen=True, repr=False)
class Flow(JointFamily):
    """A Gaussian fit, bent by an invertible network that starts as the identity.

    Networks and bijections are flowjax's in NumPyro, zuko's and Pyro's in Pyro.

    Args:
        kind: ``"inverse_autoregressive"`` (affine layers that draw in one pass; Kingma et al. 2016),
            ``"spline_autoregressive"`` (the same with rational-quadratic splines),
            ``"autoregressive"`` (scored in one pass, drawn in as many as there are coordinates;
            Papamakarios et al. 2017), ``"coupling"`` (affine; Dinh et al. 2017),
            ``"spline_coupling"`` (Durkan et al. 2019), ``"block_autoregressive"`` (De Cao et al. 2019).
        num_layers: how many.
        hidden: width of a layer's network.
        gradient: ``"path"`` (log q's parameters are constants; Roeder, Wu and Duvenaud 2017) or
            ``"reparameterization"``.
        condition: makes it a guide for the local latents of a plate, one flow for all its elements,
            conditioned on a row of features for each (amortized): the name of one of the model's
            arguments, or a function of them, that gives an array with as many rows as the plate has
            elements. Subsampled plates take their rows.
        skew: whether the coordinates of positive sites have a learned one-sided tail (`vi_reparam.gaussians.skew`).

    Raises:
        ArgumentError: for options that cannot be used.
    """

    num_particles: ClassVar[int] = 32
    learning_rate: ClassVar[float] = 0.005
    clip: ClassVar[float | None] = 10.0
    warmup: ClassVar[float] = 0.05
    max_steps: ClassVar[int] = 4_000
    by_losses: ClassVar[bool] = True
    least: ClassVar[float] = 0.4  # it starts at a Gaussian that fits
    has_tail: ClassVar[bool] = True

    kind: str = "inverse_autoregressive"
    num_layers: int = 4
    hidden: int = 32
    gradient: str = "path"
    condition: Any = None
    skew: bool = True

    def __post_init__(self) -> None:
        check_condition("Flow", self.condition)
        if self.condition is not None and KINDS.get(self.kind) == "block":
            raise ArgumentError(f"Flow(kind={self.kind!r}, condition=...): its layers take none; use another kind")
        check_choice("kind", self.kind, KINDS, "Flow")
        check_choice("gradient", self.gradient, GRADIENTS, "Flow")
        check_integer("num_layers", self.num_layers, "Flow")
        check_integer("hidden", self.hidden, "Flow")
        check_skew("Flow", self.skew)

    def held(self, size: int) -> int:
        network, factor = self.hidden * size, 3 * NUM_KNOTS if KINDS[self.kind] == "spline" else 2
        masks = 0 if "coupling" in self.kind else size * size  # which coordinate may see which
        if KINDS[self.kind] == "block":
            network = size * size
        return super().held(size) * self.num_layers + COPIES * self.num_layers * (1 + factor) * network + masks

    def kind_at(self, size: int) -> str:
        """The kind for a vector of this size: one coordinate alone has nothing to couple with."""
        coupled = self.kind in ("coupling", "spline_coupling")
        return "spline_autoregressive" if coupled and size == 1 else self.kind

    def gradient_at(self, size: int) -> str:
        """The gradient for a vector of this size: plain where a path gradient would need too large a Jacobian."""
        cheap = self.kind_at(size) in CHEAP_INVERSES
        return self.gradient if cheap or size <= LARGEST_JACOBIAN else "reparameterization"
