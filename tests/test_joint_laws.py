"""Laws of guides that draw all latents together, for every family and backend."""

from pathlib import Path

import numpy as np
import pytest

BACKENDS = ("numpyro", "pyro")
X = np.array([0.5, 1.5, -0.4, 2.2, 1.0, 0.1])
Y = np.array([1.9, 3.6, 0.6, 5.7, 2.6, 1.4])
NOISE, PRIOR = 0.7, 2.0
ROWS = np.stack([np.ones(6), X], axis=1)
COVARIANCE = NOISE**2 * np.eye(6) + PRIOR**2 * ROWS @ ROWS.T
EVIDENCE = -0.5 * (6 * np.log(2 * np.pi) + np.linalg.slogdet(COVARIANCE)[1] + Y @ np.linalg.solve(COVARIANCE, Y))
DOCS = Path(__file__).parents[1] / "docs"


def own_family():
    """The example of the documentation."""
    text = (DOCS / "implementing_a_guide_family.md").read_text()
    names = {}
    exec(compile(text.split("```python\n")[1].split("```")[0], "docs", "exec"), names)
    return names["UnitNormal"]()


FAMILIES = {
    "full rank": lambda vr: vr.FullRank(),
    "low rank": lambda vr: vr.LowRank(rank=1),
    "student t": lambda vr: vr.StudentT(df=6),
    "student t, reparameterization": lambda vr: vr.StudentT(df=6, gradient="reparameterization"),
    "mixture": lambda vr: vr.Mixture(2),
    "structured": lambda vr: vr.Structured(),
    "structured, reparameterization": lambda vr: vr.Structured(gradient="reparameterization"),
    "of the documentation": lambda vr: own_family(),
}


def regression(vr):
    h = vr.host

    def model(x, y=None):
        a = h.sample("a", h.dist.Normal(h.array(0.0), h.array(PRIOR)))
        b = h.sample("b", h.dist.Normal(h.array(0.0), h.array(PRIOR)))
        with h.plate("rows", len(x)):
            h.sample("y", h.dist.Normal(a + b * x, NOISE), obs=y)

    return model


QUICK = {
    "numpyro": ("student t", "of the documentation"),  # test_same_noise.py holds its Gaussians to the other backend's
    "pyro": ("full rank", "low rank", "student t", "mixture", "structured", "of the documentation"),
}


@pytest.mark.parametrize(
    ("vr", "row"),
    [
        pytest.param(b, r, id=f"{b}-{r}", marks=() if r in QUICK[b] else pytest.mark.slow)
        for b in BACKENDS
        for r in FAMILIES
    ],
    indirect=["vr"],
)
def test_the_weights_average_to_the_evidence(vr, row, tmp_path):
    """At any parameters; and a fit is saved, loaded, and predicts."""
    guided = vr.guide(FAMILIES[row](vr))(regression(vr))
    posterior = guided.fit(X, y=Y, num_steps=40, progress=False)
    weights = np.exp(posterior.log_weights - EVIDENCE)
    error = weights.std() / np.sqrt(len(weights))
    assert abs(weights.mean() - 1.0) < 4.0 * error + 1e-9
    posterior.save(tmp_path / "posterior.npz")
    loaded = vr.load(tmp_path / "posterior.npz", vr.guide(FAMILIES[row](vr))(regression(vr)))
    np.testing.assert_array_equal(np.asarray(loaded.draws(3)["b"]), np.asarray(posterior.draws(3)["b"]))
    assert np.asarray(posterior.predict(np.array([0.0, 1.0]), num_draws=3)["y"]).shape == (3, 2)


@pytest.mark.parametrize("family", ["FullRank", "StudentT", "Mixture", "Structured"])
def test_both_gradients_have_one_mean(vr, family):
    """The path gradient leaves out a term whose mean is zero."""
    from vi_reparam.backend.engine import Task

    moments = []
    for gradient in ("path", "reparameterization"):
        guided = vr.Guided(regression(vr), getattr(vr, family)(gradient=gradient), objective=vr.ELBO(1))
        ops, engine = guided.backend.ops, guided.backend.engine
        data = engine.data((X,), {"y": Y}, guided.model)
        first = guided.start(X, y=Y)
        params = {n: ops.asarray(ops.to_numpy(v) + 0.02 * (n.endswith(("loc", "log_scale")))) for n, v in first.items()}
        task = Task(guided.model, guided.guide, guided.objective, guided.name)
        engine.check(task, data, lambda key, params=params: params, engine.key(0), known=False)
        rows = np.concatenate([g for g, _ in engine.gradients(task, data, params, engine.key(3), 2_000)])
        moments.append((rows.mean(0), rows.var(0) / len(rows)))
    (mean, square), (other, other_square) = moments
    moving = (square > 0.0) & (other_square > 0.0)
    z = (mean - other)[moving] / np.sqrt((square + other_square)[moving])
    assert moving.sum() >= 4 and np.abs(z).max() < 4.0
