"""Measure gradient estimators on a guided model."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.flatten_util import ravel_pytree
from tqdm.auto import tqdm

from vi_reparam.errors import ArgumentError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam.study.comparison import Comparison, Moments, build, everywhere, z_scores
from vi_reparam_numpyro.arguments import check_data
from vi_reparam_numpyro.fit import as_key
from vi_reparam_numpyro.guided import Guided
from vi_reparam_numpyro.run import run

Array = Any

_BUDGET = 2_000_000
"""Numbers held at once by one batch of replicates (draws and gradients)."""


def compare_estimators(
    guided: Guided,
    *args: Any,
    estimators: list[Estimator],
    num_replicates: int = 1_000,
    num_particles: int = 1,
    stages: tuple[str, ...] = ("start", "fitted"),
    seed: Any = 0,
    params: dict[str, Any] | None = None,
    reference: dict[str, Any] | None = None,
    fit_steps: int = 1_000,
    progress: bool = False,
    **kwargs: Any,
) -> Comparison:
    """Mean, variance, bias and time of each estimator's gradient of the loss.

    Every estimator is used at all the sites that it applies to (`Auto` at the others), at the
    same parameters and under the same keys. Gradients are with respect to the parameters as the
    guide writes them (constrained values).

    Args:
        guided: a guided model, or `Guided` of a model and a hand-written guide.
        args: the model's arguments; `kwargs`: its keyword arguments.
        estimators: the ones to compare.
        num_replicates: independent gradients of each.
        num_particles: particles of one gradient.
        stages: ``"start"`` (the initial parameters) and ``"fitted"`` (after a fit).
        seed: an int or a `jax.random.key`.
        params: parameters for the start, by name, where not the guide's own.
        reference: the exact gradient by parameter name, for one stage; else the low-variance
            gradient of `Auto` from four times as many independent replicates is the reference.
        fit_steps: steps of the fit before the fitted stage.
        progress: whether to show a progress bar.

    Raises:
        ArgumentError: for options that cannot be used, or an estimator that applies nowhere.
    """
    _check(estimators, num_replicates, num_particles, stages, reference)
    check_data(args, kwargs)
    key = as_key(seed)
    guided = Guided.of(guided)
    places = {"start": params or guided.start(*args, seed=seed, **kwargs)}
    if "fitted" in stages:
        posterior = guided.fit(*args, num_steps=fit_steps, seed=seed, progress=progress, **kwargs)
        places["fitted"] = posterior.params
    sites = _sites(guided, places["start"], args, kwargs)
    names = [repr(e) for e in estimators]
    moments: dict[tuple[str, str], Moments] = {}
    seconds: dict[tuple[str, str], float] = {}
    z: dict[tuple[str, str], np.ndarray] = {}
    parameters: list[str] = []
    with tqdm(total=len(stages) * (len(names) + 1), disable=not progress, desc="compare") as bar:
        for stage in stages:
            held = {n: v for n, v in places[stage].items() if not n.startswith("vr.")}
            state = {n: v for n, v in places[stage].items() if n.startswith("vr.")}
            parameters = _coordinates(held)
            for name, estimator in zip(names, estimators, strict=True):
                chosen = guided.with_estimators(everywhere(estimator, sites))
                measured = measure(chosen, held, state, num_particles, num_replicates, key, args, kwargs)
                moments[name, stage], seconds[name, stage] = measured
                bar.update()
            if reference is None:
                auto = guided.with_estimators({n: Auto() for n in sites})
                far = random.fold_in(key, 0x5EED)
                truth, _ = measure(auto, held, state, num_particles, 4 * num_replicates, far, args, kwargs)
                exact, error = truth.mean, np.sqrt(truth.variance / truth.count)
            else:
                exact = np.asarray(ravel_pytree({n: jnp.asarray(reference[n]) for n in held})[0])
                error = np.zeros_like(exact)
            for name in names:
                m = moments[name, stage]
                z[name, stage] = z_scores(m.mean, np.sqrt(m.variance / m.count), exact, error)
            bar.update()
    return build(
        model=guided.name,
        estimators=names,
        stages=list(stages),
        parameters=parameters,
        moments=moments,
        seconds=seconds,
        z=z,
        num_particles=num_particles,
        reference="the exact gradient" if reference is not None else f"{4 * num_replicates} replicates of Auto()",
    )


def _check(estimators: Any, num_replicates: Any, num_particles: Any, stages: Any, reference: Any) -> None:
    if not estimators or not all(isinstance(e, Estimator) for e in estimators):
        raise ArgumentError(
            f"compare_estimators(estimators={estimators!r}): expected a list such as [vr.Implicit(), vr.Rejection()]"
        )
    if len(set(map(repr, estimators))) != len(estimators):
        raise ArgumentError("compare_estimators: two of the estimators are equal")
    for name, value, least in (("num_replicates", num_replicates, 2), ("num_particles", num_particles, 1)):
        if not isinstance(value, int) or value < least:
            raise ArgumentError(f"compare_estimators({name}={value!r}): expected an integer of at least {least}")
    unknown = [s for s in stages if s not in ("start", "fitted")]
    if unknown or not stages:
        raise ArgumentError(f"compare_estimators(stages={stages!r}): expected 'start', 'fitted' or both")
    if reference is not None and len(stages) != 1:
        raise ArgumentError("compare_estimators: an exact reference holds at one stage; name that stage alone")


def _sites(guided: Guided, params: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The guide's sites, with an estimated distribution at each."""
    found: dict[str, Any] = {}
    probe = guided.with_estimators({"*": Auto()})

    def look() -> Array:
        result = run(random.key(0), params, probe.model, probe.guide, args, kwargs)
        found.update({n: s.family for n, s in result.draws.items()})
        return jnp.zeros(())

    jax.eval_shape(look)
    return found


