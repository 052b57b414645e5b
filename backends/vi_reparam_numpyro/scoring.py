"""Draws from a fitted guide, scored under the guide and the model, on all of the data."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import Delta, Unit
from numpyro.primitives import Messenger

from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.posterior.sites import Scored, Site, Sites, bound_arguments
from vi_reparam.sites.draw import Sampled
from vi_reparam_numpyro.engine.arguments import jit_once
from vi_reparam_numpyro.host.distributions import Estimated
from vi_reparam_numpyro.run import model_log_prob

CHUNK_BUDGET = 2**22  # scalars of sites held at once
CACHE_SIZE = 32
NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


class full_data(Messenger):  # noqa: N801 (handlers are lower case in NumPyro)
    """Switches the subsampling of plates off: their indices run over all of the data."""

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "plate":
            size = msg["args"][0]
            msg["args"] = (size, size)
            msg["value"] = jnp.arange(size)


class Arguments:
    """A call's arguments, split into arrays (traced) and the rest (closed over).

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        arrays: the leaves that are traced.
        key: hashable description of what is closed over; None where it has none.
    """

    def __init__(self, args: tuple, kwargs: dict, *, close_over: bool = False) -> None:
        self.args, self.kwargs = tuple(args), dict(kwargs)
        leaves, self._treedef = jax.tree.flatten((self.args, self.kwargs))
        # scalars may be sizes, so they stay as they are
        self._is_array = [not close_over and is_array(leaf) and np.ndim(leaf) > 0 for leaf in leaves]
        self._leaves = [None if traced else leaf for leaf, traced in zip(leaves, self._is_array, strict=True)]
        self.arrays = [leaf for leaf, traced in zip(leaves, self._is_array, strict=True) if traced]
        self.key = self._make_key()

    def _make_key(self) -> Hashable | None:
        key = (self._treedef, tuple(self._is_array), tuple(self._leaves))
        try:
            hash(key)
        except TypeError:
            return None
        return key

    def merge(self, arrays: list) -> tuple[tuple, dict]:
        """The arguments with `arrays` in place of their own."""
        rest = iter(arrays)
        leaves = [next(rest) if traced else leaf for leaf, traced in zip(self._leaves, self._is_array, strict=True)]
        return jax.tree.unflatten(self._treedef, leaves)

    @classmethod
    def traceable(cls, args: tuple, kwargs: dict, probe: Callable[[Arguments], Any]) -> Arguments:
        """Traces the arrays, or closes over them where the model reads them in Python.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.
            probe: runs the model abstractly on the split arguments.

        Returns:
            The arguments, split so that `probe` passes.
        """
        try:
            arguments = cls(args, kwargs)
            probe(arguments)
        except NEEDS_VALUES:
            arguments = cls(args, kwargs, close_over=True)
            probe(arguments)
        return arguments


class Scorer:
    """Draws from the guide and scores, jitted, in chunks, each form of call compiled once.

    Args:
        model: NumPyro model.
        guide: its guide.
        params: constrained values of both's `numpyro.param` sites.
        args: positional arguments of the fit.
        kwargs: keyword arguments of the fit.

    Raises:
        ArgumentError: a parameter is missing.
        SiteError: guide and model do not have the same latent sites, in the same shapes.
    """

    def __init__(self, model: Callable, guide: Callable, params: dict, args: tuple, kwargs: dict) -> None:
        self.model, self.guide, self.params = model, guide, dict(params)
        self.sites: Sites
        self.arguments = Arguments.traceable(args, kwargs, self._describe)
        self._compiled: OrderedDict[Hashable, Callable] = OrderedDict()

    def _describe(self, arguments: Arguments) -> None:
        found = []

        def run(key, params, arrays):
            args, kwargs = arguments.merge(arrays)
            model_trace, guide_trace = traces(self.model, self.guide, params, args, kwargs, key)
            found.append(describe(model_trace, guide_trace, params))
            return jnp.zeros(())

        jax.eval_shape(run, jax.random.key(0), self.params, arguments.arrays)
        self.sites = found[-1]

    def observed(self) -> dict[str, np.ndarray]:
        """The observed sites' values."""

        @jax.jit
        def values(params, arrays):
            args, kwargs = self.arguments.merge(arrays)
            model_trace, _ = traces(self.model, self.guide, params, args, kwargs, jax.random.key(0))
            return {name: site["value"] for name, site in model_trace.items() if is_data(site)}

        return {name: np.asarray(value) for name, value in values(self.params, self.arguments.arrays).items()}

    def named_arrays(self) -> dict[str, np.ndarray]:
        """The arrays among the fit's arguments, named after the model's signature."""
        out = {}
        bound = bound_arguments(self.model, self.arguments.args, self.arguments.kwargs)
        for path, leaf in jax.tree_util.tree_flatten_with_path(bound)[0]:
            name = "_".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)
            is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            if is_array(leaf) and not is_key:
                out[name] = np.asarray(leaf)
        return out

    def run(self, pick: Callable[[Scored], Any], num_draws: int, key: jax.Array) -> Any:
        """What `pick` takes from each of `num_draws` scored draws, stacked.

        Args:
            pick: a function that stays the same object from call to call, or it compiles anew.
            num_draws: how many.
            key: the i-th draw depends on this key and i alone, not on `num_draws`.

        Returns:
            The result of `pick` with a leading dimension of `num_draws`.
        """

        def one(key, params, arrays):
            args, kwargs = self.arguments.merge(arrays)
            return pick(score(self.model, self.guide, params, args, kwargs, key))

        call = self.compiled(pick, lambda: one, num_draws)
        return call(key, self.params, self.arguments.arrays)

    def compiled(
        self, name: Hashable | None, make: Callable[[], Callable], num_draws: int, scalars: int = 0
    ) -> Callable:
        """A jitted, chunked form of `make()`, a function of a key and more; kept under `name`."""
        cache_key = (name, num_draws)
        if name is not None and cache_key in self._compiled:
            self._compiled.move_to_end(cache_key)
            return self._compiled[cache_key]
        one, scalars = make(), self.sites.scalars + scalars
        call = jit_once(
            lambda key, *rest: in_chunks(lambda k: one(k, *rest), key, num_draws, scalars),
            (self.arguments.args, self.arguments.kwargs),
            size=scalars,
        )
        if name is not None:
            self._compiled[cache_key] = call
            if len(self._compiled) > CACHE_SIZE:
                self._compiled.popitem(last=False)
        return call


