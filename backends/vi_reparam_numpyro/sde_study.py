"""What users of an SDE guide want to see: which parameterization, variance and gradient serve a model."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from vi_reparam.errors import ArgumentError
from vi_reparam.guides import SDE
from vi_reparam.sde.study import Row
from vi_reparam_numpyro.guide_study import gradient_variance
from vi_reparam_numpyro.guided import Guided
from vi_reparam_numpyro.objectives import ELBO


def compare_sde(
    model: Any,
    *args: Any,
    family: SDE | None = None,
    parameterizations: Sequence[str] = ("data", "noise"),
    variances: Sequence[str] = ("learned", "data", "noise"),
    gradients: Sequence[str] = ("path", "reparameterization", "log_variance"),
    num_steps: int = 1_000,
    num_particles: int = 64,
    num_replicates: int = 200,
    seed: int = 0,
    progress: Callable[[Row], Any] | None = None,
    **kwargs: Any,
) -> list[Row]:
    """Fit an `SDE` guide in every combination.

    Args:
        model: a NumPyro model, or a guided one, whose guide is left aside.
        args: the model's arguments; `kwargs`: its keyword arguments.
        family: what else the guides have in common; `SDE()` unless given.
        num_steps: of each fit; `num_particles`: a step's.
        num_replicates: gradients from which the variance is taken, each of `num_particles` draws,
            at the fitted parameters.
        progress: called with each row.

    Returns:
        A row a combination.

    Raises:
        ArgumentError: for options that cannot be used, or fewer than two replicates.
    """
    if num_replicates < 2:
        raise ArgumentError(f"num_replicates={num_replicates!r}: expected 2 or more")
    model = model.model if isinstance(model, Guided) else model
    family = SDE() if family is None else family
    rows = []
    for parameterization, variance, gradient in itertools.product(parameterizations, variances, gradients):
        spec = dataclasses.replace(family, parameterization=parameterization, variance=variance, gradient=gradient)
        guided = Guided(model, spec, objective=ELBO(num_particles))
        begun = time.perf_counter()
        posterior = guided.fit(*args, num_steps=num_steps, seed=seed, progress=False, **kwargs)
        seconds = time.perf_counter() - begun
        elbo, error = posterior.elbo()
        spread = gradient_variance(guided, "sde_", posterior.params, args, kwargs, num_replicates, seed)
        row = Row(parameterization, variance, gradient, elbo, error, spread, seconds)
        rows.append(row)
        if progress is not None:
            progress(row)
    return rows
