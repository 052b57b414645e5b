"""One particle: a run of the guide, the model at its draws, and every cost that they leave."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.engine import DrawInfo
from vi_reparam.backend.host import Reader
from vi_reparam.backend.ops import Args, Array, Key, Kwargs, Params
from vi_reparam.backend.tracer import Record
from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.objectives.plates import PlateDims
from vi_reparam.sites.density import entropy_of, precise_log_prob
from vi_reparam.sites.draw import Sampled
from vi_reparam.sites.recorder import Recorder
from vi_reparam.sites.totals import masked_as, scaled

Records = Mapping[str, Record]
Place = tuple[str, str]
"""Where a cost stands: ``("model" or "guide", site name)``."""

ENTROPIES = ("monte_carlo", "path", "analytic")


@dataclasses.dataclass
class Run:
    """What one particle leaves behind.

    Attributes:
        costs: log p of every model site and -log q (or the entropy) of every guide site, scaled
            by their plates, each of its site's batch shape.
        plate_dims: the plates of every cost, and of every draw under ``("guide", site)``.
        draws: the estimated draws of the guide, by site.
        state: the values at mutable sites.
        averages: the decaying averages that the guide holds itself, by site.
        frozen: whether a joint guide's log q leaves its own parameters out, by site.
        subsampled: names of the model's plates that see minibatches.
        params: the values of the guide's and the model's parameters, by side and name.
    """

    draws: dict[str, Sampled]
    state: dict[str, Any]
    averages: dict[str, Any]
    frozen: dict[str, bool]
    subsampled: frozenset[str]
    params: dict[Place, Any]
    costs: dict[Place, Array] = dataclasses.field(default_factory=dict)
    plate_dims: dict[Place, PlateDims] = dataclasses.field(default_factory=dict)

    @property
    def scored(self) -> dict[str, Sampled]:
        """The draws that are not pathwise."""
        return {name: sampled for name, sampled in self.draws.items() if not sampled.draw.is_pathwise}

    def described(self) -> dict[str, DrawInfo]:
        """The estimated draws in words, without their arrays."""
        sizes = {name: math.prod(tuple(getattr(s.draw.value, "shape", ()))) for name, s in self.draws.items()}
        return {name: DrawInfo(s.family, s.estimator, sizes[name]) for name, s in self.draws.items()}

    def plates_of_scored(self) -> frozenset[str]:
        """The plates around draws that are not pathwise: elements of their costs may be kept apart."""
        return frozenset(plate for name in self.scored for plate in self.plate_dims["guide", name].names)


@dataclasses.dataclass(frozen=True)
class Runner:
    """A program to run: a model and its guide, their arguments and parameters.

    Attributes:
        entropy: how log q counts: ``"monte_carlo"``, ``"path"`` (its parameters are constants) or ``"analytic"``.
        params: constrained values of both sides' parameters, and of mutable sites. Those that are missing have their
            initial values; None for those that the surroundings give.
        model_params: the model's, where they are other arrays than the guide's.
    """

    backend: Backend
    model: Any
    guide: Any
    args: Args
    kwargs: Kwargs
    entropy: str = "monte_carlo"
    params: Params | None = None
    model_params: Params | None = None

    def __call__(self, key: Key, *, recorder: Recorder | None = None, frozen: bool = False) -> Run:
        """Run the guide and the model at its draws, and collect the costs.

        Args:
            key: from which all noise follows.
            recorder: of the guide's draws; one of its own unless given.
            frozen: take all parameters as constants of differentiation.

        Raises:
            SiteError: if the guide misses a latent of the model, or draws another shape.
            GradientError: if a draw's score term would be lost.
        """
        host, params = self.backend.host, self.params
        recorder = Recorder() if recorder is None else recorder
        guide_key, model_key = self.backend.ops.split(key, 2)
        ours = self._visit(self.guide, guide_key, params, recorder=recorder, frozen=frozen)
        recorder.finish()
        values = _values(ours)
        given = params if self.model_params is None else self.model_params
        state = _of_kind(ours, "mutable")
        if given is not None and state:
            given = {**given, **state}
        theirs = self._visit(self.model, model_key, given, values=values, frozen=frozen)
        held = ours
        if self.entropy == "path":  # the same draws, under constants: only they move log q, also those of one another
            held = self._visit(self.guide, guide_key, params, values=values, frozen=True)
        check_sites(theirs, ours)
        sides = {"guide": ours, "model": theirs}
        found = Run(
            draws=recorder.draws,
            state={**_of_kind(theirs, "mutable"), **state},
            averages={} if recorder.averages is None else recorder.averages,
            frozen=recorder.frozen,
            subsampled=frozenset(n for n, r in theirs.items() if r.kind == "plate" and r.plates[0].is_subsampled),
            params={(side, n): v for side, of in sides.items() for n, v in _of_kind(of, "param").items()},
        )
        for name, record in theirs.items():
            if record.kind == "sample":
                known = record.is_latent and name not in recorder.altered
                drawn = recorder.draws.get(name) if known else None
                found.costs["model", name] = scaled(record, log_prob(host, record, drawn))
                found.plate_dims["model", name] = PlateDims.of(record)
        held = held if held is ours else masked_as(host, held, theirs)
        for name, record in masked_as(host, ours, theirs).items():
            if record.is_latent:
                term = _entropy(host, record, self.entropy, held[name], recorder.draws.get(name))
                found.costs["guide", name] = scaled(record, term)
                found.plate_dims["guide", name] = PlateDims.of(record)
        return found

    def _visit(self, program: Any, key: Key, params: Params | None, **options: Any) -> dict[str, Record]:
        run = self.backend.tracer.run
        return run(program, self.args, self.kwargs, key, params=params, partial=True, **options)

    def at(self, params: Params | None, model_params: Params | None = None) -> Runner:
        """The same program at other parameters."""
        return dataclasses.replace(self, params=params, model_params=model_params)


def first_params(backend: Backend, key: Key, model: Any, guide: Any, args: Args, kwargs: Kwargs) -> dict[str, Any]:
    """The initial values at the param and mutable sites of guide and model, unless the surroundings give others.

    Raises:
        ArgumentError: if the model's own parameter has the name of one of the guide's that a family made.
    """
    guide_key, model_key = backend.ops.split(key, 2)
    ours = backend.tracer.run(guide, args, kwargs, guide_key)
    theirs = backend.tracer.run(model, args, kwargs, model_key, values=_values(ours))
    clash = sorted(_of_kind(theirs, "param").keys() & _of_kind(ours, "param").keys() - _shared(guide, theirs))
    if clash:
        raise ArgumentError(f"the model's parameter {clash[0]!r} has the name of one of the guide's: rename it")
    return {n: r.value for of in (theirs, ours) for n, r in of.items() if r.kind in ("param", "mutable")}


def _shared(guide: Any, model: Records) -> frozenset[str]:
    """The model's parameters that a guide may have too: all for one written by hand, few for one that a family made."""
    while hasattr(guide, "fn"):  # handlers around it
        guide = guide.fn
    return getattr(guide, "model_params", frozenset()) if hasattr(guide, "scope") else frozenset(model)


