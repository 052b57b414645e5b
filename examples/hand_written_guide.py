"""Estimators in a guide written by hand, in plain SVI: change points in coal mining disasters.

Data: Jarrett (1979), disasters a year in British coal mines, 1851 to 1962.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI

import vi_reparam_numpyro as vr

# fmt: off
DISASTERS = jnp.array([
    4, 5, 4, 0, 1, 4, 3, 4, 0, 6, 3, 3, 4, 0, 2, 6, 3, 3, 5, 4, 5, 3, 1, 4, 4, 1, 5, 5, 3, 4, 2, 5, 2, 2, 3, 4, 2,
    1, 3, 2, 2, 1, 1, 1, 1, 3, 0, 0, 1, 0, 1, 1, 0, 0, 3, 1, 0, 3, 2, 2, 0, 1, 1, 1, 0, 1, 0, 1, 0, 0, 0, 2, 1, 0,
    0, 0, 1, 1, 0, 2, 3, 3, 1, 1, 2, 1, 1, 1, 1, 2, 4, 2, 0, 0, 1, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0,
])
# fmt: on
YEARS = jnp.linspace(0.0, 1.0, len(DISASTERS))


def model(counts):
    when = numpyro.sample("when", dist.Beta(1.0, 1.0))
    early = numpyro.sample("early", dist.Gamma(2.0, 0.5))
    late = numpyro.sample("late", dist.Gamma(2.0, 0.5))
    after = jax.nn.sigmoid((YEARS - when) * 100.0)
    with numpyro.plate("years", len(counts)):
        numpyro.sample("counts", dist.Poisson(early * (1.0 - after) + late * after), obs=counts)


def guide(counts):
    def positive(name, start):
        return numpyro.param(name, jnp.asarray(start), constraint=dist.constraints.positive)

    numpyro.sample("when", dist.Beta(positive("when_1", 20.0), positive("when_0", 20.0)))
    for name in ("early", "late"):
        numpyro.sample(name, dist.Gamma(positive(f"{name}_concentration", 20.0), positive(f"{name}_rate", 10.0)))


if __name__ == "__main__":
    estimated = vr.estimate(guide, {"when": vr.Rejection(boost=3), "*": vr.Implicit()})
    svi = SVI(model, estimated, numpyro.optim.Adam(0.02), vr.ELBO(num_particles=8))
    fitted = svi.run(jax.random.key(0), 2_000, DISASTERS, progress_bar=False).params
    year = 1851 + 111 * fitted["when_1"] / (fitted["when_1"] + fitted["when_0"])
    early, late = (fitted[f"{n}_concentration"] / fitted[f"{n}_rate"] for n in ("early", "late"))
    print(f"the rate fell from {early:.2f} to {late:.2f} disasters a year about {year:.0f}")
