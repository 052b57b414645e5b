"""Families side by side: their bounds, and the variance of their gradients where the fit ended."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import random

from vi_reparam.errors import ArgumentError
from vi_reparam.guides import Flow, FullRank, GaussianFamily, LowRank
from vi_reparam.guides.gaussian import GRADIENTS
from vi_reparam.study import GuideRow
from vi_reparam_numpyro.arguments import Arguments
from vi_reparam_numpyro.guided import Guided


def compare_guides(
    model: Any,
    *args: Any,
    families: Sequence[Any] = (FullRank(), LowRank(rank=2), Flow(), Flow(kind="coupling")),
    gradients: Sequence[str] = GRADIENTS,
    num_steps: int | None = None,
    num_particles: int | None = None,
    num_replicates: int = 200,
    seed: int = 0,
    progress: Callable[[GuideRow], Any] | None = None,
    **kwargs: Any,
) -> list[GuideRow]:
    """Fit each family by path gradients, and measure its gradients' variance at the end.

    Args:
        model: a NumPyro model, or a guided one, whose guide is left aside.
        args: the model's arguments; `kwargs`: its keyword arguments.
        families: Gaussians and flows.
        gradients: whose variance is measured, at the same parameters.
        num_steps: of each fit; unless given, until it has converged.
        num_particles: a step's; the family's unless given.
        num_replicates: gradients from which a variance is taken, each of `num_particles` draws.
        progress: called with each row.

    Returns:
        A row a family and gradient.

    Raises:
        ArgumentError: for options that cannot be used, or fewer than two replicates.
    """
    if num_replicates < 2:
        raise ArgumentError(f"num_replicates={num_replicates!r}: expected 2 or more")
    for family in families:
        if not isinstance(family, GaussianFamily | Flow):
            raise ArgumentError(f"compare_guides: {family!r} has no choice of gradient; use Gaussians and flows")
    model = model.model if isinstance(model, Guided) else model
    rows = []
    for family in families:
        begun = time.perf_counter()
        guided = Guided(model, dataclasses.replace(family, gradient="path"))
        options = {"num_steps": num_steps, "num_particles": num_particles, "seed": seed, "progress": False}
        posterior = guided.fit(*args, **options, **kwargs)
        seconds = time.perf_counter() - begun
        elbo, error = posterior.elbo()
        for gradient in gradients:
            other = Guided(model, dataclasses.replace(family, gradient=gradient))
            if num_particles is not None:
                other.objective = other.objective.with_particles(num_particles)
            own = ("gaussian_", "flow_")
            spread = gradient_variance(other, own, posterior.params, args, kwargs, num_replicates, seed)
            rows.append(GuideRow(repr(family), gradient, elbo, error, posterior.khat, spread, seconds))
            if progress is not None:
                progress(rows[-1])
    return rows


def gradient_variance(
    guided: Any, own: str | tuple[str, ...], params: Any, args: Any, kwargs: Any, num: int, seed: int
) -> float:
    """Total variance of the gradient by the guide's own parameters.

    Args:
        own: how their names begin.
        num: replicates.
    """
    arguments = Arguments.of(args, kwargs)
    moving = {n: p for n, p in params.items() if n.startswith(own)}
    others = {n: p for n, p in params.items() if n not in moving}

    @jax.jit
    def total(moving: Any, keys: Any, arrays: Any) -> Any:
        args, kwargs = arguments.join(arrays)

        def loss(p: Any, key: Any) -> Any:
            return guided.objective.loss(key, {**others, **p}, guided.model, guided.guide, *args, **kwargs)

        grads = jax.lax.map(lambda key: jax.grad(loss)(moving, key), keys)
        return sum(jnp.sum(jnp.var(g, axis=0, ddof=1)) for g in jax.tree.leaves(grads))

    return float(total(moving, random.split(random.key(seed + 1), num), arguments.arrays))
