"""Measure gradient estimators on a guided model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from vi_reparam.errors import ArgumentError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam.study.comparison import Comparison, Moments, build, everywhere, z_scores
from vi_reparam_pyro.arguments import as_tensors, check_data, to_numpy
from vi_reparam_pyro.fit import as_key
from vi_reparam_pyro.guided import Guided
from vi_reparam_pyro.host.params import isolated, using
from vi_reparam_pyro.lanes.vmap import keyed, vectorized
from vi_reparam_pyro.ops.ops import mix
from vi_reparam_pyro.run import runner_of

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
    same parameters and under the same noise. Gradients are with respect to the parameters as the
    guide writes them (constrained values).

    Args:
        guided: a guided model, or `Guided` of a model and a hand-written guide.
        args: the model's arguments; `kwargs`: its keyword arguments.
        estimators: the ones to compare.
        num_replicates: independent gradients of each.
        num_particles: particles of one gradient.
        stages: ``"start"`` (the initial parameters) and ``"fitted"`` (after a fit).
        seed: an int.
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
    places = {"start": as_tensors((), params)[1] if params else guided.start(*args, seed=seed, **kwargs)}
    if "fitted" in stages:
        posterior = guided.fit(*args, num_steps=fit_steps, seed=seed, progress=progress, **kwargs)
        places["fitted"] = posterior.params
    args, kwargs = as_tensors(args, kwargs)
    sites = _sites(guided, places["start"], args, kwargs)
    names = [repr(e) for e in estimators]
    moments: dict[tuple[str, str], Moments] = {}
    seconds: dict[tuple[str, str], float] = {}
    z: dict[tuple[str, str], np.ndarray] = {}
    parameters: list[str] = []
    with tqdm(total=len(stages) * (len(names) + 1), disable=not progress, desc="compare") as bar:
        for stage in stages:
            held = dict(sorted(places[stage].items()))
            parameters = _coordinates(held)
            for name, estimator in zip(names, estimators, strict=True):
                chosen = guided.with_estimators(everywhere(estimator, sites))
                measured = measure(chosen, held, num_particles, num_replicates, key, args, kwargs)
                moments[name, stage], seconds[name, stage] = measured
                bar.update()
            if reference is None:
                auto = guided.with_estimators({n: Auto() for n in sites})
                far = mix(key ^ 0x5EED)
                truth, _ = measure(auto, held, num_particles, 4 * num_replicates, far, args, kwargs)
                exact, error = truth.mean, np.sqrt(truth.variance / truth.count)
            else:
                exact = np.concatenate([np.ravel(to_numpy(reference[n])) for n in held])
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
    probe = guided.with_estimators({"*": Auto()})
    with torch.no_grad(), isolated(), using(params):
        result = runner_of(probe.model, probe.guide, args, kwargs, guided.objective.entropy)(mix(0))
    return {n: s.family for n, s in result.draws.items()}


def _coordinates(params: dict[str, Any]) -> list[str]:
    """A name for each coordinate, in the order of the flat gradient."""
    names = []
    for name, value in params.items():
        names += [name + (f"[{','.join(map(str, i))}]" if i else "") for i in np.ndindex(*value.shape)]
    return names


def measure(
    guided: Guided,
    params: dict[str, Any],
    num_particles: int,
    num_replicates: int,
    key: int,
    args: Any,
    kwargs: Any,
) -> tuple[Moments, float]:
    """Moments of a guided model's gradient at given parameters, and seconds a gradient.

    Args:
        params: constrained parameters to differentiate.
        key: from which the noise of all replicates follows.
    """
    objective = guided.objective.with_particles(num_particles)
    with isolated():
        with using(params) as held:
            structure = objective.structure(guided.model, guided.guide, args, kwargs)
            size = _draw_size(guided, args, kwargs)
        with using(params) as held, torch.no_grad(), keyed(mix(0)):
            guided.guide(*args, **kwargs)
            networks = bool(held.modules)  # whose weights are no arguments of lanes
        length = sum(value.numel() for value in params.values())
        batch = 1
        if structure.in_lanes and not networks:
            batch = int(np.clip(_BUDGET // max(num_particles * size, length, 1), 1, 256))
            batch = min(batch, max(1, num_replicates // 2))
        rounds = max(2, -(-num_replicates // batch))

        def gradients(number: int) -> np.ndarray:
            found = _gradients(guided, objective, params, batch, mix(key ^ mix(number + 1)), args, kwargs)
            return found.astype(np.float64)

        pilot = gradients(-1).mean(0)
        moments, seconds = Moments(pilot), 0.0
        for number in range(rounds):
            begun = time.perf_counter()
            found = gradients(number)
            seconds += time.perf_counter() - begun
            moments.add(np.stack([((found - pilot) ** k).sum(0) for k in range(1, 5)]), batch)
    return moments, seconds / (rounds * batch)


def _gradients(
    guided: Guided, objective: Any, params: dict[str, Any], batch: int, key: int, args: Any, kwargs: Any
) -> np.ndarray:
    """`batch` independent gradients of the loss, flattened, shape ``[batch, parameters]``."""
    names = list(params)

    def loss(*values: Array) -> Array:
        with using(dict(zip(names, values, strict=True))) as held:
            value = objective.surrogate(key, guided.model, guided.guide, args, kwargs)[0]
            weights.update({name: leaf for name, (leaf, _) in held.modules.items()})
        return value

    weights: dict[str, Array] = {}
    if batch == 1:
        leaves = [params[n].detach().clone().requires_grad_() for n in names]
        total = loss(*leaves)
    else:
        leaves = [params[n].detach().expand((batch, *params[n].shape)).clone().requires_grad_() for n in names]
        total = vectorized(loss, batch, key, *leaves).sum()
    moved = [weights.get(n, leaf) for n, leaf in zip(names, leaves, strict=True)]
    found = torch.autograd.grad(total, moved, allow_unused=True)
    flat = [
        np.zeros((batch, leaf.numel() // batch)) if g is None else to_numpy(g).reshape(batch, -1)
        for g, leaf in zip(found, leaves, strict=True)
    ]
    return np.concatenate(flat, axis=1)


def _draw_size(guided: Guided, args: Any, kwargs: Any) -> int:
    """Numbers in the draws and costs of one particle."""
    with torch.no_grad():
        result = runner_of(guided.model, guided.guide, args, kwargs, guided.objective.entropy)(mix(0))
    return sum(s.draw.value.numel() for s in result.draws.values()) + sum(c.numel() for c in result.costs.values())
