"""One run of guide and model: every cost, every score term, and where they stand."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.primitives import Messenger

from vi_reparam.errors import SiteError
from vi_reparam.objectives.plates import PlateDims
from vi_reparam.sites.draw import Sampled
from vi_reparam.sites.recorder import Recorder as Listener
from vi_reparam.sites.recorder import recording as listening
from vi_reparam_numpyro.host.distributions import Estimated, entropy_of, precise_log_prob

Array = Any
Place = tuple[str, str]
"""Where a cost stands: ``("model" or "guide", site name)``."""


@dataclasses.dataclass
class Run:
    """What one particle leaves behind.

    Attributes:
        costs: log p of every model site and -log q (or the entropy) of every guide site, scaled
            by their plates, each of its site's batch shape.
        frames: the plates of every cost, and of every draw under ``("guide", site)``.
        draws: the estimated draws of the guide, by site.
        state: the values at mutable sites.
        sites: names of the latent sites, in the guide's order.
        frozen: whether a joint guide's log q leaves its own parameters out, by site.
        subsampled: names of the model's plates that see minibatches.
    """

    costs: dict[Place, Array]
    frames: dict[Place, PlateDims]
    draws: dict[str, Sampled]
    state: dict[str, Any]
    sites: list[str]
    frozen: dict[str, bool] = dataclasses.field(default_factory=dict)
    subsampled: frozenset[str] = frozenset()


class _Collect(Messenger):
    """Outermost around the guide: gives every estimated site its name and takes note of its draw."""

    def __init__(self, fn: Any, listener: Listener, key: Any) -> None:
        super().__init__(fn)
        self.listener = listener
        self.key = key

    def postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "control_flow":
            self.listener.in_control_flow -= 1

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "control_flow":
            self.listener.in_control_flow += 1
        if msg["type"] != "sample" or msg["is_observed"] or not isinstance(msg["fn"], Estimated):
            return
        msg["fn"] = msg["fn"].at(msg["name"])
        self.listener.consume(msg["name"])
        if msg["value"] is not None:  # replayed or substituted: give it its gradient back
            self.key, key = random.split(self.key)
            msg["value"] = msg["fn"].emit(msg["fn"].draw(key, value=msg["value"]))


def run(
    key: Any,
    params: dict[str, Any],
    model: Any,
    guide: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    entropy: str = "monte_carlo",
    listener: Listener | None = None,
    model_params: dict[str, Any] | None = None,
) -> Run:
    """Run the guide, replay the model, and collect the costs.

    Args:
        params: of both.
        entropy: how log q counts: ``"monte_carlo"``, ``"path"`` (its parameters are constants) or ``"analytic"``.
        model_params: the model's, where they are other arrays than the guide's.

    Raises:
        SiteError: if the guide misses a latent of the model.
        GradientError: if a draw's score term would be lost.
    """
    listener = listener or Listener()
    model_key, guide_key, given_key = random.split(key, 3)
    with listening(listener):
        seeded = substitute(seed(guide, guide_key), data=params)
        guide_trace = trace(_Collect(seeded, listener, given_key)).get_trace(*args, **kwargs)
    listener.finish()
    guide_params, params = params, params if model_params is None else model_params
    params = {**params, **{n: s["value"] for n, s in guide_trace.items() if s["type"] == "mutable"}}
    replayed = substitute(replay(seed(model, model_key), guide_trace), data=params)
    model_trace = trace(replayed).get_trace(*args, **kwargs)
    _check_sites(model_trace, guide_trace)

    plates = {n: s["args"] for n, s in model_trace.items() if s["type"] == "plate"}
    subsampled = frozenset(n for n, (size, subsample_size) in plates.items() if subsample_size not in (None, size))
    held = guide_trace
    if entropy == "path":  # the same draws, under constants: only they move log q, also where one draw rests on another
        values = {n: s["value"] for n, s in guide_trace.items() if s["type"] in ("sample", "plate")}
        again = substitute(seed(guide, guide_key), data={**stopped(guide_params), **values})
        held = trace(again).get_trace(*args, **kwargs)
    result = Run({}, {}, listener.draws, {}, [], listener.frozen, subsampled)
    for name, site in model_trace.items():
        if site["type"] == "mutable":
            result.state[name] = site["value"]
        if site["type"] == "sample":
            known = not site["is_observed"] and name not in listener.altered
            draw = listener.draws.get(name) if known else None
            result.costs["model", name] = _scaled(site, model_log_prob(site, draw))
            result.frames["model", name] = PlateDims.of(site)
    for name, site in guide_trace.items():
        if site["type"] == "mutable":
            result.state[name] = site["value"]
        if site["type"] == "sample" and not site["is_observed"]:
            result.sites.append(name)
            result.costs["guide", name] = _scaled(site, _entropy(site, entropy, held[name], listener.draws.get(name)))
            result.frames["guide", name] = PlateDims.of(site)
    return result


def _check_sites(model_trace: Any, guide_trace: Any) -> None:
    latent = [n for n, s in model_trace.items() if s["type"] == "sample" and not s["is_observed"]]
    for name in latent:
        if name not in guide_trace or guide_trace[name]["type"] != "sample":
            drawn = [n for n, s in guide_trace.items() if s["type"] == "sample"]
            raise SiteError(f"the guide misses the latent site {name!r} of the model: it draws {drawn}")
        given, expected = jnp.shape(guide_trace[name]["value"]), tuple(model_trace[name]["fn"].shape())
        if given != expected and jnp.broadcast_shapes(given, expected) != expected:
            raise SiteError(f"site {name!r}: the guide draws shape {given}, the model expects {expected}")


def model_log_prob(site: Any, drawn: Sampled | None) -> Array:
    """Log density of a model site, from the precise draw of the guide where there is one."""
    fn, value = site["fn"], site["value"]
    fn = fn.base if isinstance(fn, Estimated) else fn
    if drawn is None:
        return fn.log_prob(value)
    return precise_log_prob(fn, value, drawn.family, drawn.draw.logs)


def _entropy(site: Any, kind: str, held: Any, drawn: Sampled | None) -> Array:
    """The entropy of a guide site, or the term that stands for it.

    Args:
        held: the site under constant parameters, for ``"path"``.
    """
    fn, value = site["fn"], site["value"]
    if kind == "analytic":
        return entropy_of(fn)
    if site["intermediates"]:
        return -fn.log_prob(value, site["intermediates"])
    return -(model_log_prob({**held, "value": value}, drawn) if kind == "path" else fn.log_prob(value))


def _scaled(site: Any, log_prob: Array) -> Array:
    log_prob = jnp.broadcast_to(log_prob, jnp.broadcast_shapes(jnp.shape(log_prob), tuple(site["fn"].batch_shape)))
    return log_prob if site["scale"] is None else site["scale"] * log_prob


def stopped(tree: Any) -> Any:
    """The same arrays, as constants."""
    return jax.tree.map(lax.stop_gradient, tree)
