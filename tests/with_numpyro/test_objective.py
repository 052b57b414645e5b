"""vr.ELBO's gradient against exact values, whatever wraps a site and whichever estimator draws it."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from gradients import assert_right, gradients, kl_dirichlet, kl_gamma, z_scores
from jax.scipy.special import digamma, gammaln
from numpyro import handlers
from numpyro.distributions import constraints, transforms
from numpyro.infer import SVI

import vi_reparam_numpyro as vr

MASK = np.array([True, False, True])
DOUBLE = transforms.AffineTransform(0.0, 2.0, domain=constraints.positive)


def _param(params, name):
    return numpyro.param(name, jnp.asarray(params[name], jnp.result_type(float)))


# Every way to wrap a site, in one program: the sites are independent, so the gradient of each
# parameter is that of its own divergence.

SHAPES = {
    "plain": 1.0,
    "higher": 1.5,
    "event": [1.0, 1.5],
    "batch": [1.0, 1.5],
    "expanded": 1.0,
    "in_plates": [[1.0, 1.5], [2.0, 0.7], [1.2, 3.0]],
    "masked": [1.0, 1.5, 2.0],
    "moved": 1.5,
    "beta": 1.5,
    "simplex": [1.5, 0.8, 2.0],
}


SHAPES = {name: np.asarray(value) for name, value in SHAPES.items()}
ALL = tuple(SHAPES)
FREE = ("event", "expanded", "moved", "simplex")
IN_PLATES = ("in_plates", "masked")
"""Two quick programs, of what no other test here has."""


def wrapped(params=None, annotated=lambda d: d, names=ALL):
    """The sites in `names`: the model at `params` None, else the guide."""

    def shape(name, prior):
        return jnp.asarray(prior, jnp.result_type(float)) if params is None else _param(params, name)

    def site(name, prior, make, around=lambda d: d):
        """`around` is wrapped about the annotation: that stays outermost, wherever it is written."""
        if name in names:
            d = make(shape(name, prior))
            numpyro.sample(f"z_{name}", around(d if params is None else annotated(d)))

    def gamma(a):
        return dist.Gamma(a, 1.0)

    site("plain", 3.0, gamma)
    site("higher", 3.0, gamma)
    site("event", [3.0, 3.0], lambda a: gamma(a).to_event(1))
    site("batch", [3.0, 3.0], gamma)
    site("expanded", 3.0, gamma, lambda d: d.expand([2, 3]).to_event(1))
    with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 2, dim=-1):
        site("in_plates", 3.0, gamma)
    with numpyro.plate("masks", 3):
        site("masked", 3.0, gamma, lambda d: d.mask(jnp.asarray(MASK)))
    site("moved", 3.0, lambda a: dist.TransformedDistribution(gamma(a), DOUBLE))
    site("beta", 3.0, lambda a: dist.Beta(a, 2.0))
    site("simplex", [1.0, 2.0, 3.0], dist.Dirichlet)


def wrapped_divergence(p):
    to_prior = lambda a: kl_gamma(a, 1.0, 3.0, 1.0)  # noqa: E731
    total = sum(jnp.sum(to_prior(p[n])) for n in ("plain", "higher", "event", "batch", "in_plates", "moved"))
    total += 6.0 * to_prior(p["expanded"]) + jnp.sum(jnp.where(MASK, to_prior(p["masked"]), 0.0))
    total += kl_dirichlet(jnp.stack([p["beta"], 2.0 + 0.0 * p["beta"]]), jnp.array([3.0, 2.0]))
    return total + kl_dirichlet(p["simplex"], jnp.array([1.0, 2.0, 3.0]))


@pytest.fixture(scope="module")
def wrapped_exact():
    params = {n: jnp.asarray(v, jnp.float64) for n, v in SHAPES.items()}
    exact = {n: np.asarray(g) for n, g in jax.jit(jax.grad(wrapped_divergence))(params).items()}
    assert exact["plain"] == pytest.approx(-3.28987, abs=1e-5)  # (a - 3) trigamma(a)
    assert exact["higher"] == pytest.approx(-1.40220, abs=1e-5)
    return exact


def _id(value):
    return getattr(value, "__name__", repr(value))


def handled(estimator, names=ALL):
    return vr.estimate(lambda: wrapped(SHAPES, names=names), estimator)


def annotated(estimator, names=ALL):
    return lambda: wrapped(SHAPES, annotated=estimator, names=names)


@pytest.mark.parametrize(
    ("write", "estimator", "particles", "names"),
    [
        pytest.param(handled, vr.Rejection(boost=1), 2, FREE, marks=pytest.mark.slow),
        pytest.param(handled, vr.Rejection(boost=1), 2, IN_PLATES, marks=pytest.mark.slow),
        (handled, vr.Implicit(), 1, IN_PLATES),
        pytest.param(handled, vr.Rejection(boost=1), 2, ALL, marks=pytest.mark.slow),
        pytest.param(handled, vr.Implicit(), 1, ALL, marks=pytest.mark.slow),
        pytest.param(handled, vr.ScoreFunction(), 4, ALL, marks=pytest.mark.slow),
        pytest.param(annotated, vr.Rejection(baseline=None), 1, ALL, marks=pytest.mark.slow),
        pytest.param(annotated, vr.ScoreFunction(baseline="leave_one_out"), 4, ALL, marks=pytest.mark.slow),
    ],
    ids=lambda v: {ALL: "all", FREE: "free", IN_PLATES: "in_plates"}[v] if isinstance(v, tuple) else _id(v),
)
def test_the_gradient_is_exact_in_every_wrapper(write, estimator, particles, names, wrapped_exact):
    at, model = {n: SHAPES[n] for n in names}, functools.partial(wrapped, names=names)
    found = gradients(vr.ELBO(particles), at, model, write(estimator, names), num=4_000)
    loose = estimator.kind == "score_function"
    assert_right(found, {n: wrapped_exact[n] for n in names}, precise=0.15 if loose else 0.03)


def test_analytic_entropy_has_the_same_mean_gradient():
    """(a - 3) trigamma(a) at a = 1, whichever way the entropy enters."""

    def model():
        numpyro.sample("z", dist.Gamma(3.0, 1.0))

    def guide():
        numpyro.sample("z", dist.Gamma(numpyro.param("a", 1.0), 1.0))

    objective = vr.ELBO(2, entropy="analytic")
    estimated = vr.estimate(guide, vr.Rejection())
    each = jax.jit(jax.vmap(lambda key: jax.grad(lambda a: objective.loss(key, {"a": a}, model, estimated))(1.0)))
    found = each(jax.random.split(jax.random.key(0), 4_000))
    assert abs(found.mean() + 3.2898681) / (found.std() / 4_000**0.5) < 4.0


def test_entropy_goes_through_the_wrappers():
    beta, shares = dist.Beta(jnp.array([0.5, 2.0]), 3.0), dist.Dirichlet(jnp.array([0.3, 1.0, 4.0]))
    mask = jnp.array([True, False])
    for d in (beta, beta.to_event(1), beta.expand((3, 2)), beta.mask(mask), shares, shares.expand((2,)).to_event(1)):
        expected = jnp.where(mask, beta.entropy(), 0.0) if d.event_shape == () and hasattr(d, "_mask") else d.entropy()
        np.testing.assert_allclose(vr.Implicit()(d).entropy(), expected, rtol=1e-10)


@pytest.mark.slow
def test_without_its_score_term_the_gradient_would_be_caught(wrapped_exact):
    class Uncorrected(vr.Rejection):
        def draw(self, *args, **kwargs):
            import dataclasses

            drawn = super().draw(*args, **kwargs)
            return dataclasses.replace(drawn, score_term=None)

    found = gradients(vr.ELBO(2), SHAPES, wrapped, handled(Uncorrected(boost=0, min_concentration=1.0)), num=4_000)
    off = found["plain"].mean() / wrapped_exact["plain"] - 1.0
    assert 0.1 < off < 0.22  # 16% at a = 1
    assert abs(z_scores(found["plain"], wrapped_exact["plain"])) > 10


@pytest.mark.parametrize("baseline", ["leave_one_out", pytest.param("optimal", marks=pytest.mark.slow), None], ids=repr)
def test_the_score_functions_baselines(baseline):
    def model():
        numpyro.sample("z", dist.Gamma(3.0, 1.0))

    def guide():
        numpyro.sample("z", dist.Gamma(numpyro.param("a", 1.5), numpyro.param("b", 1.2)))

    at = {"a": 1.5, "b": 1.2}
    exact = jax.jit(jax.grad(lambda p: kl_gamma(p["a"], p["b"], 3.0, 1.0)))({k: jnp.asarray(v) for k, v in at.items()})
    objective = vr.ELBO(4)
    found = gradients(objective, at, model, vr.estimate(guide, vr.ScoreFunction(baseline=baseline)), num=10_000)
    assert_right(found, exact, precise=0.03)


def test_score_functions_as_an_annotation_at_one_particle():
    def model():
        numpyro.sample("z", dist.Gamma(3.0, 1.0).expand([2]).to_event(1))

    def guide():
        numpyro.sample("z", vr.ScoreFunction()(dist.Gamma(numpyro.param("a", 1.0), 1.0)).expand([2]).to_event(1))

    found = gradients(vr.ELBO(), {"a": 1.0}, model, guide, num=20_000)
    assert_right(found, {"a": 2 * -3.28987}, precise=0.06)


# Measure-valued derivatives.


def under_a_mask(guide):
    return lambda: handlers.mask(vr.estimate(guide, {"*": vr.MeasureValued()}), mask=True)()


@pytest.mark.slow  # the Pyro backend's is not
@pytest.mark.parametrize(
    "write",
    [lambda guide: vr.estimate(guide, vr.MeasureValued()), under_a_mask],
    ids=["plain", "under_a_mask"],
)
def test_measure_valued_in_the_rate_of_a_gamma(write):
    def model():
        numpyro.sample("z", dist.Gamma(3.0, 1.0).expand([2]).to_event(1))
        with numpyro.plate("n", 3):
            w = numpyro.sample("w", dist.Gamma(3.0, 1.0))
            numpyro.sample("y", dist.Normal(w, 2.0), obs=jnp.array([1.0, 2.0, 3.0]))

    def guide():
        numpyro.sample("z", dist.Gamma(jnp.array([2.0, 1.0]), numpyro.param("r", jnp.ones(2))).to_event(1))
        with numpyro.plate("n", 3):
            numpyro.sample("w", dist.Gamma(2.0, numpyro.param("s", jnp.ones(3))))

    def exact_loss(p):
        a, s, y = jnp.array([2.0, 1.0]), p["s"], jnp.array([1.0, 2.0, 3.0])
        mean, var = 2.0 / s, 2.0 / s**2
        fit = jnp.sum((y - mean) ** 2 + var) / 8.0
        return jnp.sum(kl_gamma(a, p["r"], 3.0, 1.0)) + jnp.sum(kl_gamma(2.0, s, 3.0, 1.0)) + fit

    at = {"r": jnp.array([1.3, 0.8]), "s": jnp.array([0.7, 1.0, 1.5])}
    found = gradients(vr.ELBO(), at, model, write(guide), num=4_000)
    assert_right(found, jax.jit(jax.grad(exact_loss))(at), precise=0.05)


def test_measure_valued_refuses_the_concentration():
    def model():
        numpyro.sample("z", dist.Gamma(3.0, 1.0))

    def guide():
        numpyro.sample("z", dist.Gamma(numpyro.param("a", 1.5), numpyro.param("b", 1.0)))

    with pytest.raises(vr.GradientError, match=r"MeasureValued\(\) serves rate of gamma, not its concentration"):
        gradients(vr.ELBO(), {"a": 1.5, "b": 1.0}, model, vr.estimate(guide, vr.MeasureValued()), num=2)


# Masks and scales.


@pytest.mark.parametrize("where", ["around", pytest.param("inside", marks=pytest.mark.slow)])
def test_mask_and_scale_handlers_around_and_inside(where):
    def model():
        with numpyro.plate("n", 3), handlers.mask(mask=jnp.asarray(MASK)), handlers.scale(scale=2.0):
            z = numpyro.sample("z", dist.Gamma(3.0, 1.0))
            numpyro.sample("y", dist.Poisson(z), obs=jnp.array([1.0, 2.0, 3.0]))

    def inside():
        with numpyro.plate("n", 3), handlers.mask(mask=jnp.asarray(MASK)), handlers.scale(scale=2.0):
            numpyro.sample("z", dist.Gamma(numpyro.param("a", jnp.ones(3)), 1.0))

    def outside():
        with numpyro.plate("n", 3):
            numpyro.sample("z", dist.Gamma(numpyro.param("a", jnp.ones(3)), 1.0))

    def exact_loss(p):
        y = jnp.array([1.0, 2.0, 3.0])
        fit = p["a"] - y * digamma(p["a"])
        return 2.0 * jnp.sum(jnp.where(MASK, kl_gamma(p["a"], 1.0, 3.0, 1.0) + fit, 0.0))

    at = {"a": jnp.array([1.0, 1.5, 2.0])}
    exact = jax.jit(jax.grad(exact_loss))(at)
    around = handlers.mask(handlers.scale(vr.estimate(outside, vr.Rejection()), scale=2.0), mask=jnp.asarray(MASK))
    guide = around if where == "around" else vr.estimate(inside, vr.Rejection())
    assert_right(gradients(vr.ELBO(2), at, model, guide, num=6_000), exact, precise=0.03)


# Transformed distributions.


def test_an_annotation_inside_a_transformed_distribution_raises():
    def model():
        numpyro.sample("z", dist.TransformedDistribution(dist.Gamma(3.0, 1.0), DOUBLE))

    def guide():
        inner = vr.Rejection()(dist.Gamma(numpyro.param("a", 1.5), 1.0))
        numpyro.sample("z", dist.TransformedDistribution(inner, DOUBLE))

    with pytest.raises(vr.GradientError, match=r"Rejection\(boost=3\) drew .*TransformedDistribution"):
        gradients(vr.ELBO(2), {"a": 1.5}, model, guide, num=2)


def test_a_draw_inside_a_guide_that_is_no_site_raises():
    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        hidden = vr.Rejection()(dist.Gamma(numpyro.param("a", 1.5), 1.0)).sample(numpyro.prng_key())
        numpyro.sample("z", dist.Normal(hidden, 1.0))

    with pytest.raises(vr.GradientError, match=r"Rejection\(boost=3\) drew .* drop its score term"):
        gradients(vr.ELBO(2), {"a": 1.5}, model, guide, num=2)


# Which estimator a site gets.


@pytest.mark.parametrize(
    ("mapping", "annotation", "infer", "expected"),
    [
        ({"z": vr.ScoreFunction(), "*": vr.Implicit()}, vr.Rejection(boost=1), vr.Rejection(), vr.ScoreFunction()),
        ({"*": vr.Implicit()}, vr.Rejection(boost=1), None, vr.Rejection(boost=1)),
        ({"*": vr.Implicit()}, None, vr.Rejection(boost=2), vr.Rejection(boost=2)),
        ({"*": vr.Implicit()}, None, None, vr.Implicit()),
        (vr.Implicit(), None, None, vr.Implicit()),
        ({}, vr.Rejection(boost=1), None, vr.Rejection(boost=1)),
        ({}, None, None, None),
    ],
)
def test_precedence_of_estimators(mapping, annotation, infer, expected):
    def guide():
        d = dist.Gamma(1.5, 1.0)
        options = {} if infer is None else {"infer": {"estimator": infer}}
        numpyro.sample("z", d if annotation is None else annotation(d), **options)

    with handlers.seed(rng_seed=0):
        fn = handlers.trace(vr.estimate(guide, mapping)).get_trace()["z"]["fn"]
    assert getattr(fn, "estimator", None) == expected


def test_the_wildcard_leaves_other_sites_to_auto():
    def guide():
        numpyro.sample("g", dist.Gamma(1.5, 1.0))
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    with handlers.seed(rng_seed=0):
        tr = handlers.trace(vr.estimate(guide, vr.Rejection())).get_trace()
    assert tr["g"]["fn"].estimator == vr.Rejection()
    assert tr["x"]["fn"].estimator == vr.Pathwise()


# Sites that depend on each other.


def _chain(a, m):
    """The loss of `linked`, by quadrature over the first site: E[KL(second)] + KL(first)."""
    z = jnp.exp(jnp.linspace(-30.0, 5.0, 6_001))
    w = jnp.exp(a * jnp.log(z) - z - gammaln(a)) * (35.0 / 6_000)  # dz = z dlog z
    inner = kl_gamma(1.0 + m * z, 1.0, 2.0, 1.0) - jnp.log(5.0 + z)
    return kl_gamma(a, 1.0, 3.0, 1.0) + jnp.sum(w * inner)


def linked_model():
    z = numpyro.sample("z", dist.Gamma(3.0, 1.0))
    numpyro.sample("w", dist.Gamma(2.0, 1.0))
    numpyro.factor("f", jnp.log(5.0 + z))


def linked_guide():
    z = numpyro.sample("z", dist.Gamma(numpyro.param("a", 2.0), 1.0))
    numpyro.sample("w", dist.Gamma(1.0 + numpyro.param("m", 0.5) * z, 1.0))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (vr.Rejection(), vr.ScoreFunction()),
        pytest.param(vr.ScoreFunction(), vr.Implicit(), marks=pytest.mark.slow),
        pytest.param(vr.Rejection(boost=1), vr.Rejection(boost=1), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_a_score_term_knows_what_is_upstream(first, second):
    at = {"a": 2.0, "m": 0.5}
    exact = dict(zip("am", jax.jit(jax.grad(_chain, (0, 1)))(2.0, 0.5), strict=True))
    guide = vr.estimate(linked_guide, {"z": first, "w": second})
    assert_right(gradients(vr.ELBO(4), at, linked_model, guide, num=8_000), exact, precise=0.04)


@pytest.mark.parametrize(
    "estimators",
    [
        pytest.param({"z": vr.MeasureValued(), "x": vr.Pathwise()}, marks=pytest.mark.slow),
        {"z": vr.Implicit(), "x": vr.MeasureValued()},
        pytest.param({"z": vr.MeasureValued(), "x": vr.ScoreFunction()}, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_a_weak_derivative_with_dependent_sites(estimators):
    def model():
        z = numpyro.sample("z", dist.Gamma(3.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0))

    def guide():
        z = numpyro.sample("z", dist.Gamma(2.0, numpyro.param("b", 1.3)))
        numpyro.sample("x", dist.Normal(numpyro.param("m", 0.4) + 0.5 * z, 1.5))

    def exact_loss(p):  # KL(N(m + z/2, s) || N(z, 1)) in expectation
        mean, square = 2.0 / p["b"], 6.0 / p["b"] ** 2
        gap = p["m"] ** 2 - p["m"] * mean + 0.25 * square
        return kl_gamma(2.0, p["b"], 3.0, 1.0) + 0.5 * gap

    at = {"b": jnp.array(1.3), "m": jnp.array(0.4)}
    found = gradients(vr.ELBO(2), at, model, vr.estimate(guide, estimators), num=6_000)
    assert_right(found, jax.jit(jax.grad(exact_loss))(at), precise=0.06)


# Local latents.

COUNTS = np.array([1.0, 4.0, 0.0, 7.0, 2.0, 3.0, 5.0, 1.0])


def local_model(y):
    g = numpyro.sample("g", dist.Gamma(2.0, 1.0))
    with numpyro.plate("n", 8):
        z = numpyro.sample("z", dist.Gamma(1.5, g))
        numpyro.sample("y", dist.Poisson(10.0 * z), obs=y)


def local_guide(y):
    numpyro.sample("g", dist.Gamma(numpyro.param("g_a", 4.0), 2.0))
    with numpyro.plate("n", 8):
        numpyro.sample("z", dist.Gamma(numpyro.param("z_a", jnp.full(8, 2.0)), 5.0))


LOCAL = {"g_a": 4.0, "z_a": np.full(8, 2.0)}


def local_exact(p):
    """Closed form: E log g, E log z, E z and E g are."""
    log_g, log_z = digamma(p["g_a"]) - jnp.log(2.0), digamma(p["z_a"]) - jnp.log(5.0)
    g, z = p["g_a"] / 2.0, p["z_a"] / 5.0
    negative_entropy = (
        p["z_a"] * 0.0 + jnp.log(5.0) - p["z_a"] - gammaln(p["z_a"]) - (1.0 - p["z_a"]) * digamma(p["z_a"])
    )
    prior = 1.5 * log_g + 0.5 * log_z - g * z
    likelihood = COUNTS * log_z - 10.0 * z
    return kl_gamma(p["g_a"], 2.0, 2.0, 1.0) + jnp.sum(negative_entropy - prior - likelihood)


@pytest.mark.slow
def test_local_latents_pathwise():
    exact = jax.jit(jax.grad(local_exact))({n: jnp.asarray(v, jnp.float64) for n, v in LOCAL.items()})
    pathwise = gradients(vr.ELBO(), LOCAL, local_model, vr.estimate(local_guide, vr.Implicit()), COUNTS)
    assert_right(pathwise, exact, precise=0.06)


BY_PLATES = {"z": vr.ScoreFunction(baseline=None), "g": vr.Implicit()}


@pytest.mark.slow  # the Pyro backend's is not
def test_rao_blackwellization_by_plates():
    exact = jax.jit(jax.grad(local_exact))({n: jnp.asarray(v, jnp.float64) for n, v in LOCAL.items()})
    found = gradients(vr.ELBO(), LOCAL, local_model, vr.estimate(local_guide, BY_PLATES), COUNTS, num=8_000)
    assert_right(found, exact, precise=0.1)


@pytest.mark.slow
def test_plates_that_could_not_be_checked_sum_over_all_elements():
    """With traced data: right, and noisier."""
    at = {n: jnp.asarray(v, jnp.float64) for n, v in LOCAL.items()}
    guide, unchecked = vr.estimate(local_guide, BY_PLATES), vr.ELBO()
    by_plate = gradients(vr.ELBO(), LOCAL, local_model, guide, COUNTS, num=8_000)
    keys = jax.random.split(jax.random.key(1), 12_000)

    def grad(p, key, y):
        return jax.grad(lambda p: unchecked.loss(key, p, local_model, guide, y))(p)

    with pytest.warns(UserWarning, match=r"\['n'\] could not be checked"):
        summed = jax.jit(jax.vmap(grad, (None, 0, None)))(at, keys, jnp.asarray(COUNTS))
    summed = {n: np.asarray(v) for n, v in summed.items()}
    assert_right(summed, jax.jit(jax.grad(local_exact))(at), precise=0.3)
    assert np.all(by_plate["z_a"].var(0) < 0.25 * summed["z_a"].var(0))

    # Checked by hand before jit, it is Rao-Blackwellized again, under traced data.
    unchecked.check(local_model, guide, COUNTS)
    again = jax.jit(jax.vmap(grad, (None, 0, None)))(at, keys, jnp.asarray(COUNTS))
    assert np.all(np.asarray(again["z_a"]).var(0) < 0.25 * summed["z_a"].var(0))


def test_a_subsampled_plate_scales_costs_and_never_score_terms():
    def model():
        g = numpyro.sample("g", dist.Gamma(2.0, 1.0))
        with numpyro.plate("n", 8, subsample_size=3) as i:
            z = numpyro.sample("z", dist.Gamma(1.5, g))
            numpyro.sample("y", dist.Poisson(10.0 * z), obs=jnp.asarray(COUNTS)[i])

    def guide():
        numpyro.sample("g", dist.Gamma(numpyro.param("g_a", 4.0), 2.0))
        shapes = numpyro.param("z_a", jnp.full(8, 2.0))
        with numpyro.plate("n", 8, subsample_size=3) as i:
            numpyro.sample("z", dist.Gamma(shapes[i], 5.0))

    at = {n: jnp.asarray(v, jnp.float64) for n, v in LOCAL.items()}
    found = gradients(vr.ELBO(4), LOCAL, model, vr.estimate(guide, vr.Rejection()), num=8_000)
    assert_right(found, jax.jit(jax.grad(local_exact))(at), precise=0.05)


# Discrete latents, by enumeration.

LOGITS = np.array([0.3, -0.8, 1.2])


def discrete_model():
    one = numpyro.sample("one", dist.Bernoulli(0.3))
    with numpyro.plate("n", 3):
        b = numpyro.sample("b", dist.Bernoulli(probs=0.3))
        numpyro.sample("x", dist.Normal(2.0 * b - one, 1.0), obs=jnp.array([0.5, 1.0, -1.0]))
    numpyro.sample("sum", dist.Normal(jnp.sum(b), 1.0), obs=1.5)
    k = numpyro.sample("k", dist.Poisson(2.0))
    numpyro.sample("w", dist.Normal(jnp.sqrt(k + 1.0), 0.5), obs=2.0)


def discrete_guide():
    numpyro.sample("one", dist.Bernoulli(logits=numpyro.param("one_l", 0.4)))
    with numpyro.plate("n", 3):
        numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("b_l", LOGITS)))
    numpyro.sample("k", dist.Poisson(numpyro.param("rate", 1.7)))


def discrete_exact(p):
    def log_p(one, b):
        total = dist.Bernoulli(0.3).log_prob(one) + dist.Bernoulli(0.3).log_prob(b).sum()
        total += dist.Normal(2.0 * b - one, 1.0).log_prob(jnp.array([0.5, 1.0, -1.0])).sum()
        return total + dist.Normal(b.sum(), 1.0).log_prob(1.5)

    loss = 0.0
    for bits in itertools.product([0.0, 1.0], repeat=4):
        one, b = jnp.asarray(bits[0]), jnp.asarray(bits[1:])
        log_q = dist.Bernoulli(logits=p["one_l"]).log_prob(one) + dist.Bernoulli(logits=p["b_l"]).log_prob(b).sum()
        loss += jnp.exp(log_q) * (log_q - log_p(one, b))
    k = jnp.arange(60.0)
    log_q = dist.Poisson(p["rate"]).log_prob(k)
    target = dist.Poisson(2.0).log_prob(k) + dist.Normal(jnp.sqrt(k + 1.0), 0.5).log_prob(2.0)
    return loss + jnp.sum(jnp.exp(log_q) * (log_q - target))


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(vr.ScoreFunction(), marks=pytest.mark.slow),
        pytest.param(vr.ScoreFunction(baseline="optimal"), marks=pytest.mark.slow),
        vr.MeasureValued(),
    ],
    ids=repr,
)
def test_discrete_latents_against_enumeration(estimator):
    at = {"one_l": jnp.array(0.4), "b_l": jnp.asarray(LOGITS), "rate": jnp.array(1.7)}
    exact = jax.jit(jax.grad(discrete_exact))(at)
    found = gradients(vr.ELBO(4), at, discrete_model, vr.estimate(discrete_guide, estimator), num=5_000)
    assert_right(found, exact, precise=0.05)


def test_weak_derivatives_of_dimensions_that_are_no_plate_move_one_by_one():
    def model():
        b = numpyro.sample("b", dist.Bernoulli(probs=0.3).expand([2, 2]).to_event(1))
        numpyro.sample("y", dist.Normal(jnp.sum(b) ** 2, 2.0), obs=3.0)

    def guide():
        numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("l", jnp.zeros((2, 2)))).to_event(1))

    def exact_loss(p):
        loss = 0.0
        for bits in itertools.product([0.0, 1.0], repeat=4):
            b = jnp.asarray(bits).reshape(2, 2)
            log_q = dist.Bernoulli(logits=p["l"]).log_prob(b).sum()
            log_p = dist.Bernoulli(0.3).log_prob(b).sum() + dist.Normal(b.sum() ** 2, 2.0).log_prob(3.0)
            loss += jnp.exp(log_q) * (log_q - log_p)
        return loss

    at = {"l": jnp.array([[0.1, -0.5], [0.7, 0.2]])}
    found = gradients(vr.ELBO(), at, model, vr.estimate(guide, vr.MeasureValued()), num=5_000)
    assert_right(found, jax.jit(jax.grad(exact_loss))(at), precise=0.1)


# Baselines that cannot be had, and the one that needs a state.


def gamma_model():
    z = numpyro.sample("z", dist.Gamma(3.0, 1.0))
    numpyro.factor("constant", 500.0 + 0.0 * z)


def gamma_guide():
    numpyro.sample("z", dist.Gamma(numpyro.param("a", 1.5, constraint=constraints.positive), 1.0))


@pytest.mark.parametrize("make", [vr.ScoreFunction, vr.Rejection])
def test_leave_one_out_with_one_particle_raises(make):
    guide = vr.estimate(gamma_guide, make(baseline="leave_one_out"))
    with pytest.raises(
        vr.GradientError, match=r"baseline='leave_one_out'\) needs two or more particles.*ELBO\(num_particles=1"
    ):
        gradients(vr.ELBO(), {"a": 1.5}, gamma_model, guide, num=2)


def test_an_optimal_baseline_needs_three_particles():
    guide = vr.estimate(gamma_guide, vr.ScoreFunction(baseline="optimal"))
    with pytest.raises(vr.GradientError, match=r"'z'.*'optimal'.*three or more.*has 2"):
        gradients(vr.ELBO(2), {"a": 1.5}, gamma_model, guide, num=2)


def test_a_decaying_average_needs_a_state():
    def guide():
        numpyro.sample("z", vr.ScoreFunction(baseline="decaying_average")(dist.Gamma(numpyro.param("a", 1.5), 1.0)))

    with pytest.raises(vr.GradientError, match=r"'z'.*decaying_average.*needs the state"):
        gradients(vr.ELBO(), {"a": 1.5}, gamma_model, guide, num=2)


def test_a_decaying_average_in_svi_lowers_the_variance():
    guide = vr.estimate(gamma_guide, vr.ScoreFunction(baseline="decaying_average"))
    svi = SVI(gamma_model, guide, optax.sgd(0.0), vr.ELBO())
    state = jax.jit(svi.init)(jax.random.key(0))
    assert jax.tree.leaves(state.mutable_state)[0].shape == ()
    update = jax.jit(svi.update)
    for _ in range(60):
        state, _ = update(state)
    average = state.mutable_state["vr.baseline"]["z"]
    assert float(average["count"]) == pytest.approx(60, abs=2)
    averaged = gradients(vr.ELBO(), {"a": 1.5}, gamma_model, guide, state=state.mutable_state, num=8_000)
    plain = gradients(vr.ELBO(), {"a": 1.5}, gamma_model, vr.estimate(gamma_guide, vr.ScoreFunction(baseline=None)))
    assert_right(averaged, {"a": -1.40220}, precise=0.05)
    assert averaged["a"].var() < 0.05 * plain["a"].var()


def test_svi_updates_and_evaluates():
    guide = vr.estimate(gamma_guide, vr.Rejection())
    svi = SVI(gamma_model, guide, optax.adam(optax.linear_schedule(0.05, 0.0, 600)), vr.ELBO(4))
    result = svi.run(jax.random.key(0), 600, progress_bar=False)
    assert float(result.params["a"]) == pytest.approx(3.0, abs=0.35)
    assert np.isfinite(float(jax.jit(svi.evaluate)(result.state)))


@pytest.mark.slow  # the Pyro backend's is not
def test_leave_one_out_lowers_the_variance():
    with_it, without = (
        gradients(vr.ELBO(4), {"a": 1.5}, gamma_model, vr.estimate(gamma_guide, estimator), num=2_000)
        for estimator in (vr.Rejection(boost=1), vr.Rejection(boost=1, baseline=None))
    )
    assert with_it["a"].var() < 0.1 * without["a"].var()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_particles": 0}, r"ELBO\(num_particles=0\): expected an integer of at least 1"),
        ({"num_particles": 2.0}, r"ELBO\(num_particles=2.0\)"),
        ({"entropy": "exact"}, r"ELBO\(entropy='exact'\): expected one of"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(vr.ArgumentError, match=match):
        vr.ELBO(**options)


def test_a_guide_that_misses_a_latent_or_has_another_shape_raises():
    def other():
        numpyro.sample("w", dist.Gamma(1.0, 1.0))

    def wider():
        numpyro.sample("z", dist.Gamma(jnp.ones(3), 1.0))

    with pytest.raises(vr.SiteError, match=r"misses the latent site 'z' of the model: it draws \['w'\]"):
        vr.ELBO().loss(jax.random.key(0), {}, gamma_model, other)
    with pytest.raises(vr.SiteError, match=r"site 'z': the guide draws shape \(3,\), the model expects \(\)"):
        vr.ELBO().loss(jax.random.key(0), {}, gamma_model, wider)
