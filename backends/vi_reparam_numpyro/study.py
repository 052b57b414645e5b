"""Studies of guides over all latents, on NumPyro."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import random

from vi_reparam.guides import SDE
from vi_reparam.guides.gaussian import GRADIENTS
from vi_reparam.study import FamilyRow, FormRow, Study, study_families, study_forms
from vi_reparam_numpyro.arguments import Arguments
from vi_reparam_numpyro.escalate import size_of
from vi_reparam_numpyro.guided import Guided
from vi_reparam_numpyro.host.objectives import ELBO


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
    progress: bool = True,
    **kwargs: Any,
) -> Study[FormRow]:
    """Fit an `SDE` guide in every combination of what it predicts, its kernels' variance and its gradient.

    Args:
        model: a NumPyro model, or a guided one, whose guide is left aside.
        args: the model's arguments; `kwargs`: its keyword arguments.
        family: what else the guides have in common; `SDE()` unless given.
        num_steps: of each fit; `num_particles`: a step's.
        num_replicates: gradients from which the variance is taken, each of `num_particles` draws,
            at the fitted parameters.
        progress: whether to show a progress bar.

    Returns:
        A row a combination; its `dataset` has dimensions parameterization x variance x gradient.

    Raises:
        ArgumentError: for options that cannot be used, or fewer than two replicates.
    """
    return study_forms(
        _NumPyro(),
        model,
        args,
        kwargs,
        family=family,
        parameterizations=parameterizations,
        variances=variances,
        gradients=gradients,
        num_steps=num_steps,
        num_particles=num_particles,
        num_replicates=num_replicates,
        seed=seed,
        progress=progress,
    )


def compare_guides(
    model: Any,
    *args: Any,
    families: Sequence[Any] | None = None,
    gradients: Sequence[str] = GRADIENTS,
    num_steps: int | None = None,
    num_particles: int | None = None,
    num_replicates: int = 200,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> Study[FamilyRow]:
    """Fit each family by path gradients, and measure its gradients' variance at the end.

    Args:
        model: a NumPyro model, or a guided one, whose guide is left aside.
        args: the model's arguments; `kwargs`: its keyword arguments.
        families: the mean field, Gaussians and flows; unless given, those that suit the model's size.
        gradients: whose variance is measured, at the same parameters.
        num_steps: of each fit; unless given, until it has converged.
        num_particles: a step's; the family's unless given.
        num_replicates: gradients from which a variance is taken, each of `num_particles` draws.
        progress: whether to show a progress bar.

    Returns:
        A row a family and gradient; its `dataset` has dimensions family x gradient.

    Raises:
        ArgumentError: for options that cannot be used, or fewer than two replicates.
    """
    return study_families(
        _NumPyro(),
        model,
        args,
        kwargs,
        families=families,
        gradients=gradients,
        num_steps=num_steps,
        num_particles=num_particles,
        num_replicates=num_replicates,
        seed=seed,
        progress=progress,
    )


class _NumPyro:
    """The bench (`vi_reparam.study.StudyBackend`)."""

    def guided(
        self, model: Any, family: Any, num_particles: int | None = None, *, entropy: str = "monte_carlo"
    ) -> Guided:
        objective = ELBO(num_particles or family.num_particles, entropy=entropy)
        return Guided(model.model if isinstance(model, Guided) else model, family, objective=objective)

    def size(self, model: Any, args: Any, kwargs: Any) -> int | None:
        return size_of(model.model if isinstance(model, Guided) else model, args, kwargs)[0]

    def gradient_variance(self, guided: Any, own: tuple[str, ...], posterior: Any, num: int, seed: int) -> float:
        arguments = Arguments.of(posterior.args, posterior.kwargs)
        moving = {n: p for n, p in posterior.params.items() if n.startswith(own)}
        others = {n: p for n, p in posterior.params.items() if n not in moving}

        @jax.jit
        def total(moving: Any, keys: Any, arrays: Any) -> Any:
            args, kwargs = arguments.join(arrays)

            def loss(p: Any, key: Any) -> Any:
                return guided.objective.loss(key, {**others, **p}, guided.model, guided.guide, *args, **kwargs)

            grads = jax.lax.map(lambda key: jax.grad(loss)(moving, key), keys)
            return sum(jnp.sum(jnp.var(g, axis=0, ddof=1)) for g in jax.tree.leaves(grads))

        return float(total(moving, random.split(random.key(seed + 1), num), arguments.arrays))
