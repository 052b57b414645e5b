"""Draws from a fitted guide, scored under the guide and the model, on all of the data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch.utils import _pytree as pytree

from vi_reparam.errors import ArgumentError, SiteError
from vi_reparam.posterior.sites import Scored, Site, Sites, bound_arguments
from vi_reparam_pyro.engine.arguments import as_tensors, is_array, to_numpy
from vi_reparam_pyro.host.params import isolated, using
from vi_reparam_pyro.lanes.vmap import drawing, keyed, vectorized
from vi_reparam_pyro.ops.ops import mix
from vi_reparam_pyro.run import sample_sites, scaled

Array = Any

CHUNK_BUDGET = 2**22  # scalars of sites held at once
MAX_CHUNK = 500


class ReadsValuesError(Exception):
    """A function or program reads a draw's value in Python."""


@contextlib.contextmanager
def full_data() -> Iterator[None]:
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


class Scorer:
    """Draws from the guide and scores, many draws at once where the program allows it.

    Args:
        model: Pyro model.
        guide: its guide.
        params: constrained values of both's param sites.
        args: positional arguments of the fit.
        kwargs: keyword arguments of the fit.

    Raises:
        ArgumentError: a parameter is missing.
        SiteError: guide and model do not have the same latent sites, in the same shapes.
    """

    def __init__(self, model: Any, guide: Any, params: dict, args: tuple, kwargs: dict) -> None:
        self.model, self.guide = model, guide
        self.params = {name: torch.as_tensor(value) for name, value in params.items()}
        self.args, self.kwargs = as_tensors(args, kwargs)
        with self._ready(), keyed(mix(0)):
            self.sites = describe(*self.traces())
        self.in_lanes = self._fits_lanes()

    def _fits_lanes(self) -> bool:
        try:
            self._many(lambda: self.score(), 2, mix(0))
        except (ReadsValuesError, RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
            return False
        return True

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        """The parameters in place, all of the data, no gradients, and a store of our own."""
        with torch.no_grad(), isolated(), full_data(), drawing(), using(self.params):
            yield

    def draw_guide(self) -> Any:
        """One draw of the guide, as a trace."""
        return poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)

    def traces(self) -> tuple[Any, Any]:
        """The model's trace under the guide's draws, and the guide's."""
        guide_trace = self.draw_guide()
        replayed = poutine.replay(self.model, trace=guide_trace)
        return poutine.trace(replayed).get_trace(*self.args, **self.kwargs), guide_trace

    def score(self) -> Scored:
        """One draw with its log densities."""
        model_trace, guide_trace = self.traces()
        model_sites = sample_sites(model_trace)
        return Scored(
            latents={n: s["value"] for n, s in model_sites.items() if not s["is_observed"]},
            deterministics=deterministics(model_trace),
            log_likelihood={n: s["fn"].log_prob(s["value"]) for n, s in model_sites.items() if is_data(s)},
            log_p=total_log_prob(model_sites),
            log_q=total_log_prob(sample_sites(guide_trace)),
        )

    def run(self, pick: Callable[[Scored], Any], num_draws: int, key: int) -> Any:
        """What `pick` takes from each of `num_draws` scored draws, stacked.

        Args:
            pick: a function of a scored draw.
            num_draws: how many.
            key: the i-th draw depends on this key and i alone, not on `num_draws`.

        Returns:
            The result of `pick` with a leading dimension of `num_draws`.

        Raises:
            ReadsValuesError: if `pick` reads a value in Python.
        """
        return self.stacked(lambda: pick(self.score()), num_draws, key)

    def stacked(self, one: Callable[[], Any], num_draws: int, key: int, scalars: int = 0) -> Any:
        """`one()` again and again, each time with its own noise; results stacked.

        Args:
            scalars: what one call holds beyond model and guide.
        """
        if not self.in_lanes:
            with self._ready():
                runs = []
                for i in range(num_draws):
                    with keyed(mix(key ^ mix(i + 1))):
                        runs.append(pytree.tree_map(torch.as_tensor, one()))
            return pytree.tree_map(lambda *xs: torch.stack(xs), runs[0], *runs[1:])
        # chunks of one size, so that the noise of a draw does not depend on how many there are
        size = int(np.clip(CHUNK_BUDGET // max(self.sites.scalars + scalars, 1), 1, MAX_CHUNK))
        chunks = [self._many(one, size, mix(key ^ mix(i + 1))) for i in range(-(-num_draws // size))]
        return pytree.tree_map(lambda *xs: torch.cat(xs)[:num_draws], chunks[0], *chunks[1:])

    def _many(self, one: Callable[[], Any], num: int, key: int) -> Any:
        try:
            with self._ready():
                return vectorized(one, num, key)
        except RuntimeError as error:
            if "vmap" in str(error) or ".item()" in str(error):
                raise ReadsValuesError(str(error)) from error
            raise

    def observed(self) -> dict[str, np.ndarray]:
        """The observed sites' values."""
        with self._ready(), keyed(mix(0)):
            model_trace, _ = self.traces()
        return {n: to_numpy(s["value"]) for n, s in sample_sites(model_trace).items() if is_data(s)}

    def named_arrays(self) -> dict[str, np.ndarray]:
        """The arrays among the fit's arguments, named after the model's signature."""
        bound = bound_arguments(self.model, self.args, self.kwargs)
        out = {}
        for path, leaf in pytree.tree_flatten_with_path(bound)[0]:
            if is_array(leaf):
                out["_".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)] = to_numpy(leaf)
        return out


def deterministics(trace: Any) -> dict[str, Array]:
    """The values of `pyro.deterministic` sites."""
    return {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and s["infer"].get("_deterministic")}


def total_log_prob(sites: dict[str, Any]) -> Array:
    """Sum of log densities, factors, masks and scales included."""
    total = torch.zeros(())
    for site in sites.values():
        total = total + scaled(site, torch.as_tensor(site["fn"].log_prob(site["value"]))).sum()
    return total


def describe(model_trace: Any, guide_trace: Any) -> Sites:
    """The form of a pair of traces, checked.

    Raises:
        SiteError: the latents of the two traces do not agree.
    """
    model_sites, guide_sites = sample_sites(model_trace), sample_sites(guide_trace)
    latents = {n: form(s) for n, s in model_sites.items() if not s["is_observed"]}
    drawn = {n: s for n, s in guide_sites.items() if not s["is_observed"]}
    _check_pair(latents, drawn)
    determined = {n: s for n, s in model_trace.nodes.items() if n in deterministics(model_trace)}
    deltas = [n for n in latents if isinstance(_unwrapped(drawn[n]["fn"]), Delta)]
    auxiliary = any(s["infer"].get("is_auxiliary") for s in drawn.values())
    both = [*model_sites.values(), *guide_sites.values(), *determined.values()]
    return Sites(
        latents=latents,
        observed={n: form(s) for n, s in model_sites.items() if is_data(s)},
        deterministics={n: form(s) for n, s in determined.items()},
        plate_sizes={f.name: int(f.full_size) for s in both for f in s["cond_indep_stack"] if f.vectorized},
        scalars=sum(s["value"].numel() for s in both),
        is_point=bool(deltas) and not auxiliary,
    )


def _check_pair(latents: dict[str, Site], drawn: dict[str, Any]) -> None:
    missing = [name for name in latents if name not in drawn]
    if missing:
        raise SiteError(f"the guide does not draw the model's {', '.join(missing)}; add a site of that name to it")
    extra = [n for n, s in drawn.items() if n not in latents and not s["infer"].get("is_auxiliary")]
    if extra:
        raise SiteError(f"the guide draws {', '.join(extra)}, not in the model; mark it infer={{'is_auxiliary': True}}")
    for name, site in latents.items():
        given, expected = tuple(drawn[name]["value"].shape), site.shape
        if given != expected:
            raise SiteError(
                f"site {name!r} has shape {given} in the guide and {expected} in the model; make them agree"
            )


def form(site: Any) -> Site:
    """The form of one site of a trace."""
    value, determined = site["value"], site["infer"].get("_deterministic")
    event_dim = 0 if determined else site["fn"].event_dim
    shape = tuple(value.shape) if site["is_observed"] else tuple(site["fn"].shape())
    plates = {}
    for frame in site["cond_indep_stack"]:
        if not frame.vectorized:
            continue
        dim = len(shape) - event_dim + frame.dim
        # a deterministic site may have event dimensions of its own: the size tells
        if dim >= 0 and shape[dim] == frame.size:
            plates[dim] = frame.name
    return Site(shape=shape, dtype=str(value.dtype).removeprefix("torch."), plates=plates)


def is_data(site: Any) -> bool:
    """Whether a site is observed data, and neither a factor nor determined by others."""
    return (
        site["type"] == "sample"
        and site["is_observed"]
        and not site["infer"].get("_deterministic")
        and not isinstance(_unwrapped(site["fn"]), Unit)
    )


def _unwrapped(fn: Any) -> Any:
    while hasattr(fn, "base_dist") or hasattr(fn, "estimator"):
        fn = fn.base if hasattr(fn, "estimator") else fn.base_dist
    return fn


def key_of(seed: Any) -> int:
    """A key of an int.

    Raises:
        ArgumentError: it is none.
    """
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        return mix(int(seed) & ((1 << 63) - 1))
    raise ArgumentError(f"seed is {seed!r}; give an int")
