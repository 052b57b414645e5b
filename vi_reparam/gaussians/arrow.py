"""Factors of symmetric matrices that are banded in some order of their rows, but for a few rows that know of all.

Blocks on the diagonal, one below each, and a border: an arrow. A factor of it has the same form, and takes time in
proportion to the number of blocks (Rue and Held 2005, section 2.4). A full matrix is a border alone. Where no block
knows of another, as for groups of a hierarchy, none is below, and all are factored at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from vi_reparam.backend.ops import Array, Ops
from vi_reparam.numerics.special import LOG_2PI


class Arrow(NamedTuple):
    """A symmetric matrix; or its triangular root.

    Attributes:
        own: blocks on the diagonal, shape ``[K, B, B]``; of a root their inverses.
        below: those left of them, shape ``[K, B, B]``; the first is zero. Or none, shape ``[0, B, B]``.
        border: rows that know of all, shape ``[K, R, B]``.
        corner: these rows at their own columns, shape ``[R, R]``.
    """

    own: Array
    below: Array
    border: Array
    corner: Array


class Order(NamedTuple):
    """Where a vector's elements lie in an arrow.

    Attributes:
        rows: an element for each row, shape ``[K * B + R]``; the vector's length where there is none.
        places: a row for each element, shape ``[L]``.
    """

    rows: Array
    places: Array

    def sort(self, ops: Ops, x: Array) -> Array:
        """Elements by row, zero where there is none; shape ``[L, ...]`` to ``[K * B + R, ...]``."""
        xp = ops.xp
        return xp.take(xp.concat([x, xp.zeros_like(x[:1])]), self.rows, axis=0)

    def back(self, ops: Ops, x: Array) -> Array:
        """The reverse."""
        return ops.xp.take(x, self.places, axis=0)


def factor(ops: Ops, a: Arrow) -> Arrow:
    """The lower triangular root; not finite where there is none."""
    if not a.own.shape[0]:
        return a._replace(corner=ops.cholesky(a.corner))
    if not a.below.shape[0]:
        own = _inverse_roots(ops, a.own)
        border = a.border @ ops.xp.matrix_transpose(own)
        rows = ops.xp.reshape(
            ops.xp.permute_dims(border, (1, 0, 2)), (a.border.shape[1], a.own.shape[0] * a.own.shape[1])
        )
        return Arrow(own, a.below, border, _corner(ops, a.corner - rows @ rows.T))
    eye = ops.xp.eye(a.own.shape[1], dtype=a.own.dtype)

    def step(state: tuple[Array, Array, Array], row: tuple[Array, Array, Array]) -> Any:
        inverse, last, corner = state
        own, below, border = row
        link = below @ inverse.T
        inverse = ops.solve_triangular(ops.cholesky(own - link @ link.T), eye, lower=True)
        border = (border - last @ link.T) @ inverse.T
        return (inverse, border, corner - border @ border.T), (inverse, link, border)

    begin = eye, ops.xp.zeros_like(a.border[0]), a.corner
    (_, _, corner), (own, below, border) = _fold(ops, step, begin, (a.own, a.below, a.border))
    return Arrow(own, below, border, _corner(ops, corner))


def _inverse_roots(ops: Ops, a: Array) -> Array:
    """Inverses of the lower triangular roots of small matrices, shape ``[K, B, B]``, a column of all at a time."""
    xp, size = ops.xp, a.shape[1]
    columns: list[Array] = []
    for j in range(size):
        column = a[:, :, j] / xp.sqrt(a[:, j, j])[:, None]
        column = xp.concat([xp.zeros_like(column[:, :j]), column[:, j:]], axis=1)
        a = a - column[:, :, None] * column[:, None, :]
        columns.append(column)
    eye, rows = xp.eye(size, dtype=a.dtype), []
    for i in range(size):
        row = xp.broadcast_to(eye[i : i + 1], a.shape[:2])
        for j in range(i):
            row = row - columns[j][:, i : i + 1] * rows[j]
        rows.append(row / columns[i][:, i : i + 1])
    return xp.stack(rows, axis=1)


def _corner(ops: Ops, a: Array) -> Array:
    return ops.cholesky(a) if a.shape[0] else a


def sure_factor(ops: Ops, a: Arrow) -> Arrow:
    """The root; where there is none, that of a diagonal matrix that outweighs all rows."""
    xp = ops.xp
    root = factor(ops, a)
    fine = xp.all(xp.isfinite(root.corner)) & xp.all(xp.isfinite(root.own))
    size = a.own.shape[1]
    parts = [xp.abs(a.own), xp.matrix_transpose(xp.abs(a.border))]
    if a.below.shape[0]:
        after = xp.concat([a.below[1:], xp.zeros_like(a.below[:1])])
        parts += [xp.abs(a.below), xp.matrix_transpose(xp.abs(after))]
    bands = sum(xp.sum(part, axis=2) for part in parts)
    ends = xp.sum(xp.abs(a.border), axis=(0, 2)) + xp.sum(xp.abs(a.corner), axis=1)
    most = xp.max(xp.concat([xp.reshape(bands, (-1,)), ends]))
    bands, ends = (xp.sqrt(part + 1e-6 * (1.0 + most)) for part in (bands, ends))
    eye = xp.eye(size, dtype=a.own.dtype)
    corner = xp.eye(a.corner.shape[0], dtype=a.own.dtype) * ends[:, None]
    heavy = Arrow(eye[None] / bands[:, :, None], xp.zeros_like(a.below), xp.zeros_like(a.border), corner)
    return Arrow(*(xp.where(fine, found, other) for found, other in zip(root, heavy, strict=True)))


def rise(ops: Ops, root: Arrow, x: Array) -> Array:
    """y with ``root y = x``, both in the order of rows."""
    bands, ends = _cut(ops, root, x)
    num, size = root.own.shape[:2]
    if num and not root.below.shape[0]:
        bands = _times(ops, root.own, bands)
        ends = ends - ops.xp.sum(root.border * bands[:, None, :], axis=(0, 2))
    elif num:

        def step(state: tuple[Array, Array], row: Any) -> Any:
            before, ends = state
            (inverse, below, border), x = row
            y = inverse @ (x - below @ before)
            return (y, ends - border @ y), y

        (_, ends), bands = _fold(ops, step, (ops.xp.zeros_like(bands[0]), ends), (root[:3], bands))
    if root.corner.shape[0]:
        ends = ops.solve_triangular(root.corner, ends, lower=True)
    return ops.xp.concat([ops.xp.reshape(bands, (num * size,)), ends])


def fall(ops: Ops, root: Arrow, x: Array) -> Array:
    """y with ``root.T y = x``, both in the order of rows."""
    bands, ends = _cut(ops, root, x)
    num, size = root.own.shape[:2]
    if root.corner.shape[0]:
        ends = ops.solve_triangular(root.corner.T, ends, lower=False)
    if num and not root.below.shape[0]:
        bands = bands - ops.xp.sum(root.border * ends[None, :, None], axis=1)
        bands = _times(ops, ops.xp.matrix_transpose(root.own), bands)
    elif num:
        flip = ops.xp.flip

        def step(after: Array, row: Any) -> Any:
            (inverse, below, border), x = row
            y = inverse.T @ (x - after - border.T @ ends)
            return below.T @ y, y

        flipped = tuple(flip(part, axis=0) for part in root[:3]), flip(bands, axis=0)
        bands = flip(_fold(ops, step, ops.xp.zeros_like(bands[0]), flipped)[1], axis=0)
    return ops.xp.concat([ops.xp.reshape(bands, (num * size,)), ends])


def log_det(ops: Ops, root: Arrow) -> Array:
    """The logarithm of a root's determinant."""
    xp = ops.xp
    inverses = xp.reshape(xp.log(xp.linalg.diagonal(root.own)), (-1,))
    return xp.sum(xp.log(xp.linalg.diagonal(root.corner))) - xp.sum(inverses)


