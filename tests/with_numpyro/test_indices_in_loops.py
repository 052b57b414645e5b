"""Indices out of bounds inside of JAX's own loops and functions."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import vi_reparam_numpyro as vr


def with_rows(mean_of):
    def model(group):
        with numpyro.plate("groups", 5):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.factor("y", -(mean_of(theta, group) ** 2).sum())

    return model


def of_a_scan(group):
    with numpyro.plate("groups", 5):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))

    def step(state, g):
        state = numpyro.sample("state", dist.Normal(state + theta[g], 1.0))
        return state, state

    scan(step, 0.0, group)


PROGRAMS = {
    "scan": of_a_scan,
    "jit": with_rows(jax.jit(lambda theta, group: theta[group])),
    "checkpoint": with_rows(jax.checkpoint(lambda theta, group: theta[group])),
    "two at once": with_rows(lambda theta, group: jnp.outer(theta, theta)[group, group]),
    "sorted": with_rows(lambda theta, group: theta[jnp.sort(group)]),
    "the largest": with_rows(lambda theta, group: theta[group.max()] + theta[group.min()]),
    "running sums": with_rows(lambda theta, group: theta[jnp.cumsum(jnp.diff(group, prepend=0))]),
    "map": with_rows(lambda theta, group: jax.lax.map(lambda g: theta[g], group)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_index_out_of_bounds_is_found(name):
    guided = vr.guide(PROGRAMS[name])
    guided.backend.engine.data((np.array([0, 4, 1]),), {}, guided.model)
    for bad, group in ((6, [0, 6, 1]), (-7, [0, -7, 1])):
        with pytest.raises(vr.ViReparamError, match=f"index {bad} is out of bounds for an array of size 5"):
            guided.backend.engine.data((np.array(group),), {}, guided.model)


def test_the_branch_that_is_not_taken_may_index_as_it_likes():
    def mean(theta, group):
        return jax.lax.cond(group.max() < 5, lambda: theta[group], lambda: jnp.zeros(3))

    guided = vr.guide(with_rows(mean))
    guided.backend.engine.data((np.array([0, 6, 1]),), {}, guided.model)


UPDATES = {
    "set": with_rows(lambda theta, group: theta * jnp.zeros(5).at[group].set(1.0)),
    "add": with_rows(lambda theta, group: theta.at[group].add(1.0)),
    "sums by group": with_rows(lambda theta, group: theta * jax.ops.segment_sum(jnp.ones(3), group, num_segments=5)),
    "counts": with_rows(lambda theta, group: theta * jnp.bincount(group, length=5)),
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_that_jax_leaves_out_is_told(name, recwarn):
    guided = vr.guide(UPDATES[name])
    guided.backend.engine.data((np.array([0, 4, 1]),), {}, guided.model)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="an update at index 6 of an array of size 5 is left out") as told:
        guided.backend.engine.data((np.array([0, 6, 1]),), {}, guided.model)
    assert len(str(told[0].message)) <= 300


def test_an_index_that_is_searched_for_is_looked_at():
    guided = vr.guide(with_rows(lambda theta, group: theta[jnp.searchsorted(jnp.arange(5), group)]))
    guided.backend.engine.data((np.array([0, 4, 1]),), {}, guided.model)
    with pytest.raises(vr.ViReparamError, match="index 5 is out of bounds for an array of size 5"):
        guided.backend.engine.data((np.array([0, 6, 1]),), {}, guided.model)


def lkj(y):
    z = numpyro.sample("z", dist.LKJCholesky(3, 1.0))
    numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y[0])


def where_seen(y):
    rows = jnp.nonzero(y > 0.0, size=2)[0]
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0).expand([2]).to_event(1), obs=y[rows])


@pytest.mark.parametrize("model", [lkj, where_seen])
def test_what_nonzero_leaves_out_is_no_update_of_the_model(model, recwarn):
    """A correlation matrix was fitted with three warnings, for its indices are found so."""
    vr.guide(vr.MeanField())(model).fit(np.array([1.0, 0.0, 2.0]), num_steps=1, num_particles=1, progress=False)
    assert not [one for one in recwarn.list if "left out" in str(one.message)]
