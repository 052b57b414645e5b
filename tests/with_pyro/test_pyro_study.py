"""vr.compare_sde and vr.compare_guides in Pyro: every combination, its figures, and the command line."""

import functools
import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import vi_reparam_pyro as vr
from vi_reparam.commands.app import main
from vi_reparam.study.guides import gradient_variance

TINY = vr.SDE(num_steps=2, network=vr.MLP(width=4, depth=1, frequencies=2), warm_start=0, base="diagonal")
Y = np.array([1.2, -0.3, 0.8])


@vr.guide
def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu[0], 1.0), obs=y)


def test_forms(capfd, few_weights):
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


def test_families(tmp_path, capfd, few_weights):
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


def standard():
    return pyro.sample("z", dist.Normal(0.0, 1.0))


def test_the_variance_is_that_of_the_gradient():
    """Of a Gaussian by reparameterization, whose gradient by its location is known in closed form."""
    family = vr.FullRank(gradient="reparameterization")
    posterior = vr.guide(family)(standard).fit(num_steps=2, progress=False)
    guided = vr.Guided(posterior.guided.model, family, objective=vr.ELBO(1))
    found = gradient_variance(guided, ("gaussian_loc",), posterior, 4_000, 0)
    z = posterior.draws(20_000, seed=5)["z"]
    scale = posterior.params["gaussian_root"].abs().reshape(())
    # the gradient is root * z, so its variance is root^2 var(z)
    assert abs(found / float(scale**2 * z.var()) - 1.0) < 0.1


def test_a_mean_field_that_is_the_posterior_has_no_noise_in_its_path_gradient():
    study = vr.compare_guides(model, Y, families=(vr.MeanField(),), num_steps=200, num_replicates=50, progress=False)
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


@pytest.mark.parametrize("family", ["sde", "joint"])
def test_on_the_command_line(family, capfd, tmp_path, monkeypatch, few_weights):
    if family == "sde":
        one = {"parameterizations": ("data",), "variances": ("learned",), "gradients": ("path",)}
        monkeypatch.setattr(vr, "compare_sde", functools.partial(vr.compare_sde, family=TINY, **one))
    else:
        monkeypatch.setattr(vr, "compare_guides", functools.partial(vr.compare_guides, families=(vr.LowRank(rank=1),)))
    torch.set_default_dtype(torch.float32)
    arguments = ["--num-steps", "2", "--num-particles", "2", "--replicates", "2", "--json", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        main(["compare", "gamma_poisson", "--family", family, "--backend", "pyro", *arguments])
    found = json.loads(capfd.readouterr().out)
    assert caught.value.code == 0
    assert len(found["rows"]) == {"sde": 1, "joint": 2}[family] and found["backend"] == "pyro"
    assert [path.name for path in tmp_path.iterdir()] == [f"gamma_poisson_{family}.nc"]
