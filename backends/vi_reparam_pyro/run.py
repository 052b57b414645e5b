"""One run of guide and model: every cost, every score term, and where they stand."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger

from vi_reparam.errors import SiteError
from vi_reparam.objectives.plates import PlateDims
from vi_reparam.sites.draw import Sampled
from vi_reparam.sites.recorder import Recorder as Listener
from vi_reparam.sites.recorder import recording as listening
from vi_reparam_pyro.host.densities import log_prob
from vi_reparam_pyro.host.distributions import Estimated, entropy_of, precise_log_prob
from vi_reparam_pyro.host.handlers import is_subsample
from vi_reparam_pyro.lanes.vmap import drawing, keyed
from vi_reparam_pyro.ops.ops import ops

Array = Any
Place = tuple[str, str]
"""Where a cost stands: ``("model" or "guide", site name)``."""
Runner = Callable[..., "Run"]
"""``runner(key, listener=...)``: `run` with its program bound."""


@dataclasses.dataclass
class Run:
    """What one particle leaves behind.

    Attributes:
        costs: log p of every model site and -log q (or the entropy) of every guide site, scaled
            by their plates, each of its site's batch shape.
        frames: the plates of every cost, and of every draw under ``("guide", site)``.
        draws: the estimated draws of the guide, by site.
        sites: names of the latent sites, in the guide's order.
        averages: the decaying averages that the guide holds, by site.
        frozen: whether a joint guide's log q leaves its own parameters out, by site.
        subsampled: names of the model's plates that see minibatches.
        params: the values of the guide's and the model's parameters, by side and name.
    """

    costs: dict[Place, Array]
    frames: dict[Place, PlateDims]
    draws: dict[str, Sampled]
    sites: list[str]
    averages: dict[str, Any]
    frozen: dict[str, bool]
    subsampled: frozenset[str]
    params: dict[Place, Array]


class _Held(Messenger):
    """Parameters as constants."""

    def _pyro_post_param(self, msg: Any) -> None:
        msg["value"] = msg["value"].detach()


class _Collect(Messenger):
    """Outermost around the guide: gives every estimated site its name and takes note of its draw."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self.listener = listener

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or not isinstance(msg["fn"], Estimated):
            return
        made = msg["fn"].at(msg["name"])
        msg["fn"] = made
        self.listener.consume(msg["name"])
        if msg["value"] is not None:  # replayed or substituted: give it its gradient back
            msg["value"] = made.emit(made.draw(ops.root_key(), value=msg["value"]))


def run(
    key: int,
    *,
    model: Any,
    guide: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    entropy: str = "monte_carlo",
    listener: Listener | None = None,
) -> Run:
    """Run the guide, replay the model, and collect the costs; all noise follows from the key.

    Args:
        entropy: how log q counts: ``"monte_carlo"``, ``"path"`` (its parameters are constants) or ``"analytic"``.

    Raises:
        SiteError: if the guide misses a latent of the model.
        GradientError: if a draw's score term would be lost.
    """
    listener = listener or Listener()
    with keyed(key), drawing():
        with listening(listener):
            guide_trace = poutine.trace(_collected(guide, listener)).get_trace(*args, **kwargs)
        listener.finish()
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        held = guide_trace
        if entropy == "path":  # the same draws, under constants: only they move log q, also where one rests on another
            with _Held():
                held = poutine.trace(poutine.replay(guide, trace=guide_trace)).get_trace(*args, **kwargs)
    model_sites, guide_sites = sample_sites(model_trace), sample_sites(guide_trace)
    check_sites(model_sites, guide_sites)

    result = Run(
        {},
        {},
        listener.draws,
        [],
        {} if listener.averages is None else listener.averages,
        listener.frozen,
        _subsampled(model_trace),
        {**_params("guide", guide_trace), **_params("model", model_trace)},
    )
    for name, site in model_sites.items():
        known = not site["is_observed"] and name not in listener.altered
        draw = listener.draws.get(name) if known else None
        result.costs["model", name] = scaled(site, _model_log_prob(site, draw))
        result.frames["model", name] = PlateDims.of(site)
    for name, site in guide_sites.items():
        if not site["is_observed"]:
            result.sites.append(name)
            cost = _entropy(site, entropy, held.nodes[name], listener.draws.get(name))
            result.costs["guide", name] = scaled(site, cost)
            result.frames["guide", name] = PlateDims.of(site)
    return result


def runner_of(model: Any, guide: Any, args: Any, kwargs: Any, entropy: str) -> Runner:
    """`run` with its program bound."""
    return functools.partial(run, model=model, guide=guide, args=args, kwargs=kwargs, entropy=entropy)


def _collected(guide: Any, listener: Listener) -> Callable[..., Any]:
    def program(*args: Any, **kwargs: Any) -> Any:
        with _Collect(listener):
            return guide(*args, **kwargs)

    return program


def sample_sites(trace: Any) -> dict[str, Any]:
    """The random variables of a trace, plates' indices and deterministic sites left out."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not is_subsample(site["fn"]) and not site["infer"].get("_deterministic")
    }


def check_sites(model_sites: dict[str, Any], guide_sites: dict[str, Any]) -> None:
    """Check that the guide draws the model's latents, in shapes that fit.

    Raises:
        SiteError: for one that is missing or has another shape.
    """
    for name, site in model_sites.items():
        if site["is_observed"]:
            continue
        if name not in guide_sites:
            drawn = list(guide_sites)
            raise SiteError(f"the guide misses the latent site {name!r} of the model: it draws {drawn}")
        given, expected = tuple(guide_sites[name]["value"].shape), tuple(site["fn"].shape())
        if given != expected and not _broadcasts(given, expected):
            raise SiteError(f"site {name!r}: the guide draws shape {given}, the model expects {expected}")


def _entropy(site: Any, kind: str, held: Any, drawn: Sampled | None) -> Array:
    """The entropy of a guide site, or the term that stands for it.

    Args:
        held: the site under constant parameters, for ``"path"``.
    """
    if kind == "analytic":
        return entropy_of(site["fn"])
    if kind == "path" and not getattr(site["fn"], "known_by_draws", False):
        return -_model_log_prob({**held, "value": site["value"]}, drawn)
    return -site["fn"].log_prob(site["value"])


def _subsampled(trace: Any) -> frozenset[str]:
    sites = {n: s["fn"] for n, s in trace.nodes.items() if s["type"] == "sample" and is_subsample(s["fn"])}
    return frozenset(n for n, fn in sites.items() if fn.subsample_size is not None and 0 <= fn.subsample_size < fn.size)


def _params(side: str, trace: Any) -> dict[Place, Array]:
    return {(side, name): site["value"] for name, site in trace.nodes.items() if site["type"] == "param"}


def _broadcasts(given: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    try:
        return tuple(torch.broadcast_shapes(given, expected)) == expected
    except RuntimeError:
        return False


def _model_log_prob(site: Any, drawn: Sampled | None) -> Array:
    fn, value = site["fn"], site["value"]
    fn = fn.base if isinstance(fn, Estimated) else fn
    if drawn is None:
        return log_prob(fn, value)
    return precise_log_prob(fn, value, drawn.family, drawn.draw.logs)


def scaled(site: Any, term: Array) -> Array:
    """A site's term, broadcast to its batch shape, masked by its handlers and scaled by its plates."""
    shape = torch.broadcast_shapes(term.shape, tuple(site["fn"].batch_shape))
    return scale_and_mask(term.expand(shape), site["scale"], site["mask"])
