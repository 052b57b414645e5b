"""A minibatch must be taken by the plate's own indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam.backend.ops import Array
from vi_reparam.errors import ArgumentError
from vi_reparam.programs.latents import held


def check_subsampling(backend: Backend, model: Any, data: Data) -> None:
    """Refuse a subsampled plate whose observed terms do not depend on the plate's indices.

    A minibatch that is passed as an argument pairs its rows with the wrong indices, and so with
    the wrong local latents, as soon as the particles draw minibatches of their own.

    Raises:
        ArgumentError: naming the plate and the observed sites.
    """
    ops, tracer = backend.ops, backend.tracer
    records = tracer.shapes(lambda key: tracer.run(model, *data.call, key, alone=True))
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
