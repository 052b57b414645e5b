"""Same noise, same numbers: all that stands above the families, in both backends, to 1e-10."""

import importlib
import math

import numpy as np
import pytest

BACKENDS = ("numpyro", "pyro")
SIGMA = np.array([1.5, 1.0, 1.6, 1.1])
Y = np.array([2.8, 0.8, -0.3, 0.7])


@pytest.fixture(autouse=True)
def double_precision():
    jax, torch = pytest.importorskip("jax"), pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(before)


def waves(shape, number):
    """Numbers between -1 and 1 that follow from a shape alone."""
    count = math.prod(shape)
    return np.sin(1.0 + number + 0.7 * np.arange(count)).reshape(shape)


class Fixed:
    """The noise of both frameworks, by its shape alone."""

    def __init__(self, monkeypatch):
        for name in BACKENDS:
            ops = importlib.import_module(f"vi_reparam_{name}.ops.ops").ops
            monkeypatch.setattr(
                type(ops), "normal", lambda self, key, shape, dtype: self.asarray(waves(shape, 0), dtype)
            )
            uniform = lambda self, key, shape, dtype: self.asarray(0.5 + 0.45 * waves(shape, 1), dtype)  # noqa: E731
            monkeypatch.setattr(type(ops), "uniform", uniform)


def package(name):
    return importlib.import_module(f"vi_reparam_{name}")


def program(vr):
    """A regression's effects with a scale of their own: supports of two kinds, a plate, data."""
    h = vr.host

    def model(sigma, y=None):
        mu = h.sample("mu", h.dist.Normal(h.array(0.0), h.array(2.0)))
        tau = h.sample("tau", h.dist.LogNormal(h.array(0.0), h.array(0.5)))
        with h.plate("groups", 4):
            theta = h.sample("theta", h.dist.Normal(mu, tau))
            h.sample("y", h.dist.Normal(theta, sigma), obs=y)

    return model


GUIDES = {
    "mean field": lambda vr: (vr.MeanField(families={"tau": "transformed_normal"}), vr.ELBO(2)),
    "mean field, path": lambda vr: (
        vr.MeanField(families={"tau": "transformed_normal"}),
        vr.ELBO(2, entropy="path"),
    ),
    "full rank": lambda vr: (vr.FullRank(), vr.ELBO(2)),
    "full rank, reparameterization": lambda vr: (vr.FullRank(gradient="reparameterization"), vr.ELBO(2)),
    "low rank": lambda vr: (vr.LowRank(rank=2), vr.ELBO(2)),
    "student t": lambda vr: (vr.StudentT(df=4), vr.ELBO(2)),
    "mixture": lambda vr: (vr.Mixture(3), vr.ELBO(2)),
    "mixture, reparameterization": lambda vr: (vr.Mixture(2, gradient="reparameterization"), vr.ELBO(2)),
    "structured": lambda vr: (vr.Structured(), vr.ELBO(2)),
    "structured, reparameterization": lambda vr: (vr.Structured(gradient="reparameterization"), vr.ELBO(2)),
    "sde": lambda vr: (vr.SDE(num_steps=3, network=vr.MLP(width=4, depth=1)), vr.ELBO(2)),
    "sde, mixture": lambda vr: (
        vr.SDE(num_steps=3, base="mixture", network=vr.MLP(width=4, depth=1, target="off")),
        vr.ELBO(2),
    ),
    "parts": lambda vr: (
        vr.Sites({"theta": vr.FullRank(), "*": vr.MeanField(families={"tau": "transformed_normal"})}),
        vr.ELBO(2),
    ),
    "importance weights": lambda vr: (vr.FullRank(), vr.IWELBO(3)),
    "importance weights, reparameterization": lambda vr: (
        vr.FullRank(gradient="reparameterization"),
        vr.IWELBO(3, gradient="reparameterization"),
    ),
}


def guided_by(name, row):
    vr = package(name)
    family, objective = GUIDES[row](vr)
    return vr.Guided(program(vr), family, objective=objective)


