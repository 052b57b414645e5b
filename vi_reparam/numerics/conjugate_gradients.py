"""Linear systems by conjugate gradients: the matrix is known by its products with vectors alone."""

from __future__ import annotations

from collections.abc import Callable

from vi_reparam.backend.ops import Array, Ops

ENOUGH = 1e-3
"""Of the residual that was there at the beginning."""


def solve(ops: Ops, product: Callable[[Array], Array], wanted: Array, diagonal: Array, most: int) -> Array:
    """About H^-1 wanted, after at most so many products; cut off where H turns out not to be positive.

    Args:
        product: H v of v, shape ``[D]``.
        diagonal: about H's own, positive: by it the system is scaled. Shape ``[D]``.
    """
    xp = ops.xp

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        count, x, left, way, square = state
        moved = product(way)
        curvature = xp.sum(way * moved)
        length = xp.where(curvature > 0.0, square / xp.where(curvature > 0.0, curvature, 1.0), xp.zeros_like(square))
        after = left - length * moved
        new = xp.sum(after * after / diagonal)
        fine = (curvature > 0.0) & xp.isfinite(new)
        ratio = xp.where(fine, new / xp.where(square > 0.0, square, xp.ones_like(square)), xp.zeros_like(new))
        return (
            count + 1,
            xp.where(fine, x + length * way, x),
            xp.where(fine, after, left),
            xp.where(fine, after / diagonal + ratio * way, way),
            xp.where(fine, new, xp.zeros_like(new)),  # not positive: nothing is left to do
        )

    first = xp.sum(wanted * wanted / diagonal)
    begun = (xp.asarray(0), xp.zeros_like(wanted), wanted, wanted / diagonal, first)
    found = ops.while_loop(lambda s: (s[0] < most) & (s[4] > ENOUGH**2 * first), step, begun)
    # where the first way is no way up, one step of the diagonal
    return xp.where(xp.any(found[1] != 0.0), found[1], wanted / diagonal)
