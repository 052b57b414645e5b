"""Data against noise: guides that predict either, and the paths of both forms of the solver in ten steps."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpyro
import numpyro.distributions as dist
from jax import random

import vi_reparam_numpyro as vr
from vi_reparam.sde import Adams, Constant, UniformLogSNR, sample

SIDE = jnp.array([-5.0, 0.0, 5.0])
MEANS = jnp.stack(jnp.meshgrid(SIDE, SIDE), -1).reshape(-1, 2)
SCALE, VARIANCE, STEPS = 4.1, 0.3, 10


def funnel():
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    numpyro.sample("x", dist.Normal(jnp.zeros(9), jnp.exp(0.5 * v)).to_event(1))


def nine_modes():
    modes = dist.Categorical(jnp.full(9, 1.0 / 9.0))
    numpyro.sample("z", dist.MixtureSameFamily(modes, dist.Normal(MEANS, VARIANCE**0.5).to_event(1)))


def exact(x, row):
    """The data that the nine modes expect at x, in units of SCALE."""
    means, own = MEANS / SCALE, VARIANCE / SCALE**2
    a, s = row["alpha"], row["sigma"]
    total = a * a * own + s * s
    gaps = x[:, None] - a * means[None]
    weights = jax.nn.softmax(-0.5 * jnp.sum(gaps**2, -1) / total, axis=1)
    return jnp.sum(weights[..., None] * (means[None] + a * own / total * gaps), axis=1)


def paths(form, num=40):
    """Points along the paths, shape (steps + 1, num, 2), by running every beginning of the grid."""
    schedule = UniformLogSNR()
    grid = schedule.grid(STEPS)
    start, noise = random.normal(random.key(0), (num, 2)), random.normal(random.key(1), (STEPS, num, 2))
    points = [start]
    for k in range(1, STEPS + 1):
        end = sample(
            vr.ops,
            exact,
            start,
            noise[:k],
            schedule=schedule,
            grid=grid[: k + 1],
            adams=Adams(order=2, form=form),
            tau=Constant(1.0),
        )
        points.append(end)
    return SCALE * jnp.stack(points)


if __name__ == "__main__":
    for model, options in (
        (funnel, {}),
        (nine_modes, {"base": "diagonal", "init_scale": 4.0, "warm_start": 0, "learn_base": False}),
    ):
        for parameterization in ("data", "noise"):
            guided = vr.guide(vr.SDE(parameterization=parameterization, **options))(model)
            posterior = guided.fit(num_steps=800, progress=False)
            value, error = posterior.elbo(8_000)
            print(f"{model.__name__:10s} predicts {parameterization:5s} ELBO {value:.2f} +- {error:.2f}")
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.5), sharex=True, sharey=True)
    for ax, form in zip(axes, ("data", "noise"), strict=True):
        ax.plot(*jnp.moveaxis(paths(form), -1, 0), color="0.7", linewidth=0.6)
        ax.scatter(*paths(form)[-1].T, s=8)
        ax.scatter(*MEANS.T, marker="+", color="k")
        ax.set(title=f"{form} form, order 2, {STEPS} steps", xlim=(-12, 12), ylim=(-12, 12))
    figure.savefig("sde_paths.png", dpi=120)
    print("paths in sde_paths.png")
