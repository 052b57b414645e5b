"""Replicated gradients of an objective, and how far their mean is from an exact value."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln


def gradients(objective, params, model, guide, *args, num=4_000, seed=0, state=None, **kwargs):
    """`num` independent gradients of the loss, a dict of arrays with a leading axis of replicates."""
    state = state or {}

    def loss(held, key):
        return objective.loss(key, {**held, **state}, model, guide, *args, **kwargs)

    keys = jax.random.split(jax.random.key(seed), num)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.result_type(float)), params)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, keys))


def z_scores(samples, exact):
    """Standard errors between the mean of replicates and the exact value, elementwise."""
    samples, exact = np.asarray(samples), np.asarray(exact)
    assert np.isfinite(samples).all()
    gap = samples.mean(0) - exact
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    still = error <= 1e-12
    assert np.all(np.abs(gap[still]) <= 1e-9 * np.maximum(1.0, np.abs(exact[still]))), "no spread, and not exact"
    return np.where(still, 0.0, gap / np.where(still, 1.0, error))


def assert_right(found, exact, *, limit=4.5, precise=None):
    """Every mean gradient is within `limit` standard errors of the exact one.

    Args:
        precise: the largest standard error allowed, as a fraction of max(|exact|, 1).
    """
    assert set(exact) <= set(found)
    for name, value in exact.items():
        z = z_scores(found[name], value)
        assert np.all(np.abs(z) < limit), f"{name}: mean {found[name].mean(0)}, exact {value}, z {z}"
        if precise is not None:
            error = found[name].std(0) / np.sqrt(len(found[name]))
            assert np.all(error <= precise * np.maximum(np.abs(value), 1.0)), f"{name}: standard error {error}"


def kl_gamma(a, r, b, s):
    """KL(Gamma(a, r) || Gamma(b, s))."""
    return (a - b) * digamma(a) - gammaln(a) + gammaln(b) + b * (jnp.log(r) - jnp.log(s)) + a * (s - r) / r


def kl_dirichlet(a, b):
    """KL(Dirichlet(a) || Dirichlet(b)); a beta distribution is one of two components."""
    total, other = a.sum(-1), b.sum(-1)
    norms = gammaln(total) - gammaln(other) - (gammaln(a) - gammaln(b)).sum(-1)
    return norms + ((a - b) * (digamma(a) - digamma(total)[..., None])).sum(-1)
