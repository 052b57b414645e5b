"""What each cost depends on, and whether the plates are what they say."""

from __future__ import annotations

import functools
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
from vi_reparam.objectives.plates import plates_of
from vi_reparam.sites.recorder import Recorder as Listener
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


def first_params(
    model: Any, guide: Any, args: Any, kwargs: Any, *, key: Any = None, known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The initial values at the param and mutable sites of guide and model.

    Args:
        known: values of some, for which then no initial value is computed.
    """
    params: dict[str, Any] = dict(known or {})

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
    base = _shapes(runner, key, params)
    scored = {name: s for name, s in base.draws.items() if not s.draw.is_pathwise}
    plates = {p for name in scored for p in plates_of(base.frames["guide", name])}
    if not plates:
        return frozenset()
    zeros = {n: jnp.zeros(s.draw.value.shape, _float(s.draw.value)) for n, s in scored.items()}

    @jax.jit  # one program serves every plate and half
    def moved(key: Any, params: Any, steps: dict[str, Array], direction: dict[str, Array]) -> Any:
        def costs(shifts: dict[str, Array]) -> Any:
            result = runner(key, params, listener=Listener(shifts=shifts))
            return result.costs, {n: result.draws[n].draw.value for n in scored}

        return jax.jvp(costs, (steps,), (direction,), has_aux=True)

    before, _, values = moved(key, params, zeros, zeros)
    others = moved(other_key, params, zeros, zeros)[2]
    directions = {}
    for number, (name, sampled) in enumerate(scored.items()):
        value = values[name]
        if _moves_by_steps(sampled):
            directions[name] = _step(sampled, value, others[name]).astype(zeros[name].dtype)
        else:
            directions[name] = random.normal(random.fold_in(direction_key, number), value.shape, zeros[name].dtype)

    doubtful: set[str] = set()
    for plate in sorted(plates):
        inside = [n for n in scored if plate in plates_of(base.frames["guide", n])]
        sizes = {base.frames["guide", n].batch_shape[base.frames["guide", n].dims[plate]] for n in inside}
        if len(sizes) != 1 or (size := sizes.pop()) < 2:
            continue
        for half in _halves(size):
            shifts = {n: _on_half(base, n, plate, directions[n], half) for n in inside}
            steps = {n: shifts[n] if n in shifts and _moves_by_steps(scored[n]) else zeros[n] for n in scored}
            smooth = {n: shifts[n] if n in shifts and not _moves_by_steps(scored[n]) else zeros[n] for n in scored}
            after, slopes, _ = moved(key, params, steps, smooth)
            change = {place: (before[place], after[place], slopes[place]) for place in before}
            if not _still(base, change, plate, inside, ~half):
                doubtful.add(plate)
                break
    return frozenset(doubtful)


def _shapes(runner: Runner, key: Any, params: dict[str, Any]) -> Run:
    """A run whose structure alone is at hand: no array is computed."""
    static: list[Run] = []

    def look(key: Any, params: Any) -> Any:
        static.append(runner(key, params))
        return static[0].costs

    jax.eval_shape(look, key, params)
    return static[0]


def _halves(size: int) -> list[np.ndarray]:
    """Halves of the indices, so that of any two elements each is once in a half without the other."""
    index = np.arange(size)
    digits = [(index >> digit) % 2 == 1 for digit in range((size - 1).bit_length())]
    return [half for digit in digits for half in (digit, ~digit)]


def _on_half(base: Run, name: str, plate: str, step: Array, half: np.ndarray) -> Array:
    frames = base.frames["guide", name]
    shape = [1] * step.ndim
    shape[frames.dims[plate] - (step.ndim - len(frames.batch_shape))] = len(half)
    return np.asarray(step) * np.reshape(half, shape).astype(step.dtype)


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
    base: Run, change: dict[Place, tuple[Array, Array, Array]], plate: str, latents: list[str], still: np.ndarray
) -> bool:
    """Whether the costs of the elements held still could be seen not to move; raises if one moves."""
    for place, (before, after, slope) in change.items():
        if plate not in plates_of(base.frames[place]):
            continue
        rows = functools.partial(np.compress, still, axis=base.frames[place].dims[plate])
        step = np.abs(np.asarray(after) - np.asarray(before))
        rounding = 1e-5 * (1.0 + np.max(np.abs(np.asarray(before)), initial=0.0))
        by_step, by_slope = rows(step), rows(np.abs(np.asarray(slope)))
        if not (np.isfinite(by_step).all() and np.isfinite(by_slope).all()):
            warnings.warn(
                f"plate {plate!r} could not be checked: the derivative of {place[0]} site {place[1]!r} is not finite; "
                "score terms take the sum over its elements, which is right but noisier",
                stacklevel=2,
            )
            return False
        if by_slope.max(initial=0.0) > 0.0 or by_step.max(initial=0.0) > rounding:
            raise GradientError(
                f"plate {plate!r} is false: the {place[0]} cost at {place[1]!r} of one of its elements depends on the "
                f"draw of {' or '.join(map(repr, latents))} of another, so its score terms would miss part of their "
                "cost; take that site out of the plate, or mark the dimension with .to_event() instead of a plate"
            )
    return True


def is_concrete(tree: Any) -> bool:
    """Whether Python can know every array in it now."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
