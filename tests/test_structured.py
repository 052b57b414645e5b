"""Structured guides against exact values: hierarchies of normals by linear algebra, others by quadrature."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

BACKENDS = ("numpyro", "pyro")


def linear_evidence(rows, y, noise=1.0):
    """log p(y) of y = rows @ e + noise, e standard normal."""
    covariance = rows @ rows.T + noise**2 * np.eye(len(y))
    return -0.5 * (len(y) * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + y @ np.linalg.solve(covariance, y))


def nested(vr):
    """Schools in districts, all variances known."""
    h, num, own = vr.host, 5, 6
    district, school = np.repeat(np.arange(num), own), np.repeat(np.arange(num * own), 2)
    y = 1.0 + np.sin(1.7 * np.arange(len(school)))

    def model(y):
        mu = h.sample("mu", h.dist.Normal(h.array(0.0), 3.0))
        with h.plate("districts", num):
            a = h.sample("a", h.dist.Normal(mu, 1.0))
        with h.plate("schools", num * own):
            b = h.sample("b", h.dist.Normal(a[district], 0.7))
        with h.plate("rows", len(y)):
            h.sample("y", h.dist.Normal(b[school], 1.0), obs=y)

    rows = np.zeros((len(y), 1 + num + num * own))
    rows[:, 0] = 3.0
    rows[np.arange(len(y)), 1 + district[school]] = 1.0
    rows[np.arange(len(y)), 1 + num + school] = 0.7
    return model, y, linear_evidence(rows, y)


def grouped(num):
    """Four rows a group: its index, a predictor, an outcome."""
    group = np.repeat(np.arange(num), 4)
    x = np.cos(2.3 * np.arange(len(group))) + 0.5
    y = np.sin(1.1 * np.arange(len(group))) + x * group / num
    return group, x, y


def slopes_apart(vr):
    """The same in two plates of one size."""
    return slopes(vr, plates=("intercepts", "slopes"))


def slopes(vr, plates=("groups", "groups")):
    """An intercept and a slope a group."""
    h, num = vr.host, 20
    group, x, y = grouped(num)

    def model(y):
        first = h.sample("first", h.dist.Normal(h.array(0.0), 2.0))
        second = h.sample("second", h.dist.Normal(h.array(0.0), 2.0))
        with h.plate(plates[0], num):
            a = h.sample("a", h.dist.Normal(first, 0.8))
        with h.plate(plates[1], num):
            b = h.sample("b", h.dist.Normal(second, 0.6))
        with h.plate("rows", len(y)):
            h.sample("y", h.dist.Normal(a[group] + b[group] * h.array(x), 1.0), obs=y)

    each, rows = np.arange(len(y)), np.zeros((len(y), 2 + 2 * num))
    rows[:, 0], rows[:, 1] = 2.0, 2.0 * x
    rows[each, 2 + group], rows[each, 2 + num + group] = 0.8, 0.6 * x
    return model, y, linear_evidence(rows, y)


def correlated_slopes(vr):
    """The two of a group as one vector with a known covariance."""
    h, num = vr.host, 20
    group, x, y = grouped(num)
    root = np.linalg.cholesky(np.array([[0.64, 0.3], [0.3, 0.36]]))

    def model(y):
        mu = h.sample("mu", h.dist.Normal(h.array(np.zeros(2)), 2.0).to_event(1))
        with h.plate("groups", num):
            ab = h.sample(
                "ab", h.dist.MultivariateNormal(mu[None] + h.array(np.zeros((num, 1))), scale_tril=h.array(root))
            )
        with h.plate("rows", len(y)):
            h.sample("y", h.dist.Normal(ab[group, 0] + ab[group, 1] * h.array(x), 1.0), obs=y)

    each, rows = np.arange(len(y)), np.zeros((len(y), 2 + 2 * num))
    rows[:, 0], rows[:, 1] = 2.0, 2.0 * x
    rows[each, 2 + 2 * group], rows[each, 3 + 2 * group] = root[0, 0] + x * root[1, 0], x * root[1, 1]
    return model, y, linear_evidence(rows, y)


def crossed(vr):
    """Two sets of effects, each row one of both."""
    h, num, more = vr.host, 6, 25
    first, second = (index.ravel()[::2] for index in np.meshgrid(np.arange(num), np.arange(more), indexing="ij"))
    y = np.sin(1.3 * np.arange(len(first))) + 0.5

    def model(y):
        mu = h.sample("mu", h.dist.Normal(h.array(0.0), 2.0))
        with h.plate("firsts", num):
            a = h.sample("a", h.dist.Normal(h.array(0.0), 0.8))
        with h.plate("seconds", more):
            b = h.sample("b", h.dist.Normal(h.array(0.0), 0.6))
        with h.plate("rows", len(y)):
            h.sample("y", h.dist.Normal(mu + a[first] + b[second], 1.0), obs=y)

    each, rows = np.arange(len(y)), np.zeros((len(y), 1 + num + more))
    rows[:, 0] = 2.0
    rows[each, 1 + first], rows[each, 1 + num + second] = 0.8, 0.6
    return model, y, linear_evidence(rows, y)


def walk(vr):
    """A random walk, a statement a step."""
    h, num = vr.host, 8
    y = np.sin(0.9 * np.arange(num))

    def model(y):
        z = [h.sample("z0", h.dist.Normal(h.array(0.0), 1.0))]
        for t in range(1, num):
            z.append(h.sample(f"z{t}", h.dist.Normal(z[-1], 0.5)))
        for t in range(num):
            h.sample(f"y{t}", h.dist.Normal(z[t], 1.0), obs=y[t])

    rows = 0.5 * np.tril(np.ones((num, num)))
    rows[:, 0] = 1.0
    return model, y, linear_evidence(rows, y)


def walk_as_one(vr):
    """The same as one site."""
    h, num = vr.host, 30
    y = np.sin(0.9 * np.arange(num)) + 0.1 * np.arange(num)

    def model(y):
        z = h.sample("z", h.dist.GaussianRandomWalk(h.array(0.5), num))
        h.sample("y", h.dist.Normal(z, 1.0).to_event(1), obs=y)

    return model, y, linear_evidence(0.5 * np.tril(np.ones((num, num))), y)


QUICK = {"numpyro": ("slopes_apart", "correlated_slopes", "crossed"), "pyro": ("nested",)}
"""Both backends compute the same numbers (tests/test_same_noise.py), so each case is quick on one."""


def on(backend, name):
    return [] if name in QUICK[backend] else [pytest.mark.slow]


CASES = [
    pytest.param(b, case, marks=on(b, case.__name__), id=f"{b}-{case.__name__}")
    for b in BACKENDS
    for case in (nested, slopes, slopes_apart, correlated_slopes, crossed, walk)
]
CASES.append(pytest.param("numpyro", walk_as_one, id="numpyro-walk_as_one"))  # Pyro has no such distribution


@pytest.mark.parametrize(("vr", "case"), CASES, indirect=["vr"])
def test_a_hierarchy_of_normals_is_exact(vr, case):
    model, y, evidence = case(vr)
    posterior = vr.guide(vr.Structured())(model).fit(vr.host.array(y), progress=False)
    elbo, error = posterior.elbo()
    assert abs(elbo - evidence) < 0.01, (elbo, error, evidence)
    assert posterior.khat < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 100])
def test_a_funnel_is_exact(vr, size):
    h = vr.host

    def model():
        v = h.sample("v", h.dist.Normal(h.array(0.0), 3.0))
        with h.plate("rows", size - 1):
            h.sample("x", h.dist.Normal(0.0 * v, h.xp.exp(0.5 * v)))

    elbo, _ = vr.guide(vr.Structured())(model).fit(progress=False).elbo()
    assert abs(elbo) < 0.005


def counted(vr):
    """Counts whose rates have a gamma prior of unknown shape and mean; the evidence by quadrature."""
    h, num = vr.host, 60
    exposure, y = 0.5 + np.arange(num) % 5, np.arange(num) * 7 % 11 % 6

    def model(y):
        shape = h.sample("shape", h.dist.LogNormal(h.array(0.5), 0.5))
        mean = h.sample("mean", h.dist.LogNormal(h.array(0.0), 0.5))
        with h.plate("groups", num):
            rate = h.sample("rate", h.dist.Gamma(shape, shape / mean))
            h.sample("y", h.dist.Poisson(rate * h.array(exposure)), obs=y)

    s, m = np.linspace(-2.0, 3.0, 241)[:, None, None], np.linspace(-1.2, 1.5, 241)[None, :, None]
    shape, met = np.exp(s), np.exp(m) * exposure
    each = stats.nbinom.logpmf(y, shape, shape / (shape + met)).sum(-1)
    log_p = each + stats.norm.logpdf(s[..., 0], 0.5, 0.5) + stats.norm.logpdf(m[..., 0], 0.0, 0.5)
    return model, y.astype(float), float(logsumexp(log_p)) + math.log(5.0 / 240.0 * 2.7 / 240.0)


def succeeded(vr):
    """Successes of four trials whose chances have a beta prior of unknown mean and size; the evidence by quadrature."""
    h, num = vr.host, 60
    y = np.arange(num) * 7 % 13 % 5

    def model(y):
        logit = h.sample("logit", h.dist.Normal(h.array(0.0), 1.0))
        size = h.sample("size", h.dist.LogNormal(h.array(1.0), 0.5))
        mean = 1.0 / (1.0 + h.xp.exp(-logit))
        with h.plate("groups", num):
            flat = h.array(np.zeros(num))
            chance = h.sample("chance", h.dist.Beta(mean * size + flat, (1.0 - mean) * size + flat))
            h.sample("y", h.dist.Binomial(4, probs=chance), obs=y)

    m, s = np.linspace(-2.0, 2.0, 201)[:, None, None], np.linspace(-1.0, 3.0, 201)[None, :, None]
    size, mean = np.exp(s), 1.0 / (1.0 + np.exp(-m))
    each = stats.betabinom.logpmf(y, 4, mean * size, (1.0 - mean) * size).sum(-1)
    log_p = each + stats.norm.logpdf(m[..., 0]) + stats.norm.logpdf(s[..., 0], 1.0, 0.5)
    return model, y.astype(float), float(logsumexp(log_p)) + 2.0 * math.log(4.0 / 200.0)


CONJUGATE = [
    pytest.param("numpyro", counted, id="numpyro-counted", marks=pytest.mark.slow),
    pytest.param("pyro", counted, id="pyro-counted", marks=pytest.mark.slow),
    pytest.param("numpyro", succeeded, id="numpyro-succeeded"),
    pytest.param("pyro", succeeded, id="pyro-succeeded", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("vr", "case"), CONJUGATE, indirect=["vr"])
def test_gammas_and_betas_keep_their_family(vr, case):
    model, y, evidence = case(vr)
    posterior = vr.guide(vr.Structured())(model).fit(vr.host.array(y), progress=False)
    elbo, error = posterior.elbo()
    assert abs(elbo - evidence) < 0.02, (elbo, error, evidence)
    assert posterior.khat < 0.5


def groups(vr, num, center, spread):
    """Counts of ten in groups whose logits vary."""
    h = vr.host
    quantiles = (np.arange(num) + 0.5) / num
    logits = center + spread * np.log(quantiles / (1.0 - quantiles)) / 1.7
    y = np.round(10.0 / (1.0 + np.exp(-logits)))

    def model(y):
        mu = h.sample("mu", h.dist.Normal(h.array(0.0), 2.0))
        tau = h.sample("tau", h.dist.HalfNormal(h.array(1.0)))
        with h.plate("groups", num):
            theta = h.sample("theta", h.dist.Normal(mu, tau))
            h.sample("y", h.dist.Binomial(10, logits=theta), obs=y)

    return model, y


def groups_by_quadrature(y):
    """log evidence, and (mean, sd) of mu and tau."""
    counts, k = np.bincount(y.astype(int), minlength=11), np.arange(11)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    mu, log_tau = np.linspace(-1.5, 0.5, 161), np.linspace(-5.0, 1.0, 241)
    choose = np.array([math.lgamma(11) - math.lgamma(i + 1) - math.lgamma(11 - i) for i in k])
    log_p = np.empty((len(mu), len(log_tau)))
    for j, own in enumerate(log_tau):
        theta = mu[:, None, None] + np.exp(own) * nodes[None, :, None]
        terms = np.exp(choose + k * theta - 10.0 * np.logaddexp(0.0, theta))
        likelihood = np.log((terms * (weights / weights.sum())[None, :, None]).sum(1))
        log_p[:, j] = (counts * likelihood).sum(1) + np.log(2.0) - 0.5 * np.exp(2.0 * own) + own
    log_p += -0.125 * mu[:, None] ** 2 - np.log(2.0) - np.log(2.0 * np.pi)
    p = np.exp(log_p - log_p.max())
    cell = (mu[1] - mu[0]) * (log_tau[1] - log_tau[0])
    evidence = log_p.max() + np.log(p.sum() * cell)
    found = []
    for values, mass in ((mu, p.sum(1)), (np.exp(log_tau), p.sum(0))):
        mean = (mass * values).sum() / mass.sum()
        found.append((mean, np.sqrt((mass * (values - mean) ** 2).sum() / mass.sum())))
    return evidence, found


@pytest.mark.parametrize("vr", [pytest.param("numpyro", marks=pytest.mark.slow), "pyro"], indirect=True)
def test_hyperparameters_of_many_groups_are_right_by_the_default(vr):
    """150 groups: more than a full covariance is tried for."""
    model, y = groups(vr, 150, -0.5, 1.2)
    evidence, reference = groups_by_quadrature(y)
    posterior = vr.guide(model).fit(vr.host.array(y), progress=False)
    assert posterior.record["family"] == "NestedLaplace(globals=('tau',))"
    draws = posterior.draws(4_000, seed=1)
    for name, (mean, sd) in zip(("mu", "tau"), reference, strict=True):
        values = np.asarray(draws[name])
        assert abs(values.mean() - mean) < 0.1 * sd, name
        assert 0.9 < values.std() / sd < 1.1, name
    assert 0.0 < evidence - posterior.elbo()[0] < 0.25  # groups that counted 0 or 10 are skewed


def test_it_is_no_part_of_others(vr):
    with pytest.raises(vr.ArgumentError, match="it follows all latents of a model, so it is no part"):
        vr.Sites({"theta": vr.Structured(), "*": vr.MeanField()})
