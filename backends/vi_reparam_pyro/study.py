"""Studies of guides over all latents, on Pyro."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vi_reparam.guides import SDE
from vi_reparam.guides.gaussian import GRADIENTS
from vi_reparam.study import FamilyRow, FormRow, Study, study_families, study_forms
from vi_reparam_pyro.arguments import as_tensors
from vi_reparam_pyro.engine.gradient import Gradient
from vi_reparam_pyro.escalate import size_of
from vi_reparam_pyro.fit import as_key
from vi_reparam_pyro.guided import Guided
from vi_reparam_pyro.host.objectives import ELBO
from vi_reparam_pyro.host.params import first_parameters, isolated
from vi_reparam_pyro.lanes.vmap import without_validation
from vi_reparam_pyro.ops.ops import mix


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
        model: a Pyro model, or a guided one, whose guide is left aside.
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
        _Pyro(),
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
        model: a Pyro model, or a guided one, whose guide is left aside.
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
        _Pyro(),
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


class _Pyro:
    """The bench (`vi_reparam.study.StudyBackend`)."""

    def guided(
        self, model: Any, family: Any, num_particles: int | None = None, *, entropy: str = "monte_carlo"
    ) -> Guided:
        objective = ELBO(num_particles or family.num_particles, entropy=entropy)
        return Guided(model.model if isinstance(model, Guided) else model, family, objective=objective)

    def size(self, model: Any, args: Any, kwargs: Any) -> int | None:
        return size_of(model.model if isinstance(model, Guided) else model, args, kwargs)[0]

    def gradient_variance(self, guided: Any, own: tuple[str, ...], posterior: Any, num: int, seed: int) -> float:
        args, kwargs = as_tensors(posterior.args, posterior.kwargs)
        key = mix(as_key(seed) + 1)
        with isolated(), without_validation():
            params = first_parameters(guided.model, guided.guide, args, kwargs, key=key)
            params.start_from({name: value for name, value in posterior.params.items() if name in params.free})
            # as in a fit, so that the replicates run as a captured graph where one can be had
            step = Gradient(guided, guided.objective, params, key, args, kwargs, num)
            moving = [leaf for name, leaf in params.free.items() if name.startswith(own)]
            mean = spread = torch.zeros(sum(leaf.numel() for leaf in moving), dtype=torch.float64)
            for replicate in range(num):
                step(replicate, {})
                parts = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in moving]
                found = torch.cat([part.reshape(-1) for part in parts]).double()
                move = found - mean
                mean = mean + move / (replicate + 1)
                spread = spread + move * (found - mean)
        return float(spread.sum() / (num - 1))
