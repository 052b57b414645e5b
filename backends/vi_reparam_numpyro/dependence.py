"""What each cost depends on, and whether the plates are what they say."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.core import Tracer
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
    and say nothing. The halves are taken by each binary digit of the index, both ways, so that
    every pair of elements is parted once. Discrete draws move by a step.

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
        directions = {}
        for number, name in enumerate(inside):
            value = values[name]
            step = random.normal(random.fold_in(direction_key, number), value.shape, _float(value))
            if _moves_by_steps(scored[name]):
                step = _step(scored[name], value, others[name]).astype(_float(value))
            directions[name] = step
        if not _independent(runner, key, params, base, costs, plate, directions, size):
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
    directions: dict[str, Array],
    size: int,
) -> bool:
    """Whether the costs of the elements held still could be seen not to move; raises if one moves."""
    places = [p for p, frames in base.frames.items() if p in base.costs and plate in plates_of(frames)]
    smooth = {n for n in directions if not _moves_by_steps(base.draws[n])}
    zeros = jax.tree.map(jnp.zeros_like, directions)

    def costs(moved: dict[str, Array]) -> list[Array]:
        result = runner(key, params, listener=Listener(shifts=moved))
        return [result.costs[p] for p in places]

    @jax.jit
    def slope(shifts: dict[str, Array]) -> list[Array]:
        direction = {n: shifts[n] if n in smooth else zeros[n] for n in shifts}
        return jax.jvp(costs, (zeros,), (direction,))[1]

    moved_to = jax.jit(costs)
    unmoved = moved_to(zeros) if len(smooth) < len(directions) else []
    exact = [0.0] * len(places)
    rounding = [1e-5 * (1.0 + float(jnp.max(jnp.abs(before[p])))) for p in places]
    certain = True
    for half in _halves(size):
        shifts = {n: _on_half(base, n, plate, step, half) for n, step in directions.items()}
        if smooth:
            certain &= _still(base, places, slope(shifts), plate, sorted(smooth), ~half, exact)
        steps = {n: zeros[n] if n in smooth else shift for n, shift in shifts.items()}
        if len(smooth) < len(steps):
            change = [m - u for m, u in zip(moved_to(steps), unmoved, strict=True)]
            certain &= _still(base, places, change, plate, sorted(set(steps) - smooth), ~half, rounding)
        if not certain:
            break
    return certain


def _halves(size: int) -> list[np.ndarray]:
    """Halves of the indices, so that of any two elements each is once in a half without the other."""
    index = np.arange(size)
    digits = [(index >> digit) % 2 == 1 for digit in range((size - 1).bit_length())]
    return [half for digit in digits for half in (digit, ~digit)]


def _on_half(base: Run, name: str, plate: str, step: Array, half: np.ndarray) -> Array:
    frames = base.frames["guide", name]
    shape = [1] * step.ndim
    shape[frames.dims[plate] - (step.ndim - len(frames.batch_shape))] = len(half)
    return step * jnp.reshape(jnp.asarray(half), shape).astype(step.dtype)


def _step(sampled: Any, value: Array, other: Array) -> Array:
    """Where a discrete draw moves: surely elsewhere if its family is known, else to another run's draw."""
    if sampled.family.name == "bernoulli":
        return 1.0 - 2.0 * value
    return jnp.ones_like(value) if sampled.family.name == "poisson" else other - value


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
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
