"""vr.Sites, and guides for the local latents of a plate that are conditioned on its data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from scipy.stats import multivariate_normal

import vi_reparam_numpyro as vr

RNG = np.random.default_rng(0)
N = 12
SCALE = np.exp(0.5 * RNG.normal(size=N))
Y = 1.0 + RNG.normal(size=N) + SCALE * RNG.normal(size=N)


def model(y, scale, batch=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    with numpyro.plate("rows", len(y), subsample_size=batch) as rows:
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, scale[rows]), obs=y[rows])


def both(y, scale, batch=None):
    return jnp.stack([y, jnp.log(scale)], -1)


def best_product():
    """The best ELBO of independent normals: the evidence, less what the correlations cost."""
    precision = np.diag(np.concatenate([[1.0 / 9.0 + N], 1.0 + SCALE**-2.0]))
    precision[0, 1:] = precision[1:, 0] = -1.0
    lost = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    return multivariate_normal(np.zeros(N), 9.0 * np.ones((N, N)) + np.diag(1.0 + SCALE**2)).logpdf(Y) - lost


@pytest.mark.parametrize("batch", [4, pytest.param(None, marks=pytest.mark.slow)])
def test_a_conditional_flow_beside_a_mean_field(batch):
    flow = vr.Flow(condition=both, num_layers=2)
    guided = vr.guide(vr.Sites({"z": flow, "*": vr.MeanField()}))(model)
    posterior = guided.fit(Y, SCALE, batch, num_steps=1_500, progress=False)
    value, error = posterior.elbo()
    assert -0.15 < value - best_product() < 4.0 * error
    assert posterior.draws(3)["z"].shape == (3, N)
    assert posterior.record["num_particles"] == 8


def pairs(y, batch=None):
    """Two latents on different supports for each row of a plate that is not the last one, in a second plate too."""
    rows = numpyro.plate("rows", len(y), subsample_size=batch, dim=-2)
    with rows, numpyro.plate("columns", 2, dim=-1):
        a = numpyro.sample("a", dist.Gamma(2.0, 1.0))
    with rows:
        b = numpyro.sample("b", dist.Uniform(0.0, 1.0).expand([1]).to_event(1))
    with rows as picked, numpyro.plate("seen", 2, dim=-1):
        numpyro.sample("y", dist.Normal(a + b[..., 0], 0.5), obs=y[picked])


PAIRS = jnp.array([[2.0, 1.0], [0.5, 3.0]])


def mass_of_pairs():
    """log p(y, box): by quadrature over b in (0.1, 0.9) and each of a's elements in (0.3, 4)."""
    b, weight = np.polynomial.legendre.leggauss(60)
    b, weight = 0.5 + 0.4 * b, 0.4 * weight
    a, step = 0.3 + 3.7 * (np.arange(20_000) + 0.5) / 20_000, 3.7 / 20_000
    prior = a * np.exp(-a) * step

    def of(y):
        return (prior * np.exp(-0.5 * ((y - a - b[:, None]) / 0.5) ** 2)).sum(1) / (0.5 * np.sqrt(2.0 * np.pi))

    return sum(np.log((weight * of(first) * of(second)).sum()) for first, second in np.asarray(PAIRS))


def in_box(draws):
    a, b = np.asarray(draws["a"]), np.asarray(draws["b"])

    inside = ((a > 0.3) & (a < 4.0)).all((1, 2)), ((b > 0.1) & (b < 0.9)).all(axis=tuple(range(1, b.ndim)))
    return inside[0] & inside[1]


