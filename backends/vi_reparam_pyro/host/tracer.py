"""Pyro's programs, run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch.distributions import biject_to
from torch.utils import _pytree as pytree

from vi_reparam.backend.lock import one_at_a_time
from vi_reparam.backend.tracer import Given, PlateInfo, Record, Statement
from vi_reparam.numerics.rows import spread
from vi_reparam.sites.recorder import Recorder, recording
from vi_reparam_pyro.host.densities import log_prob
from vi_reparam_pyro.host.distributions import Estimated
from vi_reparam_pyro.host.handlers import is_subsample
from vi_reparam_pyro.host.params import clean, isolated, using
from vi_reparam_pyro.host.supports import Supports
from vi_reparam_pyro.lanes.seeding import mix
from vi_reparam_pyro.lanes.vmap import drawing, keyed, without_validation
from vi_reparam_pyro.ops.home import at_home
from vi_reparam_pyro.ops.ops import ops

Array = Any
T = TypeVar("T")


@one_at_a_time
class PyroTracer:
    """`vi_reparam.backend.tracer.Tracer` for Pyro."""

    def run(
        self,
        program: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        key: int,
        *,
        params: Mapping[str, Array] | None = None,
        values: Given | None = None,
        recorder: Recorder | None = None,
        full_data: bool = False,
        frozen: bool = False,
        resample: bool = False,
        alone: bool = False,
        partial: bool = False,
    ) -> dict[str, Record]:
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            enter(at_home(*pytree.tree_leaves((args, dict(kwargs)))))
            if alone:
                for context in (poutine.block(), isolated(), _dimensions_of_its_own()):
                    enter(context)
            enter(keyed(key))
            enter(drawing())
            enter(_Rows())
            if full_data:
                enter(_full_data())
            if params is not None:
                enter(using(dict(params), partial=partial))
            if frozen:
                enter(_Frozen())
            # innermost first: what is entered earlier sees what the others left
            tracing = enter(poutine.trace())
            if recorder is not None:
                enter(recording(recorder))
                enter(_Collect(recorder))
            if alone:
                enter(_Origin())
            if values is not None:
                enter(_Given(values))
            if resample:
                enter(_Resample())
            program(*args, **kwargs)
        return _records(tracing)

    def within(
        self, program: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Record]:
        with poutine.trace() as tracing:
            program(*args, **kwargs)
        return _records(tracing)

    def shapes(self, fn: Callable[[int], T]) -> T:
        with torch.no_grad(), isolated(), without_validation():
            return fn(mix(0))

    def outer_params(self, program: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        hidden, tracing = poutine.block(hide_fn=_is_no_param), poutine.trace()
        # nothing is drawn that need not be: a step that reads torch's global state cannot be captured
        with hidden, _dimensions_of_its_own(), keyed(mix(0)), drawing(), tracing, _Origin(improper_only=False):
            program(*args, **kwargs)
        return {clean(n): s["value"] for n, s in tracing.get_trace().nodes.items() if not _is_no_param(s)}  # type: ignore

    def constants(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def depends(
        self, fn: Callable[[Mapping[str, Array]], Mapping[Any, Array]], inputs: Mapping[str, Array]
    ) -> dict[Any, frozenset[str]]:
        tags: dict[str, Array] = {}
        given = {}
        with torch.enable_grad():
            for name, value in inputs.items():
                if value.is_floating_point():
                    tags[name] = torch.zeros_like(value, requires_grad=True)
                    value = value.detach() + tags[name]
                given[name] = track_provenance(value, frozenset({name}))
            found = fn(given)
        # two marks: provenance, which discrete values carry too, and the autograd graph, which no function loses
        return {
            name: (frozenset(get_provenance(array)) & inputs.keys()) | _reached(array, tags)
            for name, array in found.items()
        }

    def arrays_of(self, support: Any) -> list[Array]:
        found: list[Array] = []
        for part in vars(support).values() if hasattr(support, "__dict__") else ():
            if isinstance(part, constraints.Constraint):
                found += self.arrays_of(part)
            elif isinstance(part, torch.Tensor):
                found.append(part)
        return found


def _is_no_param(msg: Any) -> bool:
    return msg["type"] != "param"


def _reached(array: Array, tags: dict[str, Array]) -> frozenset[str]:
    """The tags in the autograd graph of an array."""
    leaves = {id(tag): name for name, tag in tags.items()}
    todo, seen, found = [array.grad_fn], set(), set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in leaves:
            found.add(leaves[id(leaf)])
        todo += [parent for parent, _ in node.next_functions]
    return frozenset(found)


@contextlib.contextmanager
def _dimensions_of_its_own() -> Iterator[None]:
    """Plates that are open around the call leave the program's plates their names and dimensions."""
    taken, _DIM_ALLOCATOR._stack = _DIM_ALLOCATOR._stack, []
    try:
        yield
    finally:
        _DIM_ALLOCATOR._stack = taken


