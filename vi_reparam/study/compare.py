"""Measure gradient estimators on a guided model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from vi_reparam.backend.engine import Task
from vi_reparam.checks import check_integer
from vi_reparam.errors import ArgumentError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam.fit.measure import Moments, coordinates, leaves_of, measure
from vi_reparam.study.comparison import Comparison, build, everywhere, z_scores
from vi_reparam.study.ended import ended

if TYPE_CHECKING:
    from vi_reparam.fit.guided import Guided

REFERENCE_STREAM = 0x5EED
"""Folded into the key of the reference, whose noise is not the estimators'."""


def compare_estimators(
    bound: type[Guided],
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
        seed: an int, or what the framework takes for a key.
        params: parameters for the start, by name, where not the guide's own.
        reference: the exact gradient by parameter name, for one stage; else the low-variance
            gradient of `Auto` from four times as many independent replicates is the reference.
        fit_steps: steps of the fit before the fitted stage.
        progress: whether to show a progress bar.

    Raises:
        ArgumentError: for options that cannot be used, or an estimator that applies nowhere.
    """
    _check(estimators, num_replicates, num_particles, stages, reference)
    engine, ops = bound.backend.engine, bound.backend.ops
    guided = bound.of(guided)
    data, key = engine.data(args, kwargs, guided.model), engine.key(seed)
    places = {"start": guided.start_at(data, key)}
    if params:
        places["start"] = {**places["start"], **_given(engine.data((), params).kwargs, places["start"])}
    if "fitted" in stages:
        posterior = ended(guided.fit(*args, num_steps=fit_steps, seed=seed, progress=progress, **kwargs))
        places["fitted"] = posterior.params
    task = Task(guided.model, guided.guide, guided.objective.with_particles(num_particles), guided.name)

    def with_estimators(mapping: dict[str, Estimator]) -> Task:
        return replace(task, guide=guided.with_estimators(mapping).guide)

    probe = with_estimators({"*": Auto()})
    sites = {name: drawn.family for name, drawn in engine.draws(probe, data, places["start"]).items()}
    names = [repr(e) for e in estimators]
    measured: dict[tuple[str, str], tuple[Moments, float, np.ndarray]] = {}
    parameters: list[str] = []
    with tqdm(total=len(stages) * (len(names) + 1), disable=not progress, desc="compare") as bar:
        for stage in stages:
            values = places[stage]
            parameters = coordinates(values)
            found = {}
            for name, estimator in zip(names, estimators, strict=True):
                chosen = with_estimators(everywhere(estimator, sites))
                found[name] = measure(engine, chosen, data, values, key, num_replicates)
                bar.update()
            if reference is None:
                auto = with_estimators({n: Auto() for n in sites})
                truth, _ = measure(engine, auto, data, values, ops.fold_in(key, REFERENCE_STREAM), 4 * num_replicates)
                exact, error = truth.mean, truth.error
            else:
                given = leaves_of({name: reference[name] for name in values if not name.startswith("vr.")})
                exact = np.concatenate([np.ravel(ops.to_numpy(x)) for x in given.values()])
                error = np.zeros_like(exact)
            for name, (moments, seconds) in found.items():
                measured[name, stage] = moments, seconds, z_scores(moments.mean, moments.error, exact, error)
            bar.update()
    against = "the exact gradient" if reference is not None else f"{4 * num_replicates} replicates of Auto()"
    about = {"model": guided.name, "num_particles": num_particles, "reference": against}
    return build(names, list(stages), parameters, measured, **about)


def _given(params: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    known = {name for name in start if not name.startswith("vr.")}
    for what, names in (("misses", known - set(params)), ("has unknown", set(params) - set(start))):
        if names:
            raise ArgumentError(
                f"compare_estimators(params=...) {what} {sorted(names)}: the parameters are {sorted(known)}"
            )
    return params


def _check(estimators: Any, num_replicates: Any, num_particles: Any, stages: Sequence[str], reference: Any) -> None:
    if not estimators or not all(isinstance(e, Estimator) for e in estimators):
        raise ArgumentError(
            f"compare_estimators(estimators={estimators!r}): expected a list such as [vr.Implicit(), vr.Rejection()]"
        )
    if len(set(map(repr, estimators))) != len(estimators):
        raise ArgumentError("compare_estimators: two of the estimators are equal")
    check_integer("num_replicates", num_replicates, "compare_estimators", least=2)
    check_integer("num_particles", num_particles, "compare_estimators")
    unknown = [s for s in stages if s not in ("start", "fitted")]
    if unknown or not stages:
        raise ArgumentError(f"compare_estimators(stages={stages!r}): expected 'start', 'fitted' or both")
    if reference is not None and len(stages) != 1:
        raise ArgumentError("compare_estimators: an exact reference holds at one stage; name that stage alone")
