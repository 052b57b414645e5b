"""Optax transformations, of a plan or of a user's own, and when two of them are equal."""

from __future__ import annotations

import functools
import types
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vi_reparam.errors import ArgumentError, short
from vi_reparam.fit.optimizers import BETAS, LAST_RATE, OptimizerPlan, RateGroup


def made(plan: OptimizerPlan | Any) -> optax.GradientTransformation:
    """The optimizer of a plan, or a user's own.

    Raises:
        ArgumentError: if it is no optax transformation.
    """
    if isinstance(plan, optax.GradientTransformation):
        return plan
    if not isinstance(plan, OptimizerPlan):
        raise ArgumentError(
            f"fit(optimizer={short(plan)}): expected an optax transformation, such as optax.adam(1e-2), also in place "
            "of one of numpyro.optim"
        )
    groups = [_adam(group, plan.num_steps) for group in plan.groups]
    if len(groups) == 1:
        return groups[0]
    by_label: Any = {str(i): group for i, group in enumerate(groups)}
    return optax.multi_transform(by_label, lambda params: {name: str(plan.group_of(name)) for name in params})


def _adam(group: RateGroup, num_steps: int | None) -> optax.GradientTransformation:
    rate: Any = group.learning_rate
    rising = 0 if num_steps is None else int(group.warmup * num_steps)
    if num_steps is not None and rising:
        rate = optax.warmup_cosine_decay_schedule(0.0, rate, rising, num_steps, LAST_RATE * rate)
    elif num_steps is not None:
        rate = optax.cosine_decay_schedule(rate, num_steps, alpha=LAST_RATE)
    adam = optax.adam(rate, *BETAS)
    return adam if group.clip is None else optax.chain(clip_by_norm(group.clip), adam)


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
