"""NumPyro's programs, run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.distributions import ImproperUniform, biject_to
from numpyro.handlers import block, seed, substitute, trace
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import Messenger

from vi_reparam.backend.lock import one_at_a_time
from vi_reparam.backend.tracer import Given, PlateInfo, Record, Statement, without_value
from vi_reparam.errors import ArgumentError
from vi_reparam.numerics.rows import spread
from vi_reparam.sites.recorder import Recorder, recording
from vi_reparam_numpyro.host.distributions import Estimated
from vi_reparam_numpyro.host.supports import Supports
from vi_reparam_numpyro.ops.ops import ops

Array = Any
T = TypeVar("T")


@one_at_a_time
class NumpyroTracer:
    """`vi_reparam.backend.tracer.Tracer` for NumPyro."""

    def run(
        self,
        program: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        key: Any,
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
        # innermost first: what comes later sees what the others left
        fn: Any = _FullData(program) if full_data else program
        fn = _Rows(_Resample(fn) if resample else fn)
        given_key = None
        if recorder is not None:
            key, given_key = random.split(key)
        fn = seed(fn, key)
        if callable(values):
            loops = _Loops(fn)
            fn = substitute(loops, substitute_fn=functools.partial(_given, values, loops))
        elif values is not None:
            fn = substitute(fn, data=dict(values))
        if alone:
            fn = substitute(fn, substitute_fn=_origin)
        if params is not None:
            fn = substitute(fn, data=dict(params))
        if frozen:
            fn = _Frozen(fn)
        if recorder is not None:
            fn = _Collect(fn, recorder, given_key)
        with block() if alone else contextlib.nullcontext(), recording(recorder):
            sites = _Named(fn).get_trace(*args, **kwargs)
        if params is not None and not partial:
            _require_params(sites, params)
        return _records(sites)

    def within(
        self, program: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Record]:
        return _records(trace(program).get_trace(*args, **kwargs))

    def shapes(self, fn: Callable[[Any], T]) -> T:
        found: list[T] = []

        def look(key: Any) -> Array:
            found.append(fn(key))
            return jnp.zeros(())

        jax.eval_shape(look, random.key(0))
        return found[0]

    def outer_params(self, program: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with block(hide_fn=lambda msg: msg["type"] != "param"):
            found = trace(substitute(seed(program, random.key(0)), substitute_fn=_origin)).get_trace(*args, **kwargs)
        return {name: site["value"] for name, site in found.items() if site["type"] == "param"}

    def constants(self) -> contextlib.AbstractContextManager[None]:
        return jax.ensure_compile_time_eval()

    def depends(
        self, fn: Callable[[Mapping[str, Array]], Mapping[Any, Array]], inputs: Mapping[str, Array]
    ) -> dict[Any, frozenset[str]]:
        names: list[Any] = []

        def outputs(**given: Array) -> list[Array]:
            found = fn(given)
            names[:] = list(found)
            return [found[name] for name in names]

        found = eval_provenance(outputs, **inputs)
        return {name: frozenset(own) for name, own in zip(names, found, strict=True)}

    def arrays_of(self, support: Any) -> list[Array]:
        return [leaf for leaf in jax.tree.leaves(support) if hasattr(leaf, "shape")]


_KINDS = ("sample", "param", "deterministic", "plate", "mutable")


class _FullData(Messenger):
    """Switches the subsampling of plates off: their indices run over all of the data."""

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "plate" and not msg.get("is_part"):
            size = msg["args"][0]
            msg["args"] = (size, size)
            msg["value"] = jnp.arange(size)


class _Named(trace):
    """Refuses two things of one name: the host forgets the first where the second is a parameter or a plate."""

    def postprocess_message(self, msg: Any) -> None:
        other = self.trace.get(msg.get("name"))
        if other is not None and other["type"] != msg["type"]:
            raise ArgumentError(
                f"site {msg['name']!r} is a {_CALLED.get(other['type'], other['type'])} and a "
                f"{_CALLED.get(msg['type'], msg['type'])}: give each a name of its own"
            )
        super().postprocess_message(msg)


_CALLED = {
    "sample": "sample site",
    "param": "parameter",
    "mutable": "mutable site",
    "deterministic": "determined value",
}


class _Rows(Messenger):
    """Draws minibatches by `spread`: NumPyro's own way makes an array of all rows for each."""

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "plate" and msg["value"] is None:
            msg["fn"] = lambda size, batch, rng_key: spread(ops, rng_key, size, batch)


class _Resample(Messenger):
    """Draws observed sites afresh, in the shape of what was observed."""

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or not msg["is_observed"] or _innermost(msg["fn"]) == "Unit":
            return
        fn, shape = msg["fn"], jnp.shape(msg["value"])
        batch_shape = jnp.broadcast_shapes(fn.batch_shape, shape[: len(shape) - fn.event_dim])
        if batch_shape != tuple(fn.batch_shape):
            msg["fn"] = fn.expand(batch_shape)  # an observation may be wider than its distribution
        msg["value"], msg["is_observed"] = None, False


