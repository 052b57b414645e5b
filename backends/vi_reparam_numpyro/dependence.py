"""What each cost depends on, and whether the plates are what they say."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.ops.provenance import eval_provenance

from vi_reparam.errors import GradientError
from vi_reparam.frames import plates_of
from vi_reparam_numpyro.listener import Listener
from vi_reparam_numpyro.run import Place, Run

Array = Any
Runner = Callable[..., Run]
"""``runner(key, params, listener=...)``: `run.run` with its program bound."""


def dependents(runner: Runner, key: Any, params: dict[str, Any], scored: dict[str, Any]) -> dict[str, frozenset[Place]]:
    """The costs that depend on each of the draws in `scored`, from NumPyro's provenance.

    Args:
        scored: site -> an array or shape of its value.
    """
    places: list[Place] = []

    def costs(**shifts: Array) -> list[Array]:
        result = runner(key, params, listener=Listener(shifts=shifts))
        places[:] = list(result.costs)
        return [result.costs[place] for place in places]

    zeros = {name: jnp.zeros(value.shape, _float(value)) for name, value in scored.items()}
    found = eval_provenance(costs, **zeros)
    return {name: frozenset(p for p, deps in zip(places, found, strict=True) if name in deps) for name in scored}


def _float(value: Any) -> Any:
    return value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.result_type(float)


def first_params(model: Any, guide: Any, args: Any, kwargs: Any, *, key: Any = None) -> dict[str, Any]:
    """The initial values at the param and mutable sites of guide and model."""
    params: dict[str, Any] = {}

    def visit(fn: Any) -> Any:
        found = trace(substitute(fn, data=params)).get_trace(*args, **kwargs)
        params.update({n: s["value"] for n, s in found.items() if s["type"] in ("param", "mutable")})
        return found

    guide_key, model_key = random.split(random.key(0) if key is None else key)
    guide_trace = visit(seed(guide, guide_key))
    visit(replay(seed(model, model_key), guide_trace))
    return params


def check_plates(runner: Runner, params: dict[str, Any]) -> frozenset[str]:
    """Refuse a plate whose elements are not independent given what is outside it.

    Moving the draws of one half of a plate's elements in a random direction must not move the
    costs of the other half: Rao-Blackwellization by plates would drop that part of the gradient
    and say nothing. Discrete draws are moved to those of another run.

    Returns:
        The plates that could not be checked, because a derivative was not finite.

    Raises:
        GradientError: naming the plate, the latent and the cost.
    """
    key, other_key, direction_key = random.split(random.key(20170613), 3)
    base, values, costs = _compiled(runner, key, params)
    scored = {name: s for name, s in base.draws.items() if not s.draw.is_pathwise}
    plates = {p for name in scored for p in plates_of(base.frames["guide", name])}
    doubtful: set[str] = set()
    if not plates:
        return frozenset()
    others = _compiled(runner, other_key, params)[1] if any(map(_moves_by_steps, scored.values())) else values
    for plate in sorted(plates):
        inside = [n for n in scored if plate in plates_of(base.frames["guide", n])]
        sizes = {base.frames["guide", n].batch_shape[base.frames["guide", n].dims[plate]] for n in inside}
        if len(sizes) != 1 or (size := sizes.pop()) < 2:
            continue
        moved_half = random.permutation(direction_key, size) % 2 == 0  # at random: a lag of two must show
        shifts = {}
        for number, name in enumerate(inside):
            value = values[name]
            axis = base.frames["guide", name].dims[plate] - (value.ndim - len(base.frames["guide", name].batch_shape))
            step = random.normal(random.fold_in(direction_key, number), value.shape, _float(value))
            if _moves_by_steps(scored[name]):
                step = (others[name] - value).astype(_float(value))
            shape = [1] * value.ndim
            shape[axis] = size
            shifts[name] = step * jnp.reshape(moved_half, shape).astype(step.dtype)
        if not _independent(runner, key, params, base, costs, plate, shifts, ~moved_half):
            doubtful.add(plate)
    return frozenset(doubtful)


def _compiled(runner: Runner, key: Any, params: dict[str, Any]) -> tuple[Run, dict[str, Array], dict[Place, Array]]:
    """A run whose structure is at hand and whose draws and costs are numbers, compiled once."""
    static: list[Run] = []

    def values(key: Any, params: Any) -> Any:
        result = runner(key, params)
        static.append(result)
        return {n: s.draw.value for n, s in result.draws.items()}, result.costs

    draws, costs = jax.jit(values)(key, params)
    return static[0], draws, costs


def _independent(
    runner: Runner,
    key: Any,
    params: dict[str, Any],
    base: Run,
    before: dict[Place, Array],
    plate: str,
    shifts: dict[str, Array],
    still: Array,
) -> bool:
    """Whether the costs of the elements held still could be seen not to move; raises if one moves."""
    places = [p for p, frames in base.frames.items() if p in base.costs and plate in plates_of(frames)]

    def costs(moved: dict[str, Array]) -> list[Array]:
        result = runner(key, params, listener=Listener(shifts=moved))
        return [result.costs[p] for p in places]

    zeros = jax.tree.map(jnp.zeros_like, shifts)
    smooth = {n: s for n, s in shifts.items() if not _moves_by_steps(base.draws[n])}
    certain = True
    sizes = [1.0 + float(jnp.max(jnp.abs(before[p]))) for p in places]
    if smooth:
        fixed = {n: z for n, z in zeros.items() if n not in smooth}

        @jax.jit
        def slope(at: Any, direction: Any) -> Any:
            return jax.jvp(lambda m: costs({**fixed, **m}), (at,), (direction,))[1]

        change = slope({n: zeros[n] for n in smooth}, smooth)
        certain &= _still(base, places, change, plate, sorted(smooth), still, [0.0] * len(places))
    steps = {n: s for n, s in shifts.items() if n not in smooth}
    if steps:
        moved, unmoved = jax.jit(costs)({**zeros, **steps}), jax.jit(costs)(zeros)
        change = [m - u for m, u in zip(moved, unmoved, strict=True)]
        certain &= _still(base, places, change, plate, sorted(steps), still, [1e-5 * size for size in sizes])
    return certain


def _moves_by_steps(sampled: Any) -> bool:
    """Whether the draw is discrete, so that a derivative in its value would show nothing."""
    distribution = getattr(sampled.family, "distribution", None)
    return sampled.family.name in ("bernoulli", "poisson") or (distribution is not None and distribution.is_discrete)


def _still(
    base: Run,
    places: list[Place],
    change: list[Array],
    plate: str,
    latents: list[str],
    still: Array,
    tolerances: list[float],
) -> bool:
    certain = True
    for place, moved, tolerance in zip(places, change, tolerances, strict=True):
        axis = base.frames[place].dims[plate]
        rest = np.compress(np.asarray(still), np.abs(np.asarray(moved)), axis=axis)
        if not np.isfinite(rest).all():
            warnings.warn(
                f"plate {plate!r} could not be checked: the derivative of {place[0]} site {place[1]!r} is not finite; "
                "score terms take the sum over its elements, which is right but noisier",
                stacklevel=2,
            )
            certain = False
            continue
        if rest.max(initial=0.0) > tolerance:
            raise GradientError(
                f"plate {plate!r} is false: the {place[0]} cost at {place[1]!r} of one of its elements depends on the "
                f"draw of {' or '.join(map(repr, latents))} of another, so its score terms would miss part of their "
                "cost; take that site out of the plate, or mark the dimension with .to_event() instead of a plate"
            )
    return certain


def is_concrete(tree: Any) -> bool:
    """Whether Python can know every array in it now."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
