"""Runs on all of the data, and their log densities."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from numpyro.primitives import Messenger


class full_data(Messenger):  # noqa: N801 (handlers are lower case in NumPyro)
    """Switches the subsampling of plates off: their indices run over all of the data."""

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "plate":
            size = msg["args"][0]
            msg["args"] = (size, size)
            msg["value"] = jnp.arange(size)


def total_log_prob(trace: dict[str, Any]) -> jax.Array:
    """Sum of a trace's log densities, factors and scales included."""
    total = jnp.zeros(())
    for site in trace.values():
        if site["type"] == "sample":
            more = site["intermediates"]
            log_prob = site["fn"].log_prob(site["value"], *([more] if more else []))
            total = total + jnp.sum(log_prob if site["scale"] is None else site["scale"] * log_prob)
    return total
