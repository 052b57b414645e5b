"""A rejection sampler of your own: a class with five methods, and every estimator and test applies.

Cheng's (1977) sampler of the gamma distribution above concentration 1: a log-logistic proposal.
"""

import jax
import numpyro
import numpyro.distributions as dist

import vi_reparam_numpyro as vr


class ChengGamma(vr.RejectionSampler):
    """Gamma(a, 1) for a > 1."""

    noise = "uniform"

    def transform(self, noise, a):
        xp = vr.ops_of(noise).xp
        return a * xp.exp((xp.log(noise) - xp.log1p(-noise)) / xp.sqrt(2.0 * a - 1.0))

    def log_proposal(self, value, a):
        xp = vr.ops_of(value).xp
        slope = xp.sqrt(2.0 * a - 1.0)
        u = slope * (xp.log(value) - xp.log(a))
        return xp.log(slope) - xp.log(value) + u - 2.0 * xp.logaddexp(u, 0.0 * u)

    def log_target(self, value, a):
        ops = vr.ops_of(value)
        return (a - 1.0) * ops.xp.log(value) - value - ops.gammaln(a)

    def log_bound(self, a):
        ops = vr.ops_of(a)
        return 1.3862943611198906 + a * ops.xp.log(a) - a - ops.gammaln(a) - 0.5 * ops.xp.log(2.0 * a - 1.0)


def model():
    numpyro.sample("z", dist.Gamma(3.0, 1.0))


def guide():
    a = numpyro.param("a", 1.5, constraint=dist.constraints.greater_than(1.0))
    drawn = vr.FromSampler(ChengGamma(), a, support=dist.constraints.positive)
    numpyro.sample("z", vr.Rejection()(drawn))


if __name__ == "__main__":
    objective = vr.ELBO(num_particles=8)

    def gradient(key):
        return jax.grad(lambda a: objective.loss(key, {"a": a}, model, guide))(1.5)

    grads = jax.vmap(gradient)(jax.random.split(jax.random.key(0), 4_000))
    error = grads.std() / 4_000**0.5
    print(f"d/da KL(Gamma(a, 1) || Gamma(3, 1)) at a = 1.5: {grads.mean():.3f} +- {error:.3f} (exact: -1.402)")
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.005), objective)
    print(f"fitted a = {svi.run(jax.random.key(1), 3_000, progress_bar=False).params['a']:.3f} (exact: 3)")
