"""vr.Sites in Pyro, and guides for the local latents of a plate that are conditioned on its data."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import multivariate_normal

import vi_reparam_pyro as vr

RNG = np.random.default_rng(0)
N = 12
SCALE = np.exp(0.5 * RNG.normal(size=N))
Y = 1.0 + RNG.normal(size=N) + SCALE * RNG.normal(size=N)
PAIRS = np.array([[2.0, 1.0], [0.5, 3.0]])


def model(y, scale, batch=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(y), subsample_size=batch) as rows:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, scale[rows]), obs=y[rows])


def both(y, scale, batch=None):
    return torch.stack([y, torch.log(scale)], -1)


def best_product():
    """The best ELBO of independent normals: the evidence, less what the correlations cost."""
    precision = np.diag(np.concatenate([[1.0 / 9.0 + N], 1.0 + SCALE**-2.0]))
    precision[0, 1:] = precision[1:, 0] = -1.0
    lost = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    return multivariate_normal(np.zeros(N), 9.0 * np.ones((N, N)) + np.diag(1.0 + SCALE**2)).logpdf(Y) - lost


@pytest.mark.slow
@pytest.mark.parametrize("batch", [4, None])
def test_a_conditional_flow_beside_a_mean_field(batch):
    flow = vr.Flow(condition=both, num_layers=2)
    guided = vr.guide(vr.Sites({"z": flow, "*": vr.MeanField()}))(model)
    posterior = guided.fit(Y, SCALE, batch, num_steps=500, progress=False)
    value, error = posterior.elbo()
    assert -0.15 < value - best_product() < 4.0 * error
    assert posterior.draws(3)["z"].shape == (3, N)
    assert posterior.record["num_particles"] == 8


def pairs(y, batch=None):
    """Two latents on different supports for each row of a plate that is not the last one, in a second plate too."""
    rows = pyro.plate("rows", len(y), subsample_size=batch, dim=-2)
    with rows, pyro.plate("columns", 2, dim=-1):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    with rows:
        b = pyro.sample("b", dist.Dirichlet(torch.ones(3)))
    with rows as picked, pyro.plate("seen", 2, dim=-1):
        pyro.sample("y", dist.Normal(a + b[..., 0], 0.5), obs=y[picked])


def mass_of_pairs():
    """log p(y, box): by quadrature over b's first coordinate in (0.1, 0.9) and each of a's elements in (0.3, 4)."""
    b, weight = np.polynomial.legendre.leggauss(60)
    b, weight = 0.5 + 0.4 * b, 0.4 * weight
    a, step = 0.3 + 3.7 * (np.arange(20_000) + 0.5) / 20_000, 3.7 / 20_000
    prior = a * np.exp(-a) * step

    def of(y):
        return (prior * np.exp(-0.5 * ((y - a - b[:, None]) / 0.5) ** 2)).sum(1) / (0.5 * np.sqrt(2.0 * np.pi))

    return sum(np.log(0.8 * (weight * 2.0 * (1.0 - b) * of(first) * of(second)).sum()) for first, second in PAIRS)


def in_box(draws):
    a, b = np.asarray(draws["a"]), np.asarray(draws["b"])
    b = np.stack([b[..., 0], b[..., 1] / (1.0 - b[..., 0])], -1)
    inside = ((a > 0.3) & (a < 4.0)).all((1, 2)), ((b > 0.1) & (b < 0.9)).all(axis=tuple(range(1, b.ndim)))
    return inside[0] & inside[1]


FAMILIES = {
    "flow": vr.Flow(condition="y", num_layers=2, hidden=8),
    "coupling": vr.Flow(condition="y", kind="coupling", num_layers=4, hidden=8),
    "SDE": vr.SDE(condition="y", num_steps=4, init_scale=0.7, warm_start=0, base="diagonal"),
    "mixture": vr.SDE(condition="y", num_steps=4, init_scale=0.7, warm_start=0, base="mixture"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "flow" else pytest.mark.slow) for n in FAMILIES])
def test_weights_average_to_the_mass_of_a_box(name):
    """Of a box, since the weights of a good fit may have heavy tails all the same."""
    posterior = vr.guide(FAMILIES[name])(pairs).fit(PAIRS, num_steps=500, num_particles=64, progress=False)
    draws, log_weights = posterior.draws(20_000, with_weights=True)
    weights = in_box(draws) * np.exp(np.asarray(log_weights) - mass_of_pairs())
    error = weights.std() / np.sqrt(len(weights))
    assert abs(weights.mean() - 1.0) < 4.0 * error
    assert error < 0.03


@pytest.mark.parametrize(
    ("family", "error", "match"),
    [
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
    pyro.sample("b", dist.Gamma(0.4, torch.tensor(1.0)).expand([3]).to_event(1))
    pyro.sample("c", dist.Normal(torch.tensor(0.0), 3.0))


@pytest.mark.parametrize(
    ("site", "part"),
    [
        pytest.param("b", vr.Flow(num_layers=1, hidden=4), marks=pytest.mark.slow),
        ("b", vr.SDE(num_steps=2, base="diagonal")),
        pytest.param("c", vr.SDE(num_steps=2, base="diagonal"), marks=pytest.mark.slow),
        pytest.param("c", vr.Flow(num_layers=1, hidden=4), marks=pytest.mark.slow),
        pytest.param("c", vr.LowRank(rank=2), marks=pytest.mark.slow),
    ],
    ids=["flow", "SDE", "SDE, nothing bends", "flow, nothing bends", "low rank"],
)
def test_parts_start_from_a_mean_field(site, part):
    """Before any step of their own they are where it is, and as wide; bent where they bend."""
    guided = vr.guide(vr.Sites({site: part, "*": vr.MeanField()}))(two_priors)
    posterior = guided.fit(
        num_steps=600, num_particles=8, optimizer=lambda leaves: torch.optim.SGD(leaves, lr=0.0), progress=False
    )
    value, error = posterior.elbo(4_000)
    assert value + 4.0 * error > -0.1 and value < 4.0 * error  # a normal in place of the bend would lose 0.56


CELLS = np.array([0.5, -1.0, 2.0])


def cells(y):
    """Three latents an element, on two sites, whose correlations are strong within it."""
    with pyro.plate("cells", len(y), dim=-1):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("kinds", 2, dim=-2):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a + b[0] - b[1], 0.3), obs=y)


DIFFUSION = vr.SDE(base=vr.Blocks("cells"), num_steps=4, warm_start=300, network=vr.MLP(target="off"))


@pytest.mark.parametrize(
    "family",
    [pytest.param(DIFFUSION, marks=pytest.mark.slow), vr.Sites({"*": DIFFUSION})],
    ids=["alone", "as a part"],
)
def test_a_base_has_the_correlations_within_each_element(family):
    posterior = vr.guide(family)(cells).fit(torch.as_tensor(CELLS), num_steps=400, num_particles=32, progress=False)
    log_evidence = multivariate_normal(np.zeros(3), 3.09 * np.eye(3)).logpdf(CELLS)
    value, error = posterior.elbo(4_000)
    assert log_evidence - 0.1 - 4.0 * error < value < log_evidence + 4.0 * error  # independent normals lose 5.9


def test_estimators_are_for_the_mean_field():
    sites = vr.Sites({"z": vr.FullRank(), "*": vr.MeanField()})
    posterior = vr.guide(sites, estimators={"mu": vr.ScoreFunction()})(model).fit(Y, SCALE, num_steps=5, progress=False)
    assert posterior.record["estimators"] == {"mu": repr(vr.ScoreFunction())}
    with pytest.raises(vr.ArgumentError, match="name 'z', which FullRank"):
        vr.guide(sites, estimators={"z": vr.ScoreFunction()})(model)


def test_joint_guides_of_positive_latents_do_not_round_to_zero():
    """Half of the prior's logarithms are below single precision's range, where its density would be infinite."""
    torch.set_default_dtype(torch.float32)

    def sparse():
        pyro.sample("z", dist.Gamma(torch.tensor([0.05] * 3), 1.0).to_event(1))

    layout = vr.guide(vr.FullRank())(sparse).base_guide.layout((), {})
    value, log_det = layout.unpack(torch.tensor([-200.0, 0.0, 100.0]))["z"]
    assert float(log_det) == -100.0
    info = torch.finfo(torch.float32)
    assert value.tolist() == [info.tiny, 1.0, info.max]
