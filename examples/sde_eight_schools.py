"""A centred hierarchical model is a funnel: a Gaussian guide fails where a learned diffusion does not."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import vi_reparam_numpyro as vr

EFFECT = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


if __name__ == "__main__":
    for family in (vr.MeanField(), vr.SDE()):
        posterior = vr.guide(family)(eight_schools).fit(ERROR, y=EFFECT, num_steps=1_500)
        value, error = posterior.elbo(8_000)
        tau = posterior.draws(8_000)["tau"]
        name = type(family).__name__
        print(f"{name:10s} ELBO {value:.2f} +- {error:.2f}, khat {posterior.khat:.2f}, tau {tau.mean():.2f}")
    # the same paths in more steps, with a corrector and without noise
    draws = posterior.draws(8_000, solver=vr.Adams(order=2, corrector=3), num_steps=64, tau=0.0)
    print(f"tau by the flow {draws['tau'].mean():.2f}")
