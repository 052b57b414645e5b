"""The two stop-gradient identities from which every gradient here is built, exact to first order."""

from __future__ import annotations

from collections.abc import Callable

from vi_reparam.backend.ops import Array
from vi_reparam.backend.registry import ops_of


def surrogate(cost: Array, log_weight: Array) -> Array:
    """``cost``, with the gradient ``grad cost + cost * grad log_weight``.

    The score-function identity: if the draw behind `cost` has a density whose logarithm's
    gradient is that of `log_weight`, then the mean of this gradient is the gradient of the mean
    (Schulman et al. 2015, eq. 4; Naesseth et al. 2017, eq. 5).

    Args:
        cost: any shape that broadcasts against `log_weight`.
        log_weight: a log-density-like term.
    """
    stop = ops_of(cost, log_weight).stop_gradient
    return cost + stop(cost) * (log_weight - stop(log_weight))


def implicit(value: Array, cdf: Array, log_prob: Array) -> Array:
    """``value``, with the implicit gradient ``-(dF/dtheta) / q`` (Figurnov et al. 2018, eq. 4).

    Args:
        value: the draw; any gradient it carries is dropped.
        cdf: F(stop(value); theta), the distribution function with its gradient in theta alone.
        log_prob: log q(value; theta); used as a constant.
    """
    ops = ops_of(value, cdf, log_prob)
    stop = ops.stop_gradient
    return stop(value) - (cdf - stop(cdf)) * stop(ops.xp.exp(-log_prob))


def attach(value: Array, parameter: Array, slope: Array | Callable[[Array, Array], Array]) -> Array:
    """``value``, plus a gradient ``slope`` with respect to `parameter`.

    The implicit identity when dz/dtheta itself is known: value and slope are constants.

    Args:
        value: the draw; `parameter`: of its shape, where `slope` is a function.
        slope: dz/dtheta, or how it follows from (value, parameter): then it is computed only where
            a derivative is asked for.
    """
    ops = ops_of(value, parameter)
    stop = ops.stop_gradient
    if callable(slope):
        return ops.with_slope(value, parameter, slope)
    return value + stop(slope) * (parameter - stop(parameter))
