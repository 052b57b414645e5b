"""A minibatch must be taken by the plate's own indices, and a datum counts once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Array
from vi_reparam.backend.tracer import Record
from vi_reparam.errors import ArgumentError
from vi_reparam.programs.latents import held


def check_subsampling(backend: Backend, model: Any, data: Data) -> None:
    """Refuse a subsampled plate whose observed terms do not depend on the plate's indices, and data that count often.

    A minibatch that is passed as an argument pairs its rows with the wrong indices, and so with
    the wrong local latents, as soon as the particles draw minibatches of their own.

    Raises:
        ArgumentError: naming the plate or the observed sites.
    """
    ops, tracer = backend.ops, backend.tracer
    records = tracer.shapes(lambda key: tracer.run(model, *data.call, key, alone=True))
    for name in records:
        if not isinstance(name, str):  # no file has such names
            raise ArgumentError(f"site {name!r}: the name of a site is text, as {str(name)!r}")
    _refuse_crossed(records)
    _refuse_wide(records)
    given = getattr(model, "batched_plate", None)  # of batches, whose rows come with them
    own = [r.plates[0] for name, r in records.items() if r.kind == "plate" and name != given]
    observed = {
        plate: [n for n, r in records.items() if r.observed and any(p.name == plate.name for p in r.plates)]
        for plate in own
        if plate.is_subsampled
    }
    observed = {plate: names for plate, names in observed.items() if names}
    if not observed:
        return
    latents = held(backend, records)

    def log_probs(indices: Mapping[str, Array]) -> dict[str, Array]:
        run = tracer.run(model, *data.call, ops.key(0), values={**latents, **indices}, alone=True)
        return {n: run[n].log_prob() for names in observed.values() for n in names}

    on = tracer.depends(log_probs, {plate.name: ops.xp.arange(plate.subsample_size) for plate in observed})
    for plate, names in observed.items():
        if not any(plate.name in on[n] for n in names):
            raise ArgumentError(
                f"plate {plate.name!r} is subsampled, but the observed {', '.join(map(repr, names))} in it does not "
                f"depend on its indices: index the full data inside the plate (with {backend.host.name}.plate(...) as "
                "i: y = y[i])"
            )


def _refuse_crossed(records: Mapping[str, Record]) -> None:
    """Refuse data whose shape and their distribution's make a table of both: a column against a row of means."""
    for name, record in records.items():
        if not record.is_data:
            continue
        fn, given = record.distribution, tuple(getattr(record.value, "shape", ()))
        batch, event = tuple(fn.batch_shape), tuple(fn.event_shape)
        own = given[: len(given) - len(event)]
        dims = range(-max(len(own), len(batch)), 0)
        sizes = {dim: tuple(shape[dim] if len(shape) >= -dim else 1 for shape in (own, batch)) for dim in dims}
        if any(a != b and 1 not in (a, b) for a, b in sizes.values()):
            continue  # its density says so
        plates = {plate.dim for plate in record.plates}
        wider = [dim for dim, (a, b) in sizes.items() if b > a]  # where the distribution is, and the data are not
        crossed = wider and any(a > b for a, b in sizes.values())
        free = record.plates and max(own, default=1) > 1 and any(dim not in plates for dim in wider)
        if crossed or free:
            both = tuple(max(pair) for pair in sizes.values())
            raise ArgumentError(
                f"site {name!r}: its data have shape {given} and its distribution {batch + event}, so that every datum "
                f"would count at every mean, {both}: give data of the distribution's shape, such as x.reshape(-1)"
            )


def _refuse_wide(records: Mapping[str, Record]) -> None:
    """Refuse a mask or a scale with more elements than the site: each of these would count more than once."""
    for name, record in records.items():
        if record.kind != "sample":
            continue
        fn, value = record.distribution, tuple(getattr(record.value, "shape", ()))
        batches = value[: len(value) - len(fn.event_shape)][::-1], tuple(fn.batch_shape)[::-1]
        own = tuple(max(pair) for pair in itertools.zip_longest(*batches, fillvalue=1))[::-1]
        for what, around in (("mask", record.mask), ("scale", record.scale)):
            shape = tuple(getattr(around, "shape", ()))
            wide = len(shape) > len(own) or any(n > m for n, m in zip(shape[::-1], own[::-1], strict=False))
            if wide and math.prod(shape) > 1:
                raise ArgumentError(
                    f"site {name!r}: the {what} around it has shape {shape} and its log density {own}, so that a term "
                    f"would count at every element of the {what}: give one of the density's shape, as x.reshape(-1)"
                )