def traces(
    model: Callable, guide: Callable, params: dict, args: tuple, kwargs: dict, key: jax.Array
) -> tuple[dict, dict]:
    """The guide's trace and the model's under its draws, both on all of the data.

    Args:
        model: NumPyro model.
        guide: its guide.
        params: constrained parameters of both.
        args: positional arguments.
        kwargs: keyword arguments.
        key: a `jax.random` key.

    Returns:
        (model trace, guide trace).
    """
    guide_key, model_key = jax.random.split(key)
    guide_trace = draw_guide(guide, params, args, kwargs, guide_key)
    latents = OrderedDict((name, site) for name, site in guide_trace.items() if is_latent(site))
    replayed = handlers.replay(handlers.seed(handlers.substitute(full_data(model), data=params), model_key), latents)
    return handlers.trace(replayed).get_trace(*args, **kwargs), guide_trace


def draw_guide(guide: Callable, params: dict, args: tuple, kwargs: dict, key: jax.Array) -> dict:
    """One draw of the guide on all of the data, as a trace."""
    seeded = handlers.seed(handlers.substitute(full_data(guide), data=params), key)
    return handlers.trace(seeded).get_trace(*args, **kwargs)


def score(model: Callable, guide: Callable, params: dict, args: tuple, kwargs: dict, key: jax.Array) -> Scored:
    """One draw with its log densities (arguments as in `traces`)."""
    model_trace, guide_trace = traces(model, guide, params, args, kwargs, key)
    return Scored(
        latents={name: site["value"] for name, site in model_trace.items() if is_latent(site)},
        deterministics={n: s["value"] for n, s in model_trace.items() if s["type"] == "deterministic"},
        log_likelihood={n: site_log_prob(s) for n, s in model_trace.items() if is_data(s)},
        log_p=total_log_prob(model_trace, guide_trace),
        log_q=total_log_prob(guide_trace),
    )


def total_log_prob(trace: dict, guide_trace: dict | None = None) -> jax.Array:
    """Sum of a trace's log densities, factors and scales included.

    Args:
        trace: of the guide or the model.
        guide_trace: of the guide, whose draws remember their precise logarithms.
    """
    total = jnp.zeros(())
    for name, site in trace.items():
        if site["type"] == "sample":
            drawn = precise_draw(guide_trace[name]) if guide_trace and is_latent(site) else None
            log_prob = site_log_prob(site) if drawn is None else model_log_prob(site, drawn)
            scale = site["scale"]
            total = total + jnp.sum(log_prob if scale is None else scale * log_prob)
    return total


def precise_draw(site: dict) -> Sampled | None:
    """What a guide site of ours remembers of its draw."""
    return site["fn"].drawn(site["value"]) if isinstance(site["fn"], Estimated) else None


def site_log_prob(site: dict) -> jax.Array:
    """A site's own log density, by the distribution that drew it: ours remember the precise draw."""
    if site["intermediates"]:
        return site["fn"].log_prob(site["value"], site["intermediates"])
    return site["fn"].log_prob(site["value"])