def _coordinates(params: dict[str, Any]) -> list[str]:
    """A name for each coordinate, in the order of `ravel_pytree`."""
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        first, *rest = path
        base = str(first.key) + jax.tree_util.keystr(tuple(rest))
        shape = jnp.shape(leaf)
        names += [base + (f"[{','.join(map(str, i))}]" if i else "") for i in np.ndindex(*shape)]
    return names


def measure(
    guided: Guided,
    params: dict[str, Any],
    state: dict[str, Any],
    num_particles: int,
    num_replicates: int,
    key: Any,
    args: Any,
    kwargs: Any,
) -> tuple[Moments, float]:
    """Moments of a guided model's gradient at given parameters, and seconds a gradient.

    Args:
        params: constrained parameters to differentiate; `state`: mutable values held fixed.
        key: of the replicates: the i-th replicate's noise depends on it and i only.
    """
    objective = guided.objective.with_particles(num_particles)
    flat, unravel = ravel_pytree(params)

    def loss(flat: Array, key: Any) -> Array:
        return objective.loss(key, {**unravel(flat), **state}, guided.model, guided.guide, *args, **kwargs)

    def gradient(index: Array) -> Array:
        return jax.grad(loss)(flat, random.fold_in(key, index))

    draws = jax.eval_shape(lambda: _draw_size(guided, params, args, kwargs))
    batch = int(np.clip(_BUDGET // max(num_particles * draws.shape[0], flat.size, 1), 1, 512))
    batch = min(batch, max(1, num_replicates // 2))
    rounds = max(2, -(-num_replicates // batch))
    segments = min(4, rounds)
    length = -(-rounds // segments)

    @jax.jit
    def sums(first: Array, pilot: Array) -> Array:
        def body(total: Array, number: Array) -> tuple[Array, None]:
            grads = jax.vmap(gradient)(first + number * batch + jnp.arange(batch)) - pilot[None]
            powers = jnp.stack([jnp.sum(grads**k, axis=0) for k in range(1, 5)])
            return total + powers, None

        return lax.scan(body, jnp.zeros((4, flat.size), flat.dtype), jnp.arange(length))[0]

    zero = jnp.zeros_like(flat)
    pilot = np.asarray(sums(jnp.asarray(0), zero))[0] / (length * batch)
    moments = Moments(pilot)
    begun = time.perf_counter()
    for segment in range(segments):
        moments.add(
            np.asarray(sums(jnp.asarray(segment * length * batch), jnp.asarray(pilot, flat.dtype))), length * batch
        )
    seconds = (time.perf_counter() - begun) / (segments * length * batch)
    return moments, seconds


def _draw_size(guided: Guided, params: Any, args: Any, kwargs: Any) -> Array:
    result = run(random.key(0), params, guided.model, guided.guide, args, kwargs)
    size = sum(int(np.prod(jnp.shape(s.draw.value))) for s in result.draws.values())
    size += sum(int(np.prod(jnp.shape(c))) for c in result.costs.values())
    return jnp.zeros(max(size, 1))
