"""Second derivatives of a log density as an arrow, of few products with them.

What a soft sum adds, the same number to each pair of many latents, is kept apart as one vector, so that the rest of the
matrix keeps its zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.gaussians import arrow
from vi_reparam.gaussians.arrow import Arrow, Order


class Root(NamedTuple):
    """Of a precision: an arrow's, and what the shared vector is before it.

    Attributes:
        arrow: the root of the rest.
        along: this root's inverse times the shared vector, shape ``[1, K * B + R]``; or none.
    """

    arrow: Arrow
    along: Array

    def half(self, ops: Ops, x: Array) -> Array:
        """(I + v v')^(-1/2) x, where v is `along`."""
        if not self.along.shape[0]:
            return x
        v = self.along[0]
        square = ops.xp.sum(v * v)
        part = 1.0 / (1.0 + square + ops.xp.sqrt(1.0 + square))  # (1 - (1 + v'v)^(-1/2)) / v'v
        return x - v * (ops.xp.sum(v * x) * part)

    def log_density(self, ops: Ops, noise: Array) -> Array:
        """Of the normal with this precision, at the draw of this noise, shape ``[..., L]``."""
        square = ops.xp.sum(self.along * self.along)
        return arrow.log_density(ops, self.arrow, noise) + 0.5 * ops.xp.log1p(square)


class Curvature(NamedTuple):
    """Which products are taken, and where their elements are entries.

    Attributes:
        seeds: directions, rows of zeros and ones; the last ones are those of the border. Shape ``[C, L]``.
        rows: the element of each row of the arrow, L where there is none. Shape ``[K * B + R]``.
        band: one where a product is an entry of the blocks ``[below, own]``; others are zero. Shape ``[K, B, 2 * B]``;
            ``[K, B, B]`` where none is below.
        shared: a vector whose outer product with itself the precision holds beside the arrow, or none:
            shape ``[1, L]`` or ``[0, L]``.
    """

    seeds: Array
    rows: Array
    band: Array
    shared: Array

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Blocks, their rows, and those of the border."""
        num, size = self.band.shape[:2]
        return num, size, self.rows.shape[0] - num * size

    @property
    def is_linked(self) -> bool:
        """Whether blocks know of their neighbours."""
        return self.band.shape[2] > self.band.shape[1]

    @property
    def width(self) -> int:
        """Numbers of the matrix and its root that are held for each row."""
        _, size, border = self.sizes
        return 4 * size + border

    def order(self, ops: Ops) -> Order:
        """Of the rows."""
        xp = ops.xp
        rows = xp.astype(self.rows, xp.int32)
        return Order(rows, xp.argsort(rows)[: self.seeds.shape[1]])

    def none(self, ops: Ops, x: Array) -> Root:
        """A root of zeros."""
        xp, (num, size, border) = ops.xp, self.sizes
        below = num if self.is_linked else 0
        shapes = (num, size, size), (below, size, size), (num, border, size), (border, border)
        zeros = Arrow(*(xp.zeros(shape, dtype=x.dtype) for shape in shapes))
        return Root(zeros, xp.zeros((self.shared.shape[0], self.rows.shape[0]), dtype=x.dtype))

    def look(self, ops: Ops, slope: Callable[[Array], Array], x: Array) -> tuple[Root, Array]:
        """The root of the precision, which is the negative of the second derivatives; and the slope."""
        precision, rise = self._precision(ops, slope, x)
        root = arrow.sure_factor(ops, precision)
        along = ops.xp.zeros((0, self.rows.shape[0]), dtype=x.dtype)
        if self.shared.shape[0]:
            along = arrow.rise(ops, root, self.order(ops).sort(ops, self.shared[0]))[None]
        return Root(root, along), rise

    def step(self, ops: Ops, root: Root, slope: Array) -> tuple[Array, Array]:
        """The precision's inverse times a slope, and the square of the slope's length under it."""
        order = self.order(ops)
        half = root.half(ops, arrow.rise(ops, root.arrow, order.sort(ops, slope)))
        way = order.back(ops, arrow.fall(ops, root.arrow, root.half(ops, half)))
        return way, ops.xp.sum(half * half)

    def sds(self, ops: Ops, root: Root) -> Array:
        """Of each latent given all later ones, shape ``[L]``; zero for those of a border, whose own third derivatives
        no mean slope tells, unless all are there.
        """
        xp, (num, size, _) = ops.xp, self.sizes
        found = arrow.sds(ops, root.arrow)
        if num:
            found = xp.concat([found[: num * size], xp.zeros_like(found[num * size :])])
        return self.order(ops).back(ops, found)

    def ways(self, ops: Ops, root: Root, noise: Array) -> Array:
        """The draw of the normal with this precision that noise makes, about zero; both of shape ``[L]``."""
        order = self.order(ops)
        return order.back(ops, arrow.fall(ops, root.arrow, root.half(ops, order.sort(ops, noise))))

    def _precision(self, ops: Ops, slope: Callable[[Array], Array], x: Array) -> tuple[Arrow, Array]:
        xp = ops.xp
        products, rise = ops.products(slope, x, self.seeds)
        order, (num, size, border) = self.order(ops), self.sizes
        products = -products.T
        if self.shared.shape[0]:
            products = products - self.shared.T @ (self.shared @ self.seeds.T)
        products = order.sort(ops, products)
        products = xp.where(xp.isfinite(products), products, xp.zeros_like(products))
        edge = products[:, self.seeds.shape[0] - border :].T
        corner = edge[:, num * size :]
        corner = 0.5 * (corner + corner.T)
        none = xp.zeros((0, size, size), dtype=x.dtype)
        if not num:
            return Arrow(none, none, xp.zeros((0, border, size), dtype=x.dtype), corner), rise
        blocks = xp.reshape(products[: num * size], (num, size, -1))
        seeds = xp.reshape(order.sort(ops, self.seeds.T)[: num * size], blocks.shape)
        own = self.band[:, :, -size:] * (blocks @ xp.matrix_transpose(seeds))
        own = 0.5 * (own + xp.matrix_transpose(own))
        lacking = xp.reshape(xp.astype(order.rows[: num * size] == x.shape[0], x.dtype), (num, size))
        own = own + lacking[:, :, None] * xp.eye(size, dtype=x.dtype)[None]
        border_rows = xp.permute_dims(xp.reshape(edge[:, : num * size], (border, num, size)), (1, 0, 2))
        if not self.is_linked:
            return Arrow(own, none, border_rows, corner), rise
        before = xp.concat([xp.zeros_like(seeds[:1]), seeds[:-1]])
        below = self.band[:, :, :size] * (blocks @ xp.matrix_transpose(before))
        return Arrow(own, below, border_rows, corner), rise
