"""Per-draw gradients in either framework, with the score terms and branches honoured as an objective would."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from vi_reparam import BackendError, Draw, load

BACKENDS = ("numpyro", "pyro")

# These programs run once or twice: compiling them well would take most of the time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def ops_or_skip(backend: str) -> Any:
    try:
        return load(backend).ops
    except BackendError as error:
        pytest.skip(f"{backend}: {error}")


def quickly(ops: Any, function: Any, *, optimized: bool = False) -> Any:
    """The function compiled, without optimization unless asked for, where the framework compiles."""
    if ops.name != "numpyro":
        return function
    import jax

    return jax.jit(function, compiler_options=OPTIMIZED if optimized else QUICK)


def leave_one_out(cost: Any) -> Any:
    """The mean of the other draws' costs; draws on the last axis."""
    return (cost.sum(-1)[..., None] - cost) / (cost.shape[-1] - 1)


@functools.cache
def _compiled(estimator: Any, family: Any, cost: Any, moving: tuple[int, ...], num: int, corrected: bool) -> Any:
    import jax
    import jax.numpy as jnp

    ops = load("numpyro").ops
    lanes = 100

    def costs(draw: Any) -> Any:
        value = cost(jnp, draw)
        return value if value.ndim > 1 else value[None]

    def one(params: Any, tangents: Any, key: Any) -> Any:
        """Costs (C, lanes) and slopes (D, C, lanes); particles are vmapped, as a backend would."""

        def parts(*values: Any) -> Any:
            moved = list(params)
            for index, value in zip(moving, values, strict=True):
                moved[index] = value
            draw = estimator.draw(ops, key, family, (lanes,), *moved)
            branches = [(costs(_branch(b.value)), b.weight) for b in draw.branches]
            return costs(draw), draw.score_term if corrected else None, branches

        primals = tuple(params[index] for index in moving)
        return jax.vmap(lambda t: jax.jvp(parts, primals, t), out_axes=(None, 0))(tangents)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def gradients(params: Any, tangents: Any, seed: Any) -> Any:
        keys = jax.random.split(jax.random.key(seed), num // lanes)
        (f, _, branches), (slope, score, branch_slopes) = jax.vmap(lambda key: one(params, tangents, key))(keys)
        f = jnp.moveaxis(f, 0, 1).reshape((1, f.shape[1], -1))
        slope = jnp.moveaxis(slope, 0, 2).reshape((slope.shape[1], f.shape[1], -1))
        flat = lambda x: jnp.moveaxis(x, 0, 1).reshape((x.shape[1], 1, -1))  # noqa: E731
        if score is not None:
            slope = slope + (f - leave_one_out(f)) * flat(score)
        for (branch_cost, _), (_, weight) in zip(branches, branch_slopes, strict=True):
            slope = slope + jnp.moveaxis(branch_cost, 0, 1).reshape(f.shape) * flat(weight)
        return slope

    return gradients


def jax_gradients(estimator: Any, row: Any, num: int, *, corrected: bool = True) -> Any:
    """A function of a seed: the gradient of every draw, (directions, costs, num); compiled once a cost."""
    import jax.numpy as jnp

    moving = row.moving or tuple(sorted({index for _, index, _ in row.directions}))
    params = tuple(jnp.asarray(p, jnp.float64) for p in row.params)
    tangents = tuple(
        jnp.asarray([t if i == index else np.zeros(np.shape(params[index])) for _, i, t in row.directions])
        for index in moving
    )
    compiled = _compiled(estimator, row.family, row.cost, moving, num, corrected)
    return lambda seed: np.asarray(compiled(params, tangents, seed))


def torch_gradients(estimator: Any, row: Any, num: int, *, corrected: bool = True) -> Any:
    """The same by reverse mode, every draw with parameters of its own."""
    import torch

    ops = load("pyro").ops
    wanted = sorted({index for _, index, _ in row.directions})

    def gradients(seed: int) -> Any:
        params: list[Any] = []
        for i, p in enumerate(row.params):
            p = torch.as_tensor(p, dtype=torch.float64)
            params.append(p.expand(num, *p.shape).clone().requires_grad_(i in wanted))
        draw = estimator.draw(ops, ops.key(seed), row.family, (num,), *params)
        costs = torch.atleast_2d(row.cost(ops.xp, draw))
        out = []
        for c, cost in enumerate(costs):
            held = cost.detach()
            loss = cost.sum() if cost.requires_grad else 0.0
            if draw.score_term is not None and corrected:
                loss = loss + ((held - leave_one_out(held)) * draw.score_term).sum()
            for b in draw.branches:
                branch_cost = torch.atleast_2d(row.cost(ops.xp, _branch(b.value)))[c]
                loss = loss + (branch_cost.detach() * b.weight).sum()
            moving = [params[i] for i in wanted]
            found = torch.autograd.grad(loss, moving, allow_unused=True, retain_graph=True)
            grads = dict(zip(wanted, found, strict=True))
            slopes = []
            for _, index, tangent in row.directions:
                g = torch.zeros_like(params[index]) if grads[index] is None else grads[index]
                g = g * torch.as_tensor(tangent, dtype=torch.float64)
                slopes.append((g.sum(-1) if g.ndim > 1 else g).numpy())
            out.append(np.stack(slopes))
        return np.stack(out, axis=1)

    return gradients


def _branch(value: Any) -> Draw:
    return Draw(value=value, log_prob=None)


def mean_and_error(gradients: Any, wanted: Any, *, seed: int = 1, most: int = 40) -> tuple[Any, Any]:
    """Batches under one compiled function until every standard error is below what is wanted.

    Where to stop depends on the spread alone, never on the mean's distance from the truth.
    """
    count, total, squares = 0, 0.0, 0.0
    for batch in range(most):
        g = gradients(seed + batch)
        assert np.isfinite(g).all()
        count, total, squares = count + g.shape[-1], total + g.sum(-1), squares + (g * g).sum(-1)
        mean = total / count
        error = np.sqrt(np.maximum(squares / count - mean**2, 0.0) / count)
        if np.all(error < wanted):
            break
    return mean, error
