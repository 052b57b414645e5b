"""A mixture of Gaussians whose log density is nearest to known ones.

Draws alone leave a fit the noise of their number. Where their densities are known too, the squares of the differences
of logarithms vanish where the mixture is exact, whatever the draws (as sticking the landing does for gradients, Roeder,
Wu and Duvenaud 2017). They are made small by Levenberg-Marquardt steps.
"""

from __future__ import annotations

import math

import numpy as np

from vi_reparam.fit.weighted_mixture import Mixture, log_sums, of_draws

TRIED = (1, 2, 3, 4, 6, 9, 14)
"""Numbers of components, of which the one whose weights vary least on draws left out is taken."""

IDLE, GAIN = 3, 0.001
"""Numbers in a row that gain less than this part, after which no more are tried."""

DRAWS_EACH, MOST_NUMBERS = 4, 150
"""Draws for each number of a mixture, at the least; numbers that are moved together, for more take too long."""

MOST = 10.0
"""That a weight counts for: one draw far out would choose the mixture, and what is far out is the wide tails' part."""

NUM_STEPS, LITTLE = 30, 1e-4
"""At the most, and the part of the squares at whose gain they end."""

FIRST, DAMPER, HARDEST = 1e-2, 4.0, 8
"""The first damping, the factor between two, and how often it grows in a step."""

FARTHEST, MOST_ROWS = 1e-6, 2_000
"""Of the largest share, below which a draw has none; draws that are enough for any mixture."""


def best_of(z: np.ndarray, log_m: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> Mixture:
    """The mixture nearest to a density, of as many components as draws left out say.

    Args:
        z: draws, shape ``[N, D]``; `log_m`: log densities there, shape ``[N]``.
        weights: that make them draws of this density, normalized, shape ``[N]``.
    """
    fold = rng.permutation(len(z)) % 2 == 0
    size = z.shape[1]
    each = 1 + size * (size + 3) // 2
    halves = [(own, weights[own] / weights[own].sum(), weights[~own] / weights[~own].sum()) for own in (fold, ~fold)]
    best, found, idle = np.inf, (1, False), 0
    for num in TRIED:
        if num > 1 and num * each * DRAWS_EACH > 1.0 / (weights**2).sum():
            break
        before, made = best, [of_draws(z[own], inside, num, rng) for own, inside, _ in halves]
        tried = [(made, False)]
        if num * each <= MOST_NUMBERS:
            sharp = [
                sharpened(part, z[own], log_m[own], inside) for part, (own, inside, _) in zip(made, halves, strict=True)
            ]
            tried.append((sharp, True))
        for parts, is_sharp in tried:
            square = sum(
                _square(part, z[~o], log_m[~o], left) for part, (o, _, left) in zip(parts, halves, strict=True)
            )
            if square < best:
                best, found = square, (num, is_sharp)
        idle = idle + 1 if best > (1.0 - GAIN) * before else 0
        if idle == IDLE:
            break
    made = of_draws(z, weights, found[0], rng)
    both = [made, sharpened(made, z, log_m, weights)] if found[1] else [made]
    return min(both, key=lambda part: _square(part, z, log_m, weights))


def _square(made: Mixture, z: np.ndarray, log_m: np.ndarray, weights: np.ndarray) -> float:
    return mean_square(weights, log_m - log_sums(made.log_probs(z)), MOST)


def mean_square(weights: np.ndarray, log_ratios: np.ndarray, most: float) -> float:
    """Of the ratios of two densities, by normalized weights of the first; none counts for more than `most`."""
    return float(weights @ np.exp(np.minimum(log_ratios, math.log(most))))


def sharpened(made: Mixture, z: np.ndarray, log_m: np.ndarray, weights: np.ndarray) -> Mixture:
    """A mixture moved to where its log density is nearest to a known one, and normalized.

    Args:
        made: where to begin.
        z: shape ``[N, D]``; `log_m`, `weights`: as in `best_of`.
    """
    num, size = made.center.shape
    shares = np.sqrt(weights / weights.max())  # the tails count for more than their mass
    near = np.flatnonzero(shares > FARTHEST)
    near = near[:: 1 + len(near) // MOST_ROWS]
    z, log_m, shares = z[near], log_m[near], shares[near] / shares[near].sum()
    lower, diagonal = np.tril_indices(size), range(size)
    constant = 0.5 * size * np.log(2.0 * np.pi)

    def cut(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        roots = np.zeros((num, size, size))  # of the precisions
        roots[:, lower[0], lower[1]] = x[num + num * size :].reshape(num, -1)
        return x[:num], x[num : num + num * size].reshape(num, size), roots

    def look(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Sum of squares, and of a Gauss-Newton step: the matrix and the slope."""
        heights, center, roots = cut(x)
        own = np.einsum("kii->ki", roots)
        if (own <= 0.0).any():
            return np.inf, x, x
        ways = z[None] - center[:, None]
        scaled = np.einsum("kij,knj->kni", roots, ways)
        each = (heights + np.log(own).sum(1))[:, None] - 0.5 * (scaled**2).sum(2)
        both = log_sums(each.T)
        belongs, rest = np.exp(each - both), log_m - both
        turns = -scaled[:, :, :, None] * ways[:, :, None, :]
        turns[:, :, diagonal, diagonal] += 1.0 / own[:, None, :]
        moves = np.einsum("kij,kni->knj", roots, scaled)
        slopes = np.concatenate([np.ones((num, len(z), 1)), moves, turns[:, :, lower[0], lower[1]]], axis=2)
        slopes = (belongs[:, :, None] * slopes).transpose(1, 0, 2)
        rows = [slopes[:, :, :1], slopes[:, :, 1 : 1 + size], slopes[:, :, 1 + size :]]
        table = np.sqrt(shares)[:, None] * np.concatenate([part.reshape(len(z), -1) for part in rows], axis=1)
        return float(shares @ rest**2), table.T @ table, table.T @ (np.sqrt(shares) * rest)

    roots = np.linalg.inv(made.root)
    at = np.concatenate([made.log_weight - constant, made.center.ravel(), roots[:, lower[0], lower[1]].ravel()])
    damping, (value, matrix, slope) = FIRST, look(at)
    for _ in range(NUM_STEPS):
        before = value
        for _ in range(HARDEST):
            own = np.diag(matrix)
            trial = at + np.linalg.solve(matrix + damping * np.diag(own + 1e-9 * own.sum()), slope)
            seen = look(trial)
            if seen[0] < value:
                at, (value, matrix, slope) = trial, seen
                damping = max(damping / DAMPER, 1e-6)
                break
            damping *= DAMPER
        if not before - value > LITTLE * before:
            break
    heights, center, roots = cut(at)
    log_weight = heights - log_sums(heights[None])[0]
    return Mixture(log_weight, center, np.linalg.inv(roots))