def describe(model_trace: dict, guide_trace: dict, params: dict) -> Sites:
    """The form of a pair of traces, checked.

    Args:
        model_trace: from `traces`.
        guide_trace: from `traces`.
        params: the parameters that the traces were made with.

    Returns:
        The sites.

    Raises:
        ArgumentError: a parameter is missing.
        SiteError: the latents of the two traces do not agree.
    """
    both = [*model_trace.values(), *guide_trace.values()]
    missing = sorted({s["name"] for s in both if s["type"] == "param"} - set(params))
    if missing:
        raise ArgumentError(
            f"no value for the parameters {', '.join(missing)}; pass the params of this model's own fit"
        )
    latents = {n: _form(s) for n, s in model_trace.items() if is_latent(s)}
    drawn = {n: s for n, s in guide_trace.items() if is_latent(s)}
    _check_pair(latents, drawn)
    deltas = [n for n in latents if isinstance(_unwrapped(drawn[n]["fn"]), Delta)]
    auxiliary = any(s["infer"].get("is_auxiliary") for s in drawn.values())
    values = [s["value"] for s in both if s["type"] in ("sample", "deterministic")]
    return Sites(
        latents=latents,
        observed={n: _form(s) for n, s in model_trace.items() if is_data(s)},
        deterministics={n: _form(s) for n, s in model_trace.items() if s["type"] == "deterministic"},
        plate_sizes={s["name"]: s["args"][0] for s in model_trace.values() if s["type"] == "plate"},
        scalars=sum(int(np.prod(np.shape(v), dtype=np.int64)) for v in values),
        is_point=bool(deltas) and not auxiliary,
    )


def _check_pair(latents: dict[str, Site], drawn: dict[str, dict]) -> None:
    missing = [name for name in latents if name not in drawn]
    if missing:
        raise SiteError(f"the guide does not draw the model's {', '.join(missing)}; add a site of that name to it")
    extra = [n for n, s in drawn.items() if n not in latents and not s["infer"].get("is_auxiliary")]
    if extra:
        raise SiteError(f"the guide draws {', '.join(extra)}, not in the model; mark it infer={{'is_auxiliary': True}}")
    for name, site in latents.items():
        given, expected = np.shape(drawn[name]["value"]), site.shape
        if given != expected:
            raise SiteError(
                f"site {name!r} has shape {given} in the guide and {expected} in the model; make them agree"
            )


def _form(site: dict) -> Site:
    value = site["value"]
    shape = tuple(np.shape(value))
    event_dim = site["fn"].event_dim if site["type"] == "sample" else 0
    if site["type"] == "sample" and not site["is_observed"]:
        shape = tuple(site["fn"].shape())  # what the model wants, to compare with what the guide gave
    plates = {}
    for frame in site["cond_indep_stack"]:
        dim = len(shape) - event_dim + frame.dim
        # a deterministic site may have event dimensions of its own: the size tells
        if dim >= 0 and shape[dim] == frame.size:
            plates[dim] = frame.name
    return Site(shape=shape, dtype=str(jnp.result_type(value)), plates=plates)


def is_latent(site: dict) -> bool:
    """Whether a site is drawn."""
    return site["type"] == "sample" and not site["is_observed"]


def is_data(site: dict) -> bool:
    """Whether a site is observed data, and not a factor."""
    return site["type"] == "sample" and site["is_observed"] and not isinstance(_unwrapped(site["fn"]), Unit)


def is_array(leaf: Any) -> bool:
    """Whether a leaf of the arguments is an array of numbers."""
    return isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc")


def _unwrapped(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def in_chunks(one: Callable[[jax.Array], Any], key: jax.Array, num_draws: int, scalars: int) -> Any:
    """Runs `one` for `num_draws` keys, vectorized as far as the memory budget goes.

    Args:
        one: a function of a key.
        key: the i-th call gets this key with i folded in.
        num_draws: how many.
        scalars: what one call holds.

    Returns:
        The results, stacked.
    """
    chunk = max(1, min(num_draws, CHUNK_BUDGET // max(scalars, 1)))
    num_chunks = -(-num_draws // chunk)
    chunk = -(-num_draws // num_chunks)  # even chunks: one body, few draws thrown away
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_chunks * chunk))
    if num_chunks == 1:
        return jax.vmap(one)(keys)
    out = jax.lax.map(jax.vmap(one), keys.reshape(num_chunks, chunk))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_draws], out)


def key_of(seed: Any) -> jax.Array:
    """A key of an int or of a `jax.random` key.

    Args:
        seed: either.

    Returns:
        A typed key.

    Raises:
        ArgumentError: it is neither.
    """
    if isinstance(seed, jax.Array):
        if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
            return seed
        if seed.dtype == jnp.uint32 and seed.ndim == 1:
            return jax.random.wrap_key_data(seed)
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        return jax.random.key(int(seed))
    raise ArgumentError(f"seed is {seed!r}; give an int or a jax.random.key")
