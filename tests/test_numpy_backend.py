"""The workflow on a backend of 300 lines that compiles nothing: the core needs no more of a framework."""

import numpy as np
import pytest

from vi_reparam.backend import registry
from vi_reparam.errors import ArgumentError, NonFiniteError
from vi_reparam.guides import Escalate, LowRank, MeanField, Sites
from vi_reparam.posterior import posterior as figures

backend = pytest.importorskip("numpy_backend", reason="autograd is not installed")


NUM, NOISE, PRIOR = 12, 0.5, 2.0
RNG = np.random.default_rng(0)
X = RNG.normal(size=NUM) + 1.0
Y = 1.0 + 2.0 * X + NOISE * RNG.normal(size=NUM)
ROWS = np.stack([np.ones(NUM), X], axis=1)
PRECISION = ROWS.T @ ROWS / NOISE**2 + np.eye(2) / PRIOR**2
MEAN = np.linalg.solve(PRECISION, ROWS.T @ Y / NOISE**2)
EVIDENCE = -0.5 * (
    NUM * np.log(2 * np.pi)
    + np.linalg.slogdet(NOISE**2 * np.eye(NUM) + PRIOR**2 * ROWS @ ROWS.T)[1]
    + Y @ np.linalg.solve(NOISE**2 * np.eye(NUM) + PRIOR**2 * ROWS @ ROWS.T, Y)
)


@pytest.fixture(autouse=True)
def arrays_of_numpy(monkeypatch):
    """NumPy's arrays, and those that autograd traces, belong to this backend for the while."""
    others = registry._of_type

    def of_type(kind):
        ours = kind.__module__.partition(".")[0] in ("numpy", "autograd")
        return backend.ops if ours else others(kind)

    monkeypatch.setattr(registry, "_of_type", of_type)
    for name in ("NUM_WEIGHTS", "MIN_WEIGHTS"):  # drawn one by one here
        monkeypatch.setattr(figures, name, 200)


def regression(x, y=None):
    h = backend.host
    a = h.sample("a", backend.Normal(0.0, PRIOR))
    b = h.sample("b", backend.Normal(0.0, PRIOR))
    with h.plate("rows", len(x)):
        h.sample("y", backend.Normal(a + b * x, NOISE), obs=y)


def fitted(family, **options):
    options = {"num_steps": 150, "num_particles": 4, "progress": False, **options}
    return backend.guide(family)(regression).fit(X, y=Y, **options)


def test_a_mean_field_is_the_best_product():
    posterior = fitted(MeanField())
    assert posterior.params["a_loc"] == pytest.approx(MEAN[0], abs=0.05)
    assert posterior.params["b_scale"] == pytest.approx(PRECISION[1, 1] ** -0.5, rel=0.1)
    best = EVIDENCE + 0.5 * (np.linalg.slogdet(PRECISION)[1] - np.log(np.diag(PRECISION)).sum())
    value, error = posterior.elbo(400)
    assert abs(value - best) < 4.0 * error + 0.02


def test_parts_that_draw_jointly_start_from_a_mean_field():
    posterior = fitted(Sites({"a": LowRank(rank=1), "*": MeanField()}), num_steps=80)
    value, error = posterior.elbo(400)
    assert EVIDENCE - 2.0 < value < EVIDENCE + 4.0 * error
    assert posterior.draws(5)["a"].shape == (5,)


def test_the_workflow_around_a_fit(tmp_path):
    posterior = fitted(MeanField(), checkpoint=tmp_path / "fit")
    same = backend.guide(MeanField())(regression)
    again = same.fit(X, y=Y, num_steps=150, num_particles=4, progress=False, checkpoint=tmp_path / "fit")
    np.testing.assert_array_equal(posterior.losses, again.losses)
    with pytest.raises(ArgumentError, match="seed"):
        fitted(MeanField(), checkpoint=tmp_path / "fit", seed=1)
    path = posterior.save(tmp_path / "posterior.npz")
    loaded = backend.Posterior.load(path, backend.guide(MeanField())(regression))
    np.testing.assert_array_equal(posterior.draws(7)["b"], loaded.draws(7)["b"])
    new = posterior.predict(np.array([0.0, 1.0, 10.0]), num_draws=200)["y"]
    assert new.shape == (200, 3)
    assert new.mean(0) == pytest.approx(MEAN[0] + MEAN[1] * np.array([0.0, 1.0, 10.0]), abs=0.5)


def test_a_ladder_tells_what_it_tried():
    posterior = fitted(Escalate(families=(MeanField(),)), num_steps=20, num_particles=1)
    assert [a["family"] for a in posterior.tried] == ["MeanField()"] and posterior.why


def test_a_nan_names_its_step_and_site():
    def broken(y):
        a = backend.host.sample("a", backend.Normal(0.0, 1.0))
        backend.host.sample("y", backend.Normal(np.sqrt(-1.0 - a * a), 1.0), obs=y)

    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError, match="site 'y'"):
        backend.guide(MeanField())(broken).fit(Y, num_steps=3, progress=False)
