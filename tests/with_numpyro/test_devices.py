"""A fit over several devices: the numbers of one, and a share of the work each. In a process that has two."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import json, sys

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import vi_reparam_numpyro as vr

numpyro.enable_x64()
found, kind, checkpoint = {}, *sys.argv[1:]


def gamma(y):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(loc, scale), obs=y)


def regression(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("n", len(y), subsample_size=500) as index:
        numpyro.sample("y", dist.Normal(x[index] @ slope, 1.0), obs=y[index])


rng = np.random.default_rng(0)
if kind == "gamma":
    model, args = gamma, (np.linspace(-1.0, 3.0, 50),)
    estimators = {"scale": vr.Rejection(boost=1), "loc": vr.Pathwise()}
else:
    x = rng.normal(size=(20_000, 3))
    model, args, estimators = regression, (x, x @ [1.0, -1.0, 0.5] + rng.normal(size=len(x))), {"*": vr.Pathwise()}
guided = vr.guide(vr.MeanField(), estimators=estimators)(model)


def fit(args=args, **options):
    return guided.fit(*args, num_steps=40, num_particles=8, progress=False, **options)


def told(posterior):
    return [np.asarray(posterior.losses).tolist(), [np.asarray(x).tolist() for x in jax.tree.leaves(posterior.params)]]


one, two = fit(), fit(devices=jax.devices(), checkpoint=checkpoint)
found["one"], found["two"] = told(one), told(two)
found["resumed"] = told(fit(checkpoint=checkpoint))  # on one
found["on"] = sorted({len(x.devices()) for x in jax.tree.leaves(two.params)})
if kind == "gamma":
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
    found["rows"] = told(fit(tuple(jax.device_put(x, rows) for x in args)))
engine, found["flops"] = guided.backend.engine, {}
for program, *_ in ((p,) if not isinstance(p, tuple) else p for p in engine.programs.entries.values()):
    data = engine.data(args, {}, model)
    state = program.init(jax.random.key(0), guided.start(*args), data)
    cost = program.steps.lower(state.tree, 10, data.arrays).compile().cost_analysis()
    found["flops"][len(program.task.devices)] = (cost[0] if isinstance(cost, list) else cost)["flops"]
found["refused"] = []
for bad in ({"devices": 3}, {"devices": "x"}, {"devices": 2, "num_particles": 3}):
    try:
        guided.fit(*args, num_steps=2, progress=False, **bad)
    except ValueError as error:
        found["refused"].append(str(error))
print(json.dumps(found))
"""


@pytest.mark.parametrize("kind", [pytest.param("gamma", marks=pytest.mark.slow), "regression"])
def test_two_devices_give_the_numbers_of_one_for_half_of_the_work(kind, tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, kind, str(tmp_path / "checkpoint")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    found = json.loads(done.stdout)
    for name in {"two", "resumed", "rows"} & found.keys():
        for one, other in zip(found["one"][0] + found["one"][1], found[name][0] + found[name][1], strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-12)
    assert found["on"] == [1]  # what comes of it is on the first
    assert 0.45 < found["flops"]["2"] / found["flops"]["0"] < 0.65
    assert "a number up to 2" in found["refused"][0] and "list of jax.devices()" in found["refused"][1]
    assert found["refused"][2].endswith("3 particles cannot be shared evenly; give num_particles=4")
