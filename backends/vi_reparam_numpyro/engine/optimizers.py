"""The default optimizer, and when two optimizers are equal."""

from __future__ import annotations

import functools
import types
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vi_reparam.guides import GuideFamily, Sites


def default_optimizer(
    num_steps: int | None, learning_rate: float = 0.05, *, clip: float | None = None, warmup: float = 0.0
) -> optax.GradientTransformation:
    """Adam with a cosine schedule from `learning_rate` down to a hundredth of it.

    Args:
        num_steps: of the schedule; None for a constant rate.
        clip: largest norm of a gradient; None for any.
        warmup: part of the steps over which the rate rises from zero first.
    """
    rising = 0 if num_steps is None else int(warmup * num_steps)
    rate: Any = learning_rate
    if num_steps is not None and rising:
        rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, rising, num_steps, 0.01 * learning_rate)
    elif num_steps is not None:
        rate = optax.cosine_decay_schedule(learning_rate, num_steps, alpha=0.01)
    adam = optax.adam(rate, b1=0.9, b2=0.99)
    return adam if clip is None else optax.chain(clip_by_norm(clip), adam)


def clip_by_norm(largest: float) -> optax.GradientTransformation:
    """Scale gradients down to this norm.

    Unlike `optax.clip_by_global_norm` it squares nothing large: there a gradient of 1e20 in float32 has an infinite
    norm and becomes zero, so that the step that most needs a correction gets none.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves = jax.tree.leaves(updates)
        top = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(g), initial=0.0) for g in leaves])
        unit = jnp.where(top > 0.0, top, 1.0)
        norm = unit * jnp.sqrt(sum(jnp.sum(jnp.square(g / unit)) for g in leaves))
        factor = jnp.where(norm > largest, largest / norm, 1.0)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def family_optimizer(num_steps: int | None, family: GuideFamily | None) -> optax.GradientTransformation:
    """The default optimizer as the family sets it; in `Sites` by `Sites.pace`."""
    if family is None:
        return default_optimizer(num_steps)
    if not isinstance(family, Sites):
        return default_optimizer(num_steps, family.learning_rate, clip=family.clip, warmup=family.warmup)
    learning_rate_groups: Any = {
        str(i): family_optimizer(num_steps, part) for i, part in enumerate(family.learning_rate_groups)
    }
    return optax.multi_transform(
        learning_rate_groups, lambda params: {name: str(family.learning_rate_group(name)) for name in params}
    )


def fingerprint(value: Any) -> Hashable:
    """Equal for optimizers made by equal calls: code and closures, followed down to the numbers.

    optax returns fresh closures from every call, so identity would compile anew each time.
    """
    if isinstance(value, types.FunctionType):
        cells = tuple(fingerprint(_contents(cell)) for cell in value.__closure__ or ())
        defaults = fingerprint(value.__defaults__ or ()), fingerprint(value.__kwdefaults__ or {})
        return "function", value.__code__, cells, defaults
    if isinstance(value, types.MethodType):
        return "method", value.__func__.__code__, fingerprint(value.__self__)
    if isinstance(value, functools.partial):
        return "partial", fingerprint(value.func), fingerprint(value.args), fingerprint(value.keywords)
    if isinstance(value, dict):
        return "dict", tuple(sorted((str(k), fingerprint(v)) for k, v in value.items()))
    if isinstance(value, tuple | list):
        return type(value), tuple(fingerprint(v) for v in value)
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        array = np.asarray(value)
        return "array", array.shape, str(array.dtype), array.tobytes()
    try:
        hash(value)
    except TypeError:
        return "object", id(value)
    return value


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell: a function that refers to itself
        return None
