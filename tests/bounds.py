"""A program of two Gaussian latents, one resting on the other, and its bound for two particles by quadrature."""

from __future__ import annotations

import itertools

import numpy as np

PARAMS = {"t": 0.3, "m": 0.1, "s": 0.8, "a": 0.6}
"""t is the model's; the guide draws z ~ N(m, s), then u ~ N(a z, 0.7)."""

Y = 1.7
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(14)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def _normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2.0 * np.pi)


def bound(t, m, s, a):
    """E[log mean of two weights]: z ~ N(t, 1), u ~ N(z, 1), y ~ N(u, 0.5)."""
    z = (m + s * NODES)[:, None]
    u = a * z + 0.7 * NODES[None]
    log_w = _normal(z, t, 1.0) + _normal(u, z, 1.0) + _normal(Y, u, 0.5) - _normal(z, m, s) - _normal(u, a * z, 0.7)
    mass, log_w = np.outer(WEIGHTS, WEIGHTS).ravel(), log_w.ravel()
    return mass @ (np.logaddexp(log_w[:, None], log_w[None]) - np.log(2.0)) @ mass


def slopes(step=1e-4):
    """The bound's gradient, by name."""
    out = {}
    for name, sign in itertools.product(PARAMS, (1.0, -1.0)):
        moved = bound(**{**PARAMS, name: PARAMS[name] + sign * step})
        out[name] = out.get(name, 0.0) + sign * moved / (2.0 * step)
    return out
