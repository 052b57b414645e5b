"""A model, a decorator, a posterior: eight schools (Rubin 1981)."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import vi_reparam_numpyro as vr

EFFECT = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@vr.guide
def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(sigma)):
        eta = numpyro.sample("eta", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * eta)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


if __name__ == "__main__":
    posterior = eight_schools.fit(ERROR, y=EFFECT, num_steps=2_000)
    print(posterior.summary())
    value, error = posterior.log_evidence()
    print(f"log evidence {value:.2f} +- {error:.2f}")
    new = posterior.predict(ERROR)["y"]
    print("90% of new results of school A:", jnp.quantile(new[:, 0], jnp.array([0.05, 0.95])))
