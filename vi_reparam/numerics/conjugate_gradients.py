"""Linear systems by conjugate gradients: the matrix is known by its products with vectors alone."""

from __future__ import annotations

from collections.abc import Callable

from vi_reparam.backend.ops import Array, Ops

ENOUGH = 1e-3
"""Of the residual that was there at the beginning."""


def solve(
    ops: Ops, product: Callable[[Array], Array], wanted: Array, about: Callable[[Array], Array], most: int
) -> Array:
    """About H^-1 wanted, after at most so many products; cut off where H turns out not to be positive.

    Args:
        product: H v of v, shape ``[D]``.
        about: the product of about H^-1, positive, and a vector: by it the system is preconditioned.
    """
    xp = ops.xp

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        count, x, left, way, square = state
        moved = product(way)
        curvature = xp.sum(way * moved)
        length = xp.where(curvature > 0.0, square / xp.where(curvature > 0.0, curvature, 1.0), xp.zeros_like(square))
        after = left - length * moved
        ready = about(after)
        new = xp.sum(after * ready)
        fine = (curvature > 0.0) & xp.isfinite(new)
        ratio = xp.where(fine, new / xp.where(square > 0.0, square, xp.ones_like(square)), xp.zeros_like(new))
        return (
            count + 1,
            xp.where(fine, x + length * way, x),
            xp.where(fine, after, left),
            xp.where(fine, ready + ratio * way, way),
            xp.where(fine, new, xp.zeros_like(new)),  # not positive: nothing is left to do
        )

    ready = about(wanted)
    first = xp.sum(wanted * ready)
    begun = (xp.asarray(0), xp.zeros_like(wanted), wanted, ready, first)
    found = ops.while_loop(lambda s: (s[0] < most) & (s[4] > ENOUGH**2 * first), step, begun)
    return xp.where(xp.any(found[1] != 0.0), found[1], ready)  # where the first way is no way up
