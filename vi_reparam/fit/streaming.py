"""A fit to batches: the model as it sees them, and where each step's rows come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Call, Data
from vi_reparam.backend.ops import Args, Array, Key
from vi_reparam.backend.tracer import Record
from vi_reparam.errors import ArgumentError, SiteError, ViReparamError, could_not_run
from vi_reparam.estimators import Auto
from vi_reparam.fit.batched import ANCHOR, Batched
from vi_reparam.fit.batches import Batches, Rows
from vi_reparam.fit.escalation import shape_of
from vi_reparam.fit.fitter import Fitter
from vi_reparam.fit.forgotten import warn_of_forgotten
from vi_reparam.fit.options import Options
from vi_reparam.guides import Escalate, FullRank, GuideFamily, JointFamily, MeanField
from vi_reparam.guides.escalate import LARGEST
from vi_reparam.programs.latents import held

PILOT = 10_000
"""Rows, about, in which a fit looks for its start."""

MOST_PASSES, NEAR = 4, 0.05
"""Passes over all rows that move the anchor, and its distance from the mode, in sds, at which they end."""


class Stream:
    """Each step's data.

    Attributes:
        pilot: rows in which a fit looks for its start; `first`: those of the first batch.
        anchor: as in `batched.Batched`; None without one. `fed`: the first batch with it, as a step takes it.
        rivals: nats by which other modes are below the best, as far as the pilot tells.

    Args:
        rest: positional arguments after those of a batch; `kwargs`: keyword arguments beside them.
        seed: of the order of rows.
    """

    def __init__(self, guided: Any, batches: Batches, rest: Args, kwargs: Mapping[str, Any], seed: Any) -> None:
        self.batches, self.engine, self.rest, self.kwargs = batches, guided.backend.engine, rest, dict(kwargs)
        self.seed = seed if isinstance(seed, int) and seed >= 0 else 0
        self._guided, self._extremes = guided, dict[int, tuple[Any, Any]]()
        pilot = batches.pilot(PILOT)
        self._has_more(pilot)
        self.pilot = self._data(pilot, guided.model)
        self.first = self._data(tuple(rows[: batches.size] for rows in batches.pilot(batches.size)), guided.model)
        self.fed, self.anchor = self.first, None
        self.rivals: list[float] = []
        if not self.first.arrays:
            raise ArgumentError(
                f"{guided.name} reads its data in Python, and would be compiled for every batch: use "
                f"{self.engine.array_functions}.where, or shapes, in place of values"
            )

    def _data(self, rows: Rows, model: Any = None, *, anchored: bool = False) -> Data:
        args, kwargs = self.batches.call(rows)
        more = {ANCHOR: self.anchor} if anchored and self.anchor is not None else {}
        return self.engine.data((*args, *self.rest), {**kwargs, **self.kwargs, **more}, model)

    def _has_more(self, rows: Rows) -> bool:
        """Whether whole numbers, which may be indices, go beyond those that came before."""
        before = dict(self._extremes)
        for i, column in enumerate(rows):
            if column.dtype.kind in "iu" and column.size:
                least, largest = self._extremes.get(i, (column.min(), column.max()))
                self._extremes[i] = min(least, column.min()), max(largest, column.max())
        return self._extremes != before

    def _try(self, rows: Rows) -> None:
        """Refuse rows with an index that is out of bounds, which no batch before had."""
        if not self._has_more(rows):
            return
        guided, tracer = self._guided, self._guided.backend.tracer
        data = self._data(rows, guided.model)
        try:
            tracer.shapes(lambda key: tracer.run(guided.model, *data.call, key, alone=True))
        except Exception as error:
            raise could_not_run(guided.name, data.shapes(guided.backend.ops), error) from error

    def __str__(self) -> str:
        return f"batches of {self.batches.size} rows of {self.batches.num_rows}"

    def steps(self, first: int) -> Iterator[Data]:
        """The data of each step, from the step `first` on."""
        for rows in self.batches.steps(self.seed, first):
            self._try(rows)
            yield self._data(rows, anchored=True)

    def passed(self) -> Iterator[Data]:
        """All rows once, in stretches."""
        for rows in self.batches.once():
            self._try(rows)
            yield self._data(rows)

    def look(self, guide: Any, key: Key) -> None:
        """Find where the posterior lies and, by passes over all rows, the anchor that spares the steps their noise.

        The pilot's rows tell the posterior's scale, and its place no better than a part of the rows can. Newton's steps
        by the gradient of all rows mend that: of many rows, the log density is nearly quadratic. Nothing is found where
        no search is made for the latents.

        Args:
            guide: a Gaussian's over all latents, of the model of batches.
        """
        try:
            small = guide.layout(*self.pilot.call).size <= LARGEST
        except SiteError:  # no vector holds these latents
            return
        places = guide.searcher.run(self.pilot, key) if small else []
        modes = [place for place in places if place.is_mode]
        if not modes:
            return
        self.rivals = [modes[0].bound - other.bound for other in modes[1:]]
        ops, num_rows, model = guide.backend.ops, self.batches.num_rows, guide.model
        frame = modes[0].frame
        center, root = (np.asarray(ops.to_numpy(x), np.float64) for x in (frame.center, frame.root))

        def rows(args: Any, kwargs: Any, z: Array) -> tuple[Array, Array]:
            own = model.rows(args, kwargs)
            return own(z), ops.grad(own)(z)

        def rest(args: Any, kwargs: Any, z: Array) -> Array:
            log_p, own = guide.log_joint(guide.layout(args, kwargs), {}, args, kwargs), model.rows(args, kwargs)
            return ops.grad(lambda z: log_p(z) - own(z))(z)

        def at(center: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
            """Height and slope of all rows' terms, and the whole slope in the frame's coordinates."""
            z, height, slope = ops.asarray(center, ops.float_dtype()), 0.0, np.zeros(len(center))
            for data in self.passed():
                part = self.batches.rows_in(data.call) / num_rows  # a batch's terms are scaled to all rows
                found = self.engine.call(rows, data, z, name=(guide, "rows"))
                height += part * float(ops.to_numpy(found[0]))
                slope += part * np.asarray(ops.to_numpy(found[1]), np.float64)
            other = self.engine.call(rest, self.first, z, name=(guide, "rest"))
            return height, slope, root.T @ (slope + np.asarray(ops.to_numpy(other), np.float64))

        height, slope, step = at(center)
        for _ in range(MOST_PASSES):
            if not np.isfinite(step).all() or np.abs(step).max() < NEAR:
                break
            moved = center + root @ step
            after = at(moved)
            if not np.linalg.norm(after[2]) < np.linalg.norm(step):
                break
            center, (height, slope, step) = moved, after
        if np.isfinite([height, *slope]).all():
            found = {"center": center, "height": np.asarray(height), "slope": slope}
            self.anchor = {name: ops.asarray(x, ops.float_dtype()) for name, x in found.items()}
            args, kwargs = self.first.call
            self.fed = self.engine.data(args, {**kwargs, ANCHOR: self.anchor})

    def placed(self, guide: Any, known: Mapping[str, Array]) -> Mapping[str, Array]:
        """Where a fit starts, its frame moved to the anchor."""
        name = f"{getattr(guide, 'prefix', '')}_center"
        if self.anchor is None or name not in known or known[name].shape != self.anchor["center"].shape:
            return known
        return {**known, name: self.anchor["center"]}

    def values(self, guide: Any) -> dict[str, Array] | None:
        """The latents at the anchor."""
        if self.anchor is None:
            return None
        layout = guide.layout(*self.first.call)
        return {name: value for name, (value, _) in layout.unpack(self.anchor["center"]).items()}


def fit_batches(guided: Any, args: Args, kwargs: Mapping[str, Any], options: Options) -> Any:
    """As `Guided.fit`, where the first argument is a `Batches`."""
    engine, (batches, *rest) = guided.backend.engine, args
    options.check(engine)
    stream = Stream(guided, batches, tuple(rest), kwargs, options.seed)
    why = ""
    try:
        guided.fitter.doubt(stream.pilot)
        plate = plate_of(guided.backend, guided.model, stream)
    except ViReparamError:
        raise
    except Exception as error:
        raise guided.fitter.why_not(stream.pilot, error) from error
    warn_of_forgotten(guided.backend, guided.model, stream.first)
    if isinstance(guided.family, Escalate):
        family = _family(guided, stream.first)
        guided = guided.for_family(family)
        why = f"{family!r} alone: the others are not tried on batches, of which each would read all rows again"
    fitter = _fitter(guided, plate, batches.num_rows)
    searching = fitter.guided.for_family(FullRank()).base_guide
    if guided.family is not None:  # one written by hand takes no argument more
        stream.look(searching, guided.backend.ops.fold_in(engine.key(options.seed), 1))
    if options.init is None and not isinstance(guided.family, JointFamily):
        options = replace(options, init=stream.values(searching))
    posterior = fitter.run(stream.first, options, final=False, stream=stream)
    posterior.record["rivals"] = stream.rivals or posterior.record["rivals"]
    posterior.record |= {"batches": {"plate": plate, "num_rows": batches.num_rows, "size": batches.size}, "why": why}
    posterior.stream = stream
    return posterior


def _fitter(guided: Any, plate: str, num_rows: int) -> Fitter:
    """Fits the model of batches, and gives posteriors of the model itself; kept, with what was compiled."""
    made = guided.__dict__.setdefault("_batched", {})
    if (plate, num_rows) not in made:
        batched = guided.with_model(Batched(guided.backend, guided.model, plate, num_rows))
        batched.name = guided.name
        made[plate, num_rows] = Fitter(batched, shown=guided)
    return made[plate, num_rows]


def _family(guided: Any, data: Data) -> GuideFamily:
    size = shape_of(guided, data).size
    named = any(site != "*" or not isinstance(e, Auto) for site, e in guided.estimators.items())
    return MeanField() if size is None or named or size > LARGEST else FullRank()


def plate_of(backend: Backend, model: Any, stream: Stream) -> str:
    """The plate of the rows, checked: all that depends on them is in it, and no latent is.

    Raises:
        ArgumentError: naming what is not so.
    """
    tracer, data, size = backend.tracer, stream.first, stream.batches.size
    records = tracer.shapes(lambda key: tracer.run(model, *data.call, key, alone=True))
    plates = {name: r.plates[0] for name, r in records.items() if r.kind == "plate"}
    example = f"with {backend.host.name}.plate('rows', len(x)):"
    for name, plate in plates.items():
        if plate.is_subsampled:
            raise ArgumentError(
                f"plate {name!r} draws a subsample, and its rows come in batches: give it a batch's own size, {example}"
            )
    fitting = [name for name, plate in plates.items() if plate.size == size]
    asked = stream.batches.plate
    if asked is not None and asked not in fitting:
        raise ArgumentError(
            f"batches(plate={asked!r}): no plate of that name has the batch's size, {size}; plates: "
            f"{ {name: plate.size for name, plate in plates.items()} }"[:300]
        )
    if asked is None and len(fitting) != 1:
        what = "no plate has" if not fitting else f"the plates {', '.join(map(repr, fitting))} all have"
        mend = f"put the rows in one, {example}" if not fitting else "name the rows' own, batches(..., plate=)"
        raise ArgumentError(f"{what} the batch's size, {size}, so it is not known what to scale: {mend}"[:300])
    rows = asked or fitting[0]
    inside = {n for n, r in records.items() if any(p.name == rows for p in r.plates) and r.kind == "sample"}
    local = [name for name in inside if records[name].is_latent]
    if local:
        raise ArgumentError(
            f"site {local[0]!r} is a latent in the plate {rows!r}, of which a batch holds a part: sum it out in the "
            f"model, or fit from memory, {backend.host.name}.plate({rows!r}, n, subsample_size=...)"
        )
    _refuse_outside(backend, model, stream, records, {n for n in records if n not in inside}, rows)
    return rows


def _refuse_outside(
    backend: Backend, model: Any, stream: Stream, records: Mapping[str, Record], outside: set[str], rows: str
) -> None:
    """Refuse a term outside of the plate that depends on the batch: it would count a batch as if it were all rows."""
    tracer, ops, data = backend.tracer, backend.ops, stream.first
    latents, names = held(backend, records), [n for n in outside if records[n].kind == "sample"]
    given = len(data.args) - len(stream.rest)

    def call(arrays: Mapping[str, Array]) -> Call:
        args = tuple(arrays.get(str(i), x) for i, x in enumerate(data.args))
        return args, {n: arrays.get(n, x) for n, x in data.kwargs.items()}

    def log_probs(arrays: Mapping[str, Array]) -> dict[str, Array]:
        args, kwargs = call(arrays)
        run = tracer.run(model, args, kwargs, ops.key(0), values=latents, alone=True)
        return {n: run[n].log_prob() for n in names}

    own = {str(i): x for i, x in enumerate(data.args[:given])}
    own |= {n: x for n, x in data.kwargs.items() if n not in stream.kwargs}
    for name, on in tracer.depends(log_probs, own).items():
        if on:
            raise ArgumentError(
                f"site {name!r} depends on the batch and is not in the plate {rows!r}: put it there, or compute what "
                "it takes from all rows beforehand and give it as an argument of its own"
            )


def batches_of(args: Args, kwargs: Mapping[str, Any]) -> bool:
    """Whether a fit is asked for batches.

    Raises:
        ArgumentError: if they are not its first argument.
    """
    if any(isinstance(x, Batches) for x in (*args[1:], *kwargs.values())):
        raise ArgumentError("fit: give the batches first, fit(vr.batches(...), ...), and other arguments after them")
    return bool(args) and isinstance(args[0], Batches)