def parameters(guided, data):
    """Values of all parameters that follow from their names and shapes alone, positive ones positive."""
    engine, ops = guided.backend.engine, guided.backend.ops
    found = engine.first_params(guided.model, guided.guide, data, engine.key(0), {})
    values = {}
    for number, name in enumerate(sorted(found)):
        x = 0.3 * waves(ops.to_numpy(found[name]).shape, number)
        x = np.exp(x) if name.endswith("_scale") and "log" not in name else x
        square = name.endswith("root") and x.ndim > 1
        values[name] = np.tril(x) + 2.0 * np.eye(x.shape[-1]) if square else x
        positive = name.endswith("unit") or (name.endswith("root") and x.ndim == 1)
        values[name] = np.abs(values[name]) + 0.1 if positive else values[name]
        values[name] = 0.02 if name.endswith("tail") else values[name]
    return values


def in_backend(name, row):
    """The loss's gradient, the draws' densities and the predictions, with what both backends call alike."""
    from vi_reparam.backend.engine import Task
    from vi_reparam.posterior.scorer import Scorer

    guided = guided_by(name, row)
    backend = guided.backend
    ops, engine = backend.ops, backend.engine
    data = engine.data((SIGMA,), {"y": Y}, guided.model)
    values = parameters(guided, data)
    params = {n: ops.asarray(v) for n, v in values.items()}
    task = Task(guided.model, guided.guide, guided.objective, guided.name)
    engine.check(task, data, lambda key: params, engine.key(0), known=False)
    gradient, _ = next(iter(engine.gradients(task, data, params, engine.key(1), 1)))
    found = {"gradient": gradient[0]}
    scorer = Scorer(backend, guided.model, guided.guide, params, *data.call)
    scored = scorer.run(_densities, 1, engine.key(2))
    found |= {n: ops.to_numpy(x) for n, x in zip(("log p", "log q", "mu", "theta"), scored, strict=True)}
    return values, found


def _densities(scored):
    return scored.log_p, scored.log_q, scored.latents["mu"], scored.latents["theta"]


@pytest.mark.parametrize("row", GUIDES)
def test_gradients_and_densities_agree(row, monkeypatch):
    Fixed(monkeypatch)
    (ours, first), (theirs, second) = (in_backend(name, row) for name in BACKENDS)
    assert {n: np.shape(v) for n, v in ours.items()} == {n: np.shape(v) for n, v in theirs.items()}
    for part, value in first.items():
        assert np.isfinite(value).all() and np.any(value != 0.0), part
        np.testing.assert_allclose(second[part], value, rtol=1e-10, atol=1e-10, err_msg=part)


def test_the_search_finds_the_same_places(monkeypatch):
    from vi_reparam.programs.searcher import Searcher

    def starts(self, runs, layout, args, kwargs, key, most):  # the frameworks draw the prior each in its own way
        found = self.backend.ops.asarray(2.0 * waves((most, layout.size), 0))
        return found, found

    Fixed(monkeypatch)
    monkeypatch.setattr(Searcher, "starts", starts)
    found = []
    for name in BACKENDS:
        guided = guided_by(name, "full rank")
        data = guided.backend.engine.data((SIGMA,), {"y": Y}, guided.model)
        guide = guided.base_guide
        frames = [place.frame for place in guide.searcher.run(data, guided.backend.engine.key(0))]
        found.append([(guided.backend.ops.to_numpy(f.center), guided.backend.ops.to_numpy(f.root)) for f in frames])
    assert len(found[0]) == len(found[1]) >= 1
    for (center, root), (other, other_root) in zip(*found, strict=True):
        np.testing.assert_allclose(other, center, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(other_root, root, rtol=1e-10, atol=1e-10)


def test_predictions_agree(monkeypatch):
    """At a draw of no spread the predicted mean is the model's."""
    Fixed(monkeypatch)
    means = []
    for name in BACKENDS:
        vr = package(name)
        guided = vr.Guided(program(vr), vr.LowRank(rank=1))
        start, data = guided.start(SIGMA, y=Y), {"args": (SIGMA,), "kwargs": {"y": Y}}
        posterior = vr.Posterior(guided, start, **data, losses=[], seed=0, record={})
        ops = posterior.guided.backend.ops
        for key, value in posterior.params.items():
            posterior.params[key] = posterior.scorer.params[key] = ops.asarray(
                0.3 * waves(ops.to_numpy(value).shape, 3)
            )
        means.append(np.asarray(posterior.predict(num_draws=2, return_sites=["theta", "mu"])["theta"]))
    np.testing.assert_allclose(means[0], means[1], rtol=1e-10, atol=1e-10)
