"""A minibatch must be taken by the plate's own indices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from numpyro.handlers import block, seed, substitute, trace
from numpyro.ops.provenance import eval_provenance

from vi_reparam.errors import ArgumentError
from vi_reparam_numpyro.prototype import drawable


def check_subsampling(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a subsampled plate whose observed terms do not depend on the plate's indices.

    A minibatch that is passed as an argument pairs its rows with the wrong indices, and so with
    the wrong local latents, as soon as the particles draw minibatches of their own.

    Raises:
        ArgumentError: naming the plate and the observed sites.
    """
    tr: dict[str, Any] = {}

    def look() -> None:
        with block():
            tr.update(trace(drawable(model, random.key(0))).get_trace(*args, **kwargs))

    jax.eval_shape(look)
    plates = {n: s for n, s in tr.items() if s["type"] == "plate" and s["args"][1] not in (None, s["args"][0])}
    for name, plate in plates.items():
        observed = [
            n
            for n, s in tr.items()
            if s["type"] == "sample" and s["is_observed"] and any(f.name == name for f in s["cond_indep_stack"])
        ]
        if not observed:
            continue
        latents = {
            n: jnp.zeros(s["value"].shape, s["value"].dtype)
            for n, s in tr.items()
            if s["type"] == "sample" and not s["is_observed"]
        }

        def log_probs(
            indices: Any, name: str = name, observed: list[str] = observed, latents: Any = latents
        ) -> list[Any]:
            with block():
                held = substitute(seed(model, random.key(0)), data={**latents, name: indices})
                sites = trace(held).get_trace(*args, **kwargs)
            return [sites[n]["fn"].log_prob(sites[n]["value"]) for n in observed]

        found = eval_provenance(log_probs, indices=jnp.arange(plate["args"][1]))
        if not any(found):
            raise ArgumentError(
                f"plate {name!r} is subsampled, but the observed {', '.join(map(repr, observed))} in it does not "
                "depend on its indices: index the full data inside the plate (with numpyro.plate(...) as i: y = y[i])"
            )
