"""vr.compare_sde and vr.compare_guides in NumPyro: every combination, its figures, and the command line."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

import vi_reparam_numpyro as vr
from vi_reparam.commands.app import main
from vi_reparam.study.guides import gradient_variance

TINY = vr.SDE(num_steps=2, network=vr.MLP(width=4, depth=1, frequencies=2), warm_start=0, base="diagonal")
Y = np.array([1.2, -0.3, 0.8])


@vr.guide
def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu[0], 1.0), obs=y)


@pytest.mark.slow  # the Pyro backend's is not
def test_forms(capfd):
    options = {"variances": ("learned",), "gradients": ("path",)}
    study = vr.compare_sde(model, Y, family=TINY, **options, num_steps=2, num_particles=4, num_replicates=4)
    assert [row.parameterization for row in study] == ["data", "noise"]
    data = study.dataset
    assert dict(data.sizes) == {"parameterization": 2, "variance": 1, "gradient": 1}
    assert set(data.data_vars) == {"elbo", "error", "gradient_variance", "seconds"}
    assert np.isfinite(data.to_array()).all() and float(data.gradient_variance.min()) > 0.0
    assert study[1].elbo == float(data.elbo.sel(parameterization="noise", variance="learned", gradient="path"))
    assert len(study.to_dataframe()) == study.table().row_count == 2
    assert "2/2" in capfd.readouterr().err


@pytest.mark.slow
def test_families(tmp_path, capfd):
    study = vr.compare_guides(
        model, Y, families=(vr.LowRank(rank=1), vr.LowRank(rank=2)), num_steps=3, num_particles=4, num_replicates=4
    )
    data = study.dataset
    assert dict(data.sizes) == {"family": 2, "gradient": 2}
    assert set(data.data_vars) == {"elbo", "error", "khat", "gradient_variance", "seconds"}
    assert "2/2" in capfd.readouterr().err
    study.save(tmp_path / "study.nc")
    assert (tmp_path / "study.nc").exists()
    vr.compare_guides(
        model, Y, families=(vr.LowRank(rank=1),), gradients=("path",), num_steps=2, num_replicates=2, progress=False
    )
    assert capfd.readouterr().err == ""


@pytest.mark.slow  # the Pyro backend's is not
def test_the_variance_is_that_of_the_gradient():
    """Of a Gaussian by reparameterization, whose gradient by its location is known in closed form."""
    family = vr.FullRank(gradient="reparameterization")
    posterior = vr.guide(family)(lambda: numpyro.sample("z", dist.Normal(0.0, 1.0))).fit(num_steps=2, progress=False)
    guided = vr.Guided(posterior.guided.model, family, objective=vr.ELBO(1))
    found = gradient_variance(guided, ("gaussian_loc",), posterior, 4_000, 0)
    params = {n: jnp.asarray(p) for n, p in posterior.params.items()}
    draw = jax.vmap(lambda key: numpyro.handlers.seed(numpyro.handlers.substitute(guided.guide, params), key)()["z"])
    z = draw(random.split(random.key(5), 20_000))
    scale = jnp.abs(params["gaussian_root"]).reshape(())
    # the gradient is root * z, so its variance is root^2 var(z)
    assert abs(found / float(scale**2 * jnp.var(z)) - 1.0) < 0.1


@pytest.mark.slow  # the Pyro backend's is not
def test_a_mean_field_that_is_the_posterior_has_no_noise_in_its_path_gradient():
    study = vr.compare_guides(model, Y, families=(vr.MeanField(),), num_steps=300, num_replicates=50, progress=False)
    spread = {row.gradient: row.gradient_variance for row in study}
    assert 0.0 < spread["path"] < 0.05 * spread["reparameterization"]


def test_what_cannot_be_studied():
    with pytest.raises(vr.ArgumentError, match="2 or more"):
        vr.compare_sde(model, Y, num_replicates=1)
    with pytest.raises(vr.ArgumentError, match="expected one such as SDE"):
        vr.compare_sde(model, Y, family=vr.MeanField())
    with pytest.raises(vr.ArgumentError, match="at least one"):
        vr.compare_sde(model, Y, variances=())
    with pytest.raises(vr.ArgumentError, match="no choice of gradient"):
        vr.compare_guides(model, Y, families=(vr.SDE(),))
    with pytest.raises(vr.ArgumentError, match="gradient 'score'"):
        vr.compare_guides(model, Y, gradients=("score",))


@pytest.mark.slow  # the Pyro backend's is not
@pytest.mark.parametrize("family", ["sde", "joint"])
def test_on_the_command_line(family, capfd, tmp_path, monkeypatch):
    if family == "sde":
        one = {"parameterizations": ("data",), "variances": ("learned",), "gradients": ("path",)}
        monkeypatch.setattr(vr, "compare_sde", functools.partial(vr.compare_sde, family=TINY, **one))
    else:
        monkeypatch.setattr(vr, "compare_guides", functools.partial(vr.compare_guides, families=(vr.LowRank(rank=1),)))
    arguments = ["--num-steps", "2", "--num-particles", "2", "--replicates", "2", "--json", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        main(["compare", "gamma_poisson", "--family", family, *arguments])
    found = json.loads(capfd.readouterr().out)
    assert caught.value.code == 0
    assert len(found["rows"]) == {"sde": 1, "joint": 2}[family] and found["backend"] == "numpyro"
    assert [path.name for path in tmp_path.iterdir()] == [f"gamma_poisson_{family}.nc"]
