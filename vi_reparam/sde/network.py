"""The default drift: a small network with Fourier features of lambda, and a gated gradient of the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.checks import check_choice, check_integer, check_positive
from vi_reparam.gaussians.bases import Params, lift
from vi_reparam.sde.parameterizations import residual_scale
from vi_reparam.sde.schedules import Schedule

TARGETS = ("auto", "full", "off")

REACH = 10.0
"""The network's input saturates here, in standard deviations of the base: an unbounded residual would grow from step
to step, and throw single paths out of float32."""

COORDINATES = 64
"""Above so many coordinates the drift learns more slowly: one step moves all of them, and their errors add up."""


@dataclass(frozen=True)
class MLP:
    """The residual r(x, lambda): a multilayer perceptron plus a gate times the target's gradient.

    Its last layer and its gate start at zero, so the guide starts as its base. The gradient is that
    of log p less the base's own, at the data that the base expects; it is a constant of
    differentiation, clipped.

    Args:
        width: of the hidden layers; `depth`: how many.
        frequencies: of the Fourier features of lambda.
        target: ``"auto"`` uses the gradient of log p unless the data are subsampled, when it is
            switched off with a warning; ``"full"`` takes it from all of the data even then; ``"off"``
            never uses it.
        clip: largest magnitude of a coordinate of that gradient.

    Raises:
        ArgumentError: for options that cannot be used.
    """

    width: int = 64
    depth: int = 2
    frequencies: int = 16
    target: str = "auto"
    clip: float = 50.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "frequencies"):
            check_integer(name, getattr(self, name), "MLP")
        check_choice("target", self.target, TARGETS, "MLP")
        check_positive("clip", self.clip, "MLP")

    def shapes(
        self, size: int, num_components: int = 1, num_features: int = 0
    ) -> dict[str, tuple[tuple[int, ...], float]]:
        """Parameter name -> its shape, and the standard deviation of its start in units of `parameter_scale`.

        Args:
            size: D, of x.
            num_components: of the base; with more than one the network is told which it is.
            num_features: of the row that it is conditioned on.
        """
        features = 2 * self.frequencies + 1
        out: dict[str, tuple[tuple[int, ...], float]] = {
            "time": ((features, self.width), features**-0.5),
            "bias0": ((self.width,), 0.0),
            "in": ((size, self.width), size**-0.5),
        }
        for layer in range(1, self.depth):
            out[f"hidden{layer}"] = ((self.width, self.width), (2.0 / self.width) ** 0.5)
            out[f"bias{layer}"] = ((self.width,), 0.0)
        out["out"] = ((self.width, size), 0.0)
        out["bias_out"] = ((size,), 0.0)
        out["gate_time"] = ((features, self.width), features**-0.5)
        out["gate_out"] = ((self.width, size), 0.0)
        if num_components > 1:
            out["component"] = ((num_components, self.width), 1.0)
        if num_features:
            out["condition"] = ((num_features, self.width), num_features**-0.5)
        return {name: (shape, deviation / parameter_scale(size)) for name, (shape, deviation) in out.items()}


def parameter_scale(size: int) -> float:
    """Scale of the drift's parameters: min(1, sqrt(COORDINATES / size)).

    Adam's steps are the same for every parameter, so a smaller scale lowers the learning rate of wide drifts.
    """
    return min(1.0, math.sqrt(COORDINATES / size))


def fourier(schedule_span: tuple[float, float], lambdas: Sequence[float], frequencies: int) -> list[list[float]]:
    """Features of each lambda, scaled to [0, 1]: itself, sines and cosines of growing frequency."""
    low, high = schedule_span
    out = []
    for lam in lambdas:
        t = (lam - low) / (high - low)
        angles = [0.5 * math.pi * (k + 1) * t for k in range(frequencies)]
        out.append([2.0 * t - 1.0, *(math.sin(a) for a in angles), *(math.cos(a) for a in angles)])
    return out


def embed(ops: Ops, params: Params, features: Array) -> dict[str, Array]:
    """What of the network depends on lambda alone, for all points at once.

    Args:
        features: from `fourier`, shape ``[points, F]``.
    """
    gate = _gelu(ops, features @ params["gate_time"]) @ params["gate_out"]
    return {"hidden": features @ params["time"] + lift(ops, params["bias0"], 2), "gate": gate}


def apply(ops: Ops, spec: MLP, params: Params, x: Array, embedded: dict[str, Array]) -> Array:
    """The network's part of r at x, shape of x. `embedded` is one row of `embed`."""
    rank = x.ndim
    x = x / ops.xp.sqrt(1.0 + x * x * REACH**-2)
    hidden = _gelu(ops, x @ params["in"] + lift(ops, embedded["hidden"], rank))
    for layer in range(1, spec.depth):
        hidden = _gelu(ops, hidden @ params[f"hidden{layer}"] + lift(ops, params[f"bias{layer}"], rank))
    return hidden @ params["out"] + lift(ops, params["bias_out"], rank)


def coefficients(
    kind: str, schedule: Schedule, lambdas: Sequence[float]
) -> tuple[list[float], list[float], list[float]]:
    """By lambda: what x0 takes from x, from the residual, and from the target's gradient.

    The last is sigma^2 alpha / (alpha^2 + sigma^2), the score's own factor, damped where the noise
    drowns the data.
    """
    base, scale, target = [], [], []
    for lam in lambdas:
        a, s = schedule.alpha(lam), schedule.sigma(lam)
        total = a * a + s * s
        base.append(a / total)
        scale.append(residual_scale(kind, a, s))
        target.append(a * s * s / total)
    return base, scale, target


def _gelu(ops: Ops, x: Array) -> Array:
    return 0.5 * x * (1.0 + ops.xp.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
