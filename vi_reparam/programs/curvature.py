"""Second derivatives of a log density as an arrow, of few products with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.gaussians import arrow
from vi_reparam.gaussians.arrow import Arrow, Order


class Curvature(NamedTuple):
    """Which products are taken, and where their elements are entries.

    Attributes:
        seeds: directions, rows of zeros and ones; the last ones are those of the border. Shape ``[C, L]``.
        rows: the element of each row of the arrow, L where there is none. Shape ``[K * B + R]``.
        band: one where a product is an entry of the blocks ``[below, own]``; others are zero. Shape ``[K, B, 2 * B]``.
    """

    seeds: Array
    rows: Array
    band: Array

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Blocks, their rows, and those of the border."""
        num, size = self.band.shape[:2]
        return num, size, self.rows.shape[0] - num * size

    def order(self, ops: Ops) -> Order:
        """Of the rows."""
        xp = ops.xp
        rows = xp.astype(self.rows, xp.int32)
        return Order(rows, xp.argsort(rows)[: self.seeds.shape[1]])

    def none(self, ops: Ops, x: Array) -> Arrow:
        """A root of zeros."""
        xp, (num, size, border) = ops.xp, self.sizes
        shapes = (num, size, size), (num, size, size), (num, border, size), (border, border)
        return Arrow(*(xp.zeros(shape, dtype=x.dtype) for shape in shapes))

    def look(self, ops: Ops, slope: Callable[[Array], Array], x: Array) -> tuple[Arrow, Array]:
        """The negative of the second derivatives, and the slope."""
        xp = ops.xp

        products, rise = ops.products(slope, x, self.seeds)
        order, (num, size, border) = self.order(ops), self.sizes
        products = order.sort(ops, -products.T)
        products = xp.where(xp.isfinite(products), products, xp.zeros_like(products))
        edge = products[:, self.seeds.shape[0] - border :].T
        corner = edge[:, num * size :]
        corner = 0.5 * (corner + corner.T)
        if not num:
            none = xp.zeros((0, size, size), dtype=x.dtype)
            return Arrow(none, none, xp.zeros((0, border, size), dtype=x.dtype), corner), rise
        blocks = xp.reshape(products[: num * size], (num, size, -1))
        seeds = xp.reshape(order.sort(ops, self.seeds.T)[: num * size], blocks.shape)
        before = xp.concat([xp.zeros_like(seeds[:1]), seeds[:-1]])
        below = self.band[:, :, :size] * (blocks @ xp.matrix_transpose(before))
        own = self.band[:, :, size:] * (blocks @ xp.matrix_transpose(seeds))
        own = 0.5 * (own + xp.matrix_transpose(own))
        lacking = xp.reshape(xp.astype(order.rows[: num * size] == x.shape[0], x.dtype), (num, size))
        own = own + lacking[:, :, None] * xp.eye(size, dtype=x.dtype)[None]
        border_rows = xp.permute_dims(xp.reshape(edge[:, : num * size], (border, num, size)), (1, 0, 2))
        return Arrow(own, below, border_rows, corner), rise

    def ways(self, ops: Ops, root: Arrow, noise: Array) -> Array:
        """The draw with this root of its precision that noise makes, about zero; both of shape ``[L]``."""
        order = self.order(ops)
        return order.back(ops, arrow.fall(ops, root, order.sort(ops, noise)))