class _Frozen(Messenger):
    """Parameters as constants."""

    def postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "param":
            msg["value"] = jax.tree.map(lax.stop_gradient, msg["value"])


class _Collect(Messenger):
    """Outermost around the guide: gives every estimated site its name and takes note of its draw."""

    def __init__(self, fn: Any, recorder: Recorder, key: Any) -> None:
        super().__init__(fn)
        self.recorder = recorder
        self.key = key

    def postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "control_flow":
            self.recorder.in_control_flow -= 1

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "control_flow":
            self.recorder.in_control_flow += 1
        if msg["type"] != "sample" or msg["is_observed"] or not isinstance(msg["fn"], Estimated):
            return
        msg["fn"] = msg["fn"].at(msg["name"])
        self.recorder.consume(msg["name"])
        if msg["value"] is not None:  # replayed or substituted: give it its gradient back
            self.key, key = random.split(self.key)
            msg["value"] = msg["fn"].emit(msg["fn"].draw(key, value=msg["value"]))


class _Loops(Messenger):
    """Knows whether a loop of NumPyro's is being run."""

    depth = 0

    def process_message(self, msg: Any) -> None:
        self.depth += msg["type"] == "control_flow"

    def postprocess_message(self, msg: Any) -> None:
        self.depth -= msg["type"] == "control_flow"


def _given(values: Callable[[Statement], Array | None], loops: _Loops, msg: Any) -> Array | None:
    if msg["type"] != "sample" or msg["is_observed"]:
        return None
    return values(Statement(msg["name"], msg["fn"], _plates(msg, {}), loops.depth > 0))


def _origin(msg: Any) -> Array | None:
    """Improper latents, which cannot be drawn, are at the unconstrained origin; on a sphere, at equal coordinates."""
    if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
        return None
    if _innermost(msg["fn"]) != ImproperUniform.__name__:
        return None
    support, shape = msg["fn"].support, tuple(msg["fn"].shape())
    if Supports().support_kind(support) == "sphere":  # it has no bijection
        return jnp.full(shape, shape[-1] ** -0.5)
    transform = biject_to(support)
    return transform(jnp.zeros(transform.inverse_shape(shape)))


def _innermost(fn: Any) -> str:
    """The name of the class inside all wrappers."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__


def _require_params(sites: Any, params: Mapping[str, Array]) -> None:
    missing = {n for n, s in sites.items() if s["type"] == "param" and n not in params}
    if missing:
        raise without_value(missing, params)


def _plates(msg: Any, sizes: Mapping[str, Any]) -> tuple[PlateInfo, ...]:
    found = []
    for frame in msg.get("cond_indep_stack", ()):
        size, subsample_size = sizes.get(frame.name, (frame.size, frame.size))
        if subsample_size != frame.size:  # NumPyro takes them, and what is kept by name is that of the last
            raise ArgumentError(
                f"plate {frame.name!r} stands for {frame.size} and {subsample_size} elements: give each its own name"
            )
        found.append(PlateInfo(frame.name, frame.dim, size, subsample_size))
    return tuple(found)


def _records(sites: Mapping[str, Any]) -> dict[str, Record]:
    plates = {n: s["args"] for n, s in sites.items() if s["type"] == "plate"}
    sizes = {n: (size, size if part is None else part) for n, (size, part) in plates.items()}
    return {n: _record(s, sizes) for n, s in sites.items() if s["type"] in _KINDS}


def _record(msg: Any, sizes: Mapping[str, Any]) -> Record:
    if msg["type"] == "plate":
        own = PlateInfo(msg["name"], msg.get("dim"), *sizes[msg["name"]])
        return Record("plate", msg["value"], plates=(own,))
    if msg["type"] != "sample":
        return Record(msg["type"], msg["value"], plates=_plates(msg, sizes))
    fn, value, more = msg["fn"], msg["value"], msg["intermediates"]
    return Record(
        "sample",
        value,
        distribution=fn,
        log_prob=functools.partial(fn.log_prob, value, more) if more else functools.partial(fn.log_prob, value),
        observed=msg["is_observed"],
        scale=msg["scale"],
        plates=_plates(msg, sizes),
        is_auxiliary=bool(msg["infer"].get("is_auxiliary")),
        is_factor=msg["is_observed"] and _innermost(fn) == "Unit",
        event_dims=tuple(msg["infer"].get("event_dims", ())),
        enumeration=str(msg["infer"].get("enumerate") or ""),
    )


tracer = NumpyroTracer()