@contextlib.contextmanager
def _full_data() -> Iterator[None]:
    """Switches the subsampling of plates off: their indices run over all of the data.

    A plate checks its indices against its own subsample size before any handler sees it, so
    handlers cannot do this.
    """
    host = SubsampleMessenger._subsample

    def whole(
        name: str,
        size: Any = None,
        subsample_size: Any = None,
        subsample: Any = None,
        use_cuda: Any = None,
        device: Any = None,
    ) -> Any:
        return host(name, size, None, None, use_cuda, device)

    SubsampleMessenger._subsample = staticmethod(whole)  # type: ignore[method-assign]
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(host)  # type: ignore[method-assign]


class _Rows(Messenger):
    """Draws minibatches by `spread`: Pyro's own way permutes all rows for each, by torch's global state."""

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if is_subsample(fn) and msg["value"] is None and 0 < (fn.subsample_size or fn.size) < fn.size:
            msg["value"] = spread(ops, ops.root_key(), int(fn.size), int(fn.subsample_size))


class _Frozen(Messenger):
    """Parameters as constants."""

    def _pyro_post_param(self, msg: Any) -> None:
        msg["value"] = msg["value"].detach()


class _Collect(Messenger):
    """Outermost around the guide: gives every estimated site its name and takes note of its draw."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or not isinstance(msg["fn"], Estimated):
            return
        made = msg["fn"].at(msg["name"])
        msg["fn"] = made
        self.recorder.consume(msg["name"])
        if msg["value"] is not None:  # replayed or substituted: give it its gradient back
            msg["value"] = made.emit(made.draw(ops.root_key(), value=msg["value"]))


class _Given(Messenger):
    """Gives latent sites and plates' indices their values."""

    def __init__(self, values: Given) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["infer"].get("_deterministic"):
            return
        if not callable(self.values):
            msg["value"] = self.values.get(msg["name"], msg["value"])
        elif not is_subsample(msg["fn"]):
            found = self.values(Statement(msg["name"], msg["fn"], _plates(msg)))
            msg["value"] = msg["value"] if found is None else found


class _Origin(Messenger):
    """Latents are at the unconstrained origin; on a sphere, at equal coordinates.

    Args:
        improper_only: only those that cannot be drawn; else all that are continuous.
    """

    def __init__(self, *, improper_only: bool = True) -> None:
        super().__init__()
        self.improper_only = improper_only

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or is_subsample(msg["fn"]):
            return
        can_be_drawn = _innermost(msg["fn"]) != "ImproperUniform"
        if can_be_drawn and (self.improper_only or msg["fn"].support.is_discrete):
            return
        support, shape = msg["fn"].support, torch.Size(msg["fn"].shape())
        if Supports().support_kind(support) == "sphere":  # it has no bijection
            msg["value"] = torch.full(shape, shape[-1] ** -0.5)
            return
        transform = biject_to(support)
        msg["value"] = transform(torch.zeros(transform.inverse_shape(shape)))


class _Resample(Messenger):
    """Draws observed sites afresh, in the shape of what was observed."""

    def _pyro_sample(self, msg: Any) -> None:
        determined = msg["infer"].get("_deterministic")
        if not msg["is_observed"] or determined or _innermost(msg["fn"]) == "Unit":
            return
        fn, shape = msg["fn"], tuple(msg["value"].shape)
        batch_shape = torch.broadcast_shapes(fn.batch_shape, shape[: len(shape) - fn.event_dim])
        if batch_shape != fn.batch_shape:
            msg["fn"] = fn.expand(batch_shape)  # an observation may be wider than its distribution
        msg["value"], msg["is_observed"] = None, False


def _innermost(fn: Any) -> str:
    """The name of the class inside all wrappers."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__


def _plates(msg: Any) -> tuple[PlateInfo, ...]:
    found = []
    for frame in msg["cond_indep_stack"]:
        full = frame.size if frame.full_size is None else frame.full_size
        found.append(PlateInfo(frame.name, frame.dim if frame.vectorized else None, int(full), int(frame.size)))
    return tuple(found)


def _records(tracing: Any) -> dict[str, Record]:
    nodes = tracing.get_trace().nodes
    return {_plain(name, site): _record(name, site) for name, site in nodes.items() if "name" in site}


def _plain(name: str, msg: Any) -> str:
    return clean(name) if msg["type"] == "param" else name


def _record(name: str, msg: Any) -> Record:
    if msg["type"] == "param":
        return Record("param", msg["value"])
    fn, value = msg["fn"], msg["value"]
    if is_subsample(fn):
        size = int(fn.size)
        part = size if fn.subsample_size is None or fn.subsample_size < 0 else int(fn.subsample_size)
        return Record("plate", value, plates=(PlateInfo(name, None, size, part),))
    if msg["infer"].get("_deterministic"):
        return Record("deterministic", value, plates=_plates(msg))
    return Record(
        "sample",
        value,
        distribution=fn,
        log_prob=functools.partial(log_prob, fn, value),
        observed=msg["is_observed"],
        scale=msg["scale"],
        mask=msg["mask"],
        plates=_plates(msg),
        is_auxiliary=bool(msg["infer"].get("is_auxiliary")),
        is_factor=msg["is_observed"] and _innermost(fn) == "Unit",
        event_dims=tuple(msg["infer"].get("event_dims", ())),
        enumeration=str(msg["infer"].get("enumerate") or ""),
    )


tracer = PyroTracer()
