"""Small models drawn at random: what a fit, its files and its predictions must have in common, in both backends."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from test_both_backends import NAMES, number, running

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

PRIORS = ("Normal", "HalfNormal", "Gamma", "Uniform", "span", "rows")
"""Of a latent: with the support's bounds fixed, from the data as a whole, or by their rows."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A model's form.

    Attributes:
        priors: of its latents; those by rows stand in the plate.
        local: whether there is a latent in the plate too, `masked`: with some rows masked.
        outcome: the likelihood; None for a model of its prior.
        family: of the guide; `size`: rows of the data; `seed`: of the data and of the fit.
    """

    priors: tuple[str, ...]
    local: bool
    masked: bool
    outcome: str | None
    family: str
    size: int
    seed: int

    def data(self, seed, size):
        rng = np.random.default_rng(seed)
        x = rng.uniform(0.5, 2.0, size) + seed % 3
        return x, np.round(rng.gamma(2.0, 1.0, size) + 0.5)

    def model(self, b):
        def latent(name, prior, x):
            one = b.array(1.0)
            made = {
                "Normal": lambda: b.dist.Normal(0.0 * one, one),
                "HalfNormal": lambda: b.dist.HalfNormal(one),
                "Gamma": lambda: b.dist.Gamma(2.0 * one, one),
                "Uniform": lambda: b.dist.Uniform(0.0 * one, 3.0 * one),
                "span": lambda: b.dist.Uniform(x.min(), x.max() + 1.0),
                "rows": lambda: b.dist.Uniform(x - 1.0, x + 1.0),
            }
            return b.host.sample(name, made[prior]())

        def model(x, y=None):
            total = b.array(0.1)
            for i, prior in enumerate(p for p in self.priors if p != "rows"):
                total = total + latent(f"z{i}", prior, x) ** 2
            with b.host.plate("n", len(x)):
                each = total + 0.0 * x
                if "rows" in self.priors:
                    each = each + latent("row", "rows", x) ** 2
                if self.local:
                    seen, prior = x > (1.0 if self.masked else -1.0), b.dist.Normal(0.0 * x, b.array(1.0))
                    u = b.host.sample("u", prior.mask(seen) if self.masked else prior)
                    each = each + b.xp.where(seen, u, b.xp.zeros_like(u)) ** 2
                if self.outcome is not None:
                    made = b.dist.Poisson(each) if self.outcome == "Poisson" else b.dist.Normal(each, b.array(1.0))
                    b.host.sample("y", made, obs=y)

        return model


MODELS = st.builds(
    Drawn,
    priors=st.lists(st.sampled_from(PRIORS), min_size=1, max_size=2).map(tuple),
    local=st.booleans(),
    masked=st.booleans(),
    outcome=st.sampled_from(["Normal", "Poisson", None]),
    family=st.sampled_from(["MeanField", "FullRank"]),
    size=st.integers(2, 4),
    seed=st.integers(0, 3),
)


def holds(b, drawn, folder):
    """Fit, refit, go on from a checkpoint, save and load, and predict other sizes; each held to the others."""
    make = lambda: b.vr.guide(getattr(b.vr, drawn.family)())(drawn.model(b))  # noqa: E731
    options = {"num_steps": 3, "num_particles": 2, "seed": drawn.seed, "progress": False}
    first, second = (drawn.data(seed, drawn.size) for seed in (drawn.seed, drawn.seed + 1))

    def fit(guided, data, **more):
        x, y = (b.array(part) for part in data)
        outcome = {} if drawn.outcome is None else {"y": y}
        return guided.fit(x, **outcome, **options, **more)

    def same(one, other):
        np.testing.assert_array_equal(one.losses, other.losses)
        draws, others = one.draws(20), other.draws(20)
        assert draws.keys() == others.keys()
        for name, value in draws.items():
            np.testing.assert_array_equal(number(value), number(others[name]))

    guided = make()
    posterior = fit(guided, first, checkpoint=folder / "fit")
    assert np.isfinite(posterior.losses).all()
    refit = fit(guided, second)  # a used guide on other data, and a fresh one
    same(refit, fit(make(), second))
    same(posterior, fit(guided, first, checkpoint=folder / "fit"))
    same(posterior, b.vr.load(posterior.save(folder / "file"), guided))
    with pytest.raises(b.vr.ArgumentError, match="of another fit"):
        fit(guided, second, checkpoint=folder / "fit")
    for fitted, (x, _) in ((posterior, first), (refit, second)):
        draws = {name: number(value) for name, value in fitted.draws(20).items()}
        if "rows" in drawn.priors:
            assert ((draws["row"] >= x - 1.0) & (draws["row"] <= x + 1.0)).all()
        for i, prior in enumerate(p for p in drawn.priors if p != "rows"):
            low, high = {"span": (x.min(), x.max() + 1.0), "Uniform": (0.0, 3.0), "Normal": (-np.inf, np.inf)}.get(
                prior, (0.0, np.inf)
            )
            assert ((draws[f"z{i}"] >= low) & (draws[f"z{i}"] <= high)).all()
    if drawn.outcome is not None:
        for size in (1, drawn.size, drawn.size + 2):
            y = number(posterior.predict(b.array(drawn.data(9, size)[0]), num_draws=4)["y"])
            assert y.shape == (4, size) and np.isfinite(y).all()


def law(backend, examples):
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # to make a failing case smaller takes minutes
    )
    @given(MODELS)
    def checked(drawn):
        with running(backend, 64) as b, tempfile.TemporaryDirectory() as folder:
            holds(b, drawn, Path(folder))

    checked()


@pytest.mark.filterwarnings("ignore:.*NaN or infinite|.*reads its data in Python")
@pytest.mark.parametrize(
    ("backend", "examples"),
    [("numpyro", 2), ("pyro", 3), *(pytest.param(name, 200, marks=pytest.mark.slow) for name in NAMES)],
)
def test_a_fit_and_all_that_follows_agree(backend, examples, few_weights):
    """In NumPyro an example takes 11 seconds of a core, for some 95 programs, and in Pyro 2."""
    pytest.importorskip({"numpyro": "jax", "pyro": "torch"}[backend])
    law(backend, examples)