FAMILIES = {
    "flow": vr.Flow(condition="y", num_layers=2, hidden=8),
    "coupling": vr.Flow(condition="y", kind="coupling", num_layers=4, hidden=8),
    "SDE": vr.SDE(condition="y", num_steps=4, init_scale=0.7, warm_start=0, base="diagonal"),
    "mixture": vr.SDE(condition="y", num_steps=4, init_scale=0.7, warm_start=0, base="mixture"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_weights_average_to_the_mass_of_a_box(name):
    """Of a box, since the weights of a good fit may have heavy tails all the same."""
    posterior = vr.guide(FAMILIES[name])(pairs).fit(PAIRS, num_steps=800, num_particles=64, progress=False)
    draws, log_weights = posterior.draws(60_000, with_weights=True)
    weights = in_box(draws) * np.exp(np.asarray(log_weights) - mass_of_pairs())
    error = weights.std() / np.sqrt(len(weights))
    assert abs(weights.mean() - 1.0) < 4.0 * error
    assert error < 0.03


@pytest.mark.slow
def test_minibatches_have_the_bound_of_all_rows():
    guided = vr.guide(FAMILIES["flow"])(pairs)
    params = {**guided.start(PAIRS), "flow_root": 0.1 * jnp.eye(3)}
    value = jax.jit(
        lambda key, batch: guided.objective.with_particles(500).loss(
            key, params, guided.model, guided.guide, PAIRS, batch
        ),
        static_argnums=1,
    )
    whole = np.array([value(jax.random.key(i), None) for i in range(30)])
    parts = np.array([value(jax.random.key(100 + i), 1) for i in range(30)])
    error = np.hypot(whole.std(ddof=1), parts.std(ddof=1)) / np.sqrt(30)
    assert abs(whole.mean() - parts.mean()) < 4.0 * error
    assert error < 0.05


def test_the_base_of_an_sde_keeps_pace_with_a_mean_field():
    sites = vr.Sites({"*": vr.SDE(), "z": vr.Flow(condition="y"), "w": vr.MeanField()})
    rates = {
        name: sites.learning_rate_groups[sites.learning_rate_group(name)].learning_rate
        for name in ("rest_sde_loc", "rest_sde_skew", "rest_sde_hidden1", "z_flow_skew", "w_rate", "of_the_model")
    }
    assert rates == {
        "rest_sde_loc": vr.MeanField.learning_rate,
        "rest_sde_skew": vr.MeanField.learning_rate,
        "rest_sde_hidden1": vr.SDE.learning_rate,
        "z_flow_skew": vr.Flow.learning_rate,
        "w_rate": vr.MeanField.learning_rate,
        "of_the_model": vr.MeanField.learning_rate,
    }


@pytest.mark.parametrize(
    ("family", "match"),
    [
        (lambda: vr.Sites({}), "expected a mapping from site names"),
        (lambda: vr.Sites({"z": 3}), "expected a family such as"),
        (lambda: vr.Sites({"z": vr.Escalate()}), "expected a family such as"),
        (lambda: vr.Sites({"z": vr.MeanField(), ("z", "mu"): vr.FullRank()}), "'z' is given to two families"),
        (lambda: vr.Flow(condition=3), r"Flow\(condition=3\): expected the name of one of the model's arguments"),
        (lambda: vr.Flow(condition="y", kind="block_autoregressive"), "its layers take none"),
        (lambda: vr.SDE(condition="y", gradient="log_variance"), "use gradient='path'"),
        (lambda: vr.SDE(condition="y", network=vr.MLP(target="full")), "sees its features alone"),
        (lambda: vr.Sites({"z": vr.SDE(network=vr.MLP(target="full"))}), "a part goes without the gradient of log p"),
    ],
)
def test_bad_specifications(family, match):
    with pytest.raises(vr.ArgumentError, match=match):
        family()


@pytest.mark.parametrize(
    ("family", "error", "match"),
    [
        (vr.Sites({"*": vr.SDE(base=vr.Blocks("rows"))}), vr.SiteError, r"'mu' is not in that plate, but in \[\]"),
        (vr.Flow(condition="y"), vr.SiteError, r"12 rows, and the plates around all of this guide's sites are \{\}"),
        (vr.Sites({"zz": vr.FullRank(), "*": vr.MeanField()}), vr.SiteError, "names 'zz', and the model's latent"),
        (vr.Sites({"z": vr.FullRank()}), vr.SiteError, "misses the latent site 'mu'"),
        (vr.Sites({"z": vr.Flow(condition="q"), "*": vr.MeanField()}), vr.ArgumentError, "without that argument"),
    ],
)
def test_what_does_not_fit_the_model(family, error, match):
    with pytest.raises(error, match=match):
        vr.guide(family)(model).fit(Y, SCALE, progress=False)


def two_priors():
    numpyro.sample("b", dist.Gamma(0.4, 1.0).expand([3]).to_event(1))
    numpyro.sample("c", dist.Normal(0.0, 3.0))


@pytest.mark.parametrize(
    ("site", "part"),
    [
        pytest.param("b", vr.Flow(num_layers=1, hidden=4), marks=pytest.mark.slow),
        pytest.param("b", vr.SDE(num_steps=2, base="diagonal"), marks=pytest.mark.slow),
        pytest.param("c", vr.SDE(num_steps=2, base="diagonal"), marks=pytest.mark.slow),
        pytest.param("c", vr.Flow(num_layers=1, hidden=4), marks=pytest.mark.slow),
        pytest.param("c", vr.LowRank(rank=2), marks=pytest.mark.slow),
    ],
    ids=["flow", "SDE", "SDE, nothing bends", "flow, nothing bends", "low rank"],
)
def test_parts_start_from_a_mean_field(site, part):
    """Before any step of their own they are where it is, and as wide; bent where they bend."""
    guided = vr.guide(vr.Sites({site: part, "*": vr.MeanField()}))(two_priors)
    posterior = guided.fit(num_steps=600, num_particles=8, optimizer=optax.sgd(0.0), progress=False)
    value, error = posterior.elbo(4_000)
    assert value + 4.0 * error > -0.1 and value < 4.0 * error  # a normal in place of the bend would lose 0.56


DESIGN = np.array([[1.0, 0.9, 0.0], [0.8, 1.0, 0.3], [0.0, 0.4, 1.0], [0.5, 0.6, -0.8]])
SEEN = np.array([1.0, -0.5, 0.8, 0.2])


def regression(y):
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    level = numpyro.sample("level", dist.Normal(1.0, 1.0))
    numpyro.sample("y", dist.Normal(DESIGN @ slopes + level, 0.5).to_event(1), obs=y)


def of_the_regression():
    """log p(y), and what independent slopes lose to the best joint draw of them."""
    every = np.column_stack([DESIGN, np.ones(4)])
    precision = np.eye(4) + every.T @ every / 0.25
    slopes = precision[:3, :3]
    lost = 0.5 * (np.log(np.diag(slopes)).sum() - np.linalg.slogdet(slopes)[1])
    log_evidence = multivariate_normal(np.ones(4), every @ every.T + 0.25 * np.eye(4)).logpdf(SEEN)
    return log_evidence, lost


@pytest.mark.slow
def test_a_drift_beside_other_parts_learns_its_own_latents_correlations():
    """Its base is diagonal, so all of them come by the drift."""
    log_evidence, lost = of_the_regression()
    guided = vr.guide(vr.Sites({"slopes": vr.SDE(num_steps=32, base="diagonal"), "*": vr.MeanField()}))(regression)
    posterior = guided.fit(SEEN, num_steps=400, num_particles=16, progress=False)
    independent = vr.guide(vr.MeanField())(regression).fit(SEEN, num_steps=800, num_particles=16, progress=False)
    value, error = posterior.elbo(4_000)
    assert value - 4.0 * error < log_evidence
    assert value - independent.elbo(4_000)[0] > 0.8 * lost


CELLS = np.array([0.5, -1.0, 2.0])


def cells(y):
    """Three latents an element, on two sites, whose correlations are strong within it."""
    with numpyro.plate("cells", len(y), dim=-1):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("kinds", 2, dim=-2):
            b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a + b[0] - b[1], 0.3), obs=y)


