"""Predictions of models with scan: steps of the fit have the posterior's states, further ones draw their own."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import vi_reparam_numpyro as vr

Y = np.array([1.0, 3.0, 2.0, 5.0, 4.0, 6.0])


def walk(x, y=None):
    """A level that walks with steps of sd 0.5 from a known start, seen with noise of sd 0.01."""

    def step(level, seen):
        shift, value = seen
        level = numpyro.sample("level", dist.Normal(level, 0.5))
        numpyro.sample("y", dist.Normal(level + shift, 0.01), obs=value)
        return level, level

    numpyro.sample("unused", dist.Normal(0.0, 1.0))
    scan(step, 0.0, (x, y), length=len(x))


@pytest.fixture(scope="module")
def posterior():
    return vr.guide(vr.FullRank())(walk).fit(jnp.zeros(6), y=jnp.asarray(Y), progress=False)


@pytest.mark.parametrize("with_outcome", [True, False])
def test_the_steps_of_the_fit(posterior, with_outcome):
    given = {"y": jnp.zeros(6)} if with_outcome else {}
    found = np.asarray(posterior.predict(jnp.arange(6.0), num_draws=500, **given)["y"])
    np.testing.assert_allclose(found.mean(0), Y + np.arange(6.0), atol=0.01)


def test_steps_after_them_go_on_from_the_last(posterior):
    found = np.asarray(posterior.predict(jnp.zeros(8), num_draws=2_000, return_sites=["level"])["level"])
    assert found.shape == (2_000, 8)
    np.testing.assert_allclose(found[:, :6].mean(0), Y, atol=0.01)
    np.testing.assert_allclose(found[:, 6:].mean(0), Y[-1], atol=4.0 * 0.5 * np.sqrt(2.0 / 2_000))
    np.testing.assert_allclose(found[:, 6:].std(0), 0.5 * np.sqrt([1.0, 2.0]), rtol=0.1)


def test_fewer_steps_are_refused(posterior):
    with pytest.raises(vr.ViReparamError, match="length") as caught:
        posterior.predict(jnp.zeros(4), num_draws=5)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)