def sds(ops: Ops, root: Arrow) -> Array:
    """Of each row given all later ones, the standard deviation: the inverse of the root's diagonal."""
    xp = ops.xp
    inverses = xp.reshape(xp.linalg.diagonal(root.own), (-1,))
    return xp.concat([inverses, 1.0 / xp.linalg.diagonal(root.corner)])


def log_density(ops: Ops, root: Arrow, noise: Array) -> Array:
    """Of the normal with this root of its precision, at the draw of this noise, shape ``[..., L]``."""
    return log_det(ops, root) - 0.5 * ops.xp.sum(noise * noise, axis=-1) - 0.5 * noise.shape[-1] * LOG_2PI


def _cut(ops: Ops, root: Arrow, x: Array) -> tuple[Array, Array]:
    num, size = root.own.shape[:2]
    return ops.xp.reshape(x[: num * size], (num, size)), x[num * size :]


def _times(ops: Ops, blocks: Array, x: Array) -> Array:
    """Each small block times its part, shape ``[K, B]``."""
    return ops.xp.sum(blocks * x[:, None, :], axis=2)


def _fold(ops: Ops, step: Any, state: Any, rows: Any) -> Any:
    """`ops.scan`; a single row needs no loop."""
    first = ops.tree_leaves(rows)[0]
    if first.shape[0] > 1:
        return ops.scan(step, state, rows)
    state, found = step(state, ops.tree_map(lambda x: x[0], rows))
    return state, ops.tree_map(lambda x: x[None], found)