def _values(records: Records) -> dict[str, Array]:
    """What a run of the model takes over from one of the guide: draws, and plates' indices."""
    return {name: r.value for name, r in records.items() if r.kind == "plate" or r.is_latent}


def _of_kind(records: Records, kind: str) -> dict[str, Any]:
    return {name: r.value for name, r in records.items() if r.kind == kind}


def check_sites(model: Records, guide: Records) -> None:
    """Check that a guide draws the model's latents, in shapes that fit.

    Raises:
        SiteError: for one that is missing or has another shape.
    """
    for name, record in model.items():
        if not record.is_latent:
            continue
        if name not in guide or guide[name].kind != "sample":
            drawn = [n for n, r in guide.items() if r.kind == "sample"]
            text = f"the guide misses the latent site {name!r} of the model: it draws {drawn}"
            raise SiteError(f"{text[:200]}; every run of the model must have the same sites, whatever it draws")
        given, expected = tuple(getattr(guide[name].value, "shape", ())), tuple(record.distribution.shape())
        if given != expected and not _broadcasts(given, expected):
            raise SiteError(f"site {name!r}: the guide draws shape {given}, the model expects {expected}")


def _broadcasts(given: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether an array of the given shape broadcasts to the expected one."""
    lead = len(expected) - len(given)
    return lead >= 0 and all(own in (1, other) for own, other in zip(given, expected[lead:], strict=True))


def log_prob(reader: Reader, record: Record, drawn: Sampled | None) -> Array:
    """Log density at a site, from the precise logarithms of the guide's draw where there are some."""
    if drawn is None or drawn.draw.logs is None:
        return record.log_prob()
    return precise_log_prob(reader, record.distribution, record.value, drawn.family, drawn.draw.logs)


def _entropy(reader: Reader, record: Record, kind: str, held: Record, drawn: Sampled | None) -> Array:
    """The entropy of a guide's site, or the term that stands for it.

    Args:
        held: the site under constant parameters, for ``"path"``.
    """
    if kind == "analytic":
        return entropy_of(reader, record.distribution)
    if kind == "path" and not getattr(record.distribution, "known_by_draws", False):
        return -log_prob(reader, held, drawn)
    return -record.log_prob()