DIFFUSION = vr.SDE(base=vr.Blocks("cells"), num_steps=4, warm_start=300, network=vr.MLP(target="off"))


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.slow) for f in (vr.Sites({"*": DIFFUSION}), DIFFUSION)],  # in Pyro it is not
    ids=["as a part", "alone"],
)
def test_a_base_has_the_correlations_within_each_element(family):
    posterior = vr.guide(family)(cells).fit(CELLS, num_steps=400, num_particles=32, progress=False)
    log_evidence = multivariate_normal(np.zeros(3), 3.09 * np.eye(3)).logpdf(CELLS)
    value, error = posterior.elbo(4_000)
    assert log_evidence - 0.1 - 4.0 * error < value < log_evidence + 4.0 * error  # independent normals lose 5.9


@pytest.mark.slow  # the Pyro backend's is not
def test_estimators_are_for_the_mean_field():
    sites = vr.Sites({"z": vr.FullRank(), "*": vr.MeanField()})
    posterior = vr.guide(sites, estimators={"mu": vr.ScoreFunction()})(model).fit(Y, SCALE, num_steps=5, progress=False)
    assert posterior.record["estimators"] == {"mu": repr(vr.ScoreFunction())}
    with pytest.raises(vr.ArgumentError, match="name 'z', which FullRank"):
        vr.guide(sites, estimators={"z": vr.ScoreFunction()})(model)
    with pytest.raises(vr.ArgumentError, match=r"holds no vr.MeanField"):
        vr.guide(vr.Sites({"*": vr.FullRank()}), estimators=vr.Implicit())(model)
