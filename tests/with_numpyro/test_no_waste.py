"""Fits of equal shapes share one compilation; checkpoints and seeds do what they say."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import vi_reparam_numpyro as vr
from vi_reparam.fit import checkpoints
from vi_reparam_numpyro.engine.optimizers import fingerprint

Y = np.array([3.0, 1.0, 4.0, 1.0, 5.0])


def program(y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


@pytest.fixture(scope="module")
def fitted():
    guided = vr.guide(vr.MeanField())(program)
    return guided, guided.fit(Y, num_steps=1_500, seed=5, progress=False)


def test_a_conjugate_posterior_is_reached(fitted):
    """Gamma(2 + 14, 1 + 5); the evidence in closed form."""
    posterior = fitted[1]
    concentration = float(posterior.params["rate_concentration"])
    assert concentration == pytest.approx(16.0, rel=0.05)
    assert float(posterior.params["rate_mean"]) == pytest.approx(16.0 / 6.0, rel=0.01)
    lgamma = jax.scipy.special.gammaln
    evidence = lgamma(16.0) - lgamma(2.0) - 16.0 * jnp.log(6.0) - jnp.sum(lgamma(Y + 1.0))
    value, error = posterior.elbo()
    assert abs(value - float(evidence)) < 5.0 * error + 1e-3


def programs(guided):
    """The compiled fits of a model."""
    entries = guided.backend.engine.programs.entries.values()
    return [program for program in entries if program.task.guide is guided.guide]


def test_other_data_and_an_equal_optimizer_compile_nothing(fitted):
    guided = vr.guide(vr.MeanField())(program)
    guided.fit(Y, num_steps=5, optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 50)), progress=False)
    guided.fit(Y + 1.0, num_steps=9, optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 50)), progress=False)
    (only,) = programs(guided)
    assert only.steps._cache_size() == 1
    guided.fit(Y, num_steps=5, optimizer=optax.adam(optax.cosine_decay_schedule(0.2, 50)), progress=False)
    assert len(programs(guided)) == 2


def test_fingerprints():
    assert fingerprint(optax.adam(0.1)) == fingerprint(optax.adam(0.1))
    assert fingerprint(optax.adam(0.1)) != fingerprint(optax.adam(0.2))
    assert fingerprint(optax.adam(0.1)) != fingerprint(optax.sgd(0.1))
    chained = [optax.chain(optax.clip(c), optax.adam(0.1, b2=0.9)) for c in (1.0, 1.0, 2.0)]
    assert fingerprint(chained[0]) == fingerprint(chained[1]) != fingerprint(chained[2])


def test_the_seed_governs_a_fit(fitted):
    guided, posterior = fitted
    again = guided.fit(Y, num_steps=1_500, seed=jax.random.key(5), progress=False)
    np.testing.assert_array_equal(again.losses, posterior.losses)
    other = guided.fit(Y, num_steps=1_500, seed=4, progress=False)
    assert not np.array_equal(other.losses, posterior.losses)


def test_a_model_that_reads_its_data_in_python():
    @vr.guide(vr.MeanField())
    def model(y):
        mean = 1.0 if float(y[0]) > 2.0 else -1.0
        numpyro.sample("z", dist.Normal(mean, 1.0))

    with pytest.warns(UserWarning, match="reads its data in Python"):
        high = model.fit(Y, num_steps=600, progress=False)
    low = model.fit(Y - 3.0, num_steps=600, progress=False)
    assert float(high.params["z_loc"]) == pytest.approx(1.0, abs=0.1)
    assert float(low.params["z_loc"]) == pytest.approx(-1.0, abs=0.1)


def test_a_fit_goes_on_from_its_checkpoint(fitted, tmp_path, monkeypatch):
    guided, posterior = fitted
    path = tmp_path / "fit.npz"
    save, monkeypatched = checkpoints.save, {"left": 2}

    def interrupted(*args):
        save(*args)
        monkeypatched["left"] -= 1
        if not monkeypatched["left"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", interrupted)
    monkeypatch.setattr("vi_reparam.fit.loop.time.perf_counter", iter(range(0, 10**6, 100)).__next__)
    with pytest.raises(KeyboardInterrupt):
        guided.fit(Y, num_steps=1_500, seed=5, progress=False, checkpoint=path)
    monkeypatch.undo()
    assert path.exists()
    resumed = guided.fit(Y, num_steps=1_500, seed=5, progress=False, checkpoint=path)
    np.testing.assert_array_equal(resumed.losses, posterior.losses)
    with pytest.raises(vr.ArgumentError, match="of another fit"):
        guided.fit(Y, num_steps=10, seed=5, progress=False, checkpoint=path)
    with pytest.raises(vr.ArgumentError, match="of another fit: its seed is '5', this one's '4'"):
        guided.fit(Y, num_steps=1_500, seed=4, progress=False, checkpoint=path)
    with pytest.raises(vr.ArgumentError, match="of another fit: its plan"):
        guided.fit(Y, num_steps=1_500, seed=5, optimizer=optax.adam(0.1), progress=False, checkpoint=path)

    @vr.guide(vr.MeanField())
    def other(y):
        program(y)

    with pytest.raises(vr.ArgumentError, match="its model is 'program', this one's 'other'"):
        other.fit(Y, num_steps=1_500, seed=5, progress=False, checkpoint=path)
    assert path.exists()
    path.write_bytes(b"nothing of ours")
    with pytest.raises(vr.ArgumentError, match="not a vi-reparam checkpoint"):
        guided.fit(Y, num_steps=1_500, seed=5, progress=False, checkpoint=path)


def test_a_checkpoint_of_an_older_version_is_refused(fitted, tmp_path):
    guided, path = fitted[0], tmp_path / "fit.npz"
    np.savez(path, header=np.array(json.dumps({"format": "vi-reparam-checkpoint/1", "done": 3})), losses=np.zeros(3))
    with pytest.raises(vr.ArgumentError, match=r"has format 'vi-reparam-checkpoint/1'.* give another file") as caught:
        guided.fit(Y, num_steps=1_500, seed=5, progress=False, checkpoint=path)
    assert "\n" not in str(caught.value)
