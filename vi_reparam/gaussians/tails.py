"""Heavier tails for a Gaussian base, without a gradient: Tukey's h-transform.

x = n exp(h n^2 / 2) for standard normal n: the identity at h = 0, a tail of index 1/h above it
(Tukey 1977). A guide that fits well can still have tails that are too light, and then a few
importance weights carry the sum; a small h costs a few thousandths of a nat and gives weights of
finite variance. It is chosen after training, by the weights (`vi_reparam.posterior.tail`).
"""

from __future__ import annotations

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.numerics.special import LOG_2PI

CHOICES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)
"""Values of h that are tried."""


def widen(ops: Ops, noise: Array, h: Array) -> tuple[Array, Array, Array]:
    """A draw with these tails.

    Args:
        noise: standard normal, shape ``[D]``.
        h: of every coordinate, a scalar from 0 on; a constant of differentiation.

    Returns:
        (x, its log density, the slope of the log density in x), of shapes ``[D]``, ``[]``, ``[D]``;
        all constants.
    """
    xp = ops.xp
    h, n2 = ops.stop_gradient(h), noise * noise
    grown = xp.exp(0.5 * h * n2)
    stretch = 1.0 + h * n2
    log_density = xp.sum(-0.5 * n2 - 0.5 * h * n2 - xp.log(stretch)) - 0.5 * noise.shape[-1] * LOG_2PI
    slope = -noise * (1.0 + h + 2.0 * h / stretch) / (grown * stretch)
    return noise * grown, log_density, slope
