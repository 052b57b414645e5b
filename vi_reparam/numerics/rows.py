"""Which rows a minibatch takes: drawn without replacement, at a cost that does not depend on how many there are."""

from __future__ import annotations

import itertools

from vi_reparam.backend.ops import Array, Key, Ops


def spread(ops: Ops, key: Key, size: int, batch: int) -> Array:
    """`batch` different indices below `size`, each as likely as any other. Shape ``[batch]``.

    The rows, begun at a random one and closed to a ring, are cut into `batch` stretches of equal length, up to one row;
    one row is drawn from each. A sum over such a batch is unbiased, and varies no more than over a plain random one
    (stratified sampling).
    """
    xp, dtype = ops.xp, ops.float_dtype()
    ring_key, own_key = ops.split(key, 2)
    edges = [i * size // batch for i in range(batch + 1)]
    first = xp.asarray(edges[:-1])
    lengths = xp.asarray([b - a for a, b in itertools.pairwise(edges)])

    def below(key: Key, shape: tuple[int, ...], limit: Array) -> Array:
        drawn = xp.floor((1.0 - ops.uniform(key, shape, dtype)) * xp.astype(limit, dtype))
        return xp.minimum(xp.astype(drawn, first.dtype), limit - 1)  # a product may round up to the limit

    place = first + below(own_key, (batch,), lengths)
    moved = size - below(ring_key, (), xp.asarray(size))
    return xp.where(place >= moved, place - moved, place + (size - moved))  # no sum above `size`, which might overflow
