"""Draws with score terms under Pyro's own objectives: the right gradient, or an error that names both."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

import vi_reparam_pyro as vr

N = 2_000
EXACT = {
    1.0: -2.0 * math.pi**2 / 6.0,
    1.5: -1.5 * float(torch.special.polygamma(1, torch.tensor(1.5, dtype=torch.double))),
}
HONOURING = {
    "Trace": lambda: Trace_ELBO(),
    "TraceGraph": lambda: TraceGraph_ELBO(),
    "TraceEnum": lambda: TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False),
}
REJECTION = vr.Rejection(boost=0)


def guided(guide, params):
    """Pyro's objectives differentiate only where a param statement was seen."""

    def program():
        for i, p in enumerate(params):
            pyro.param(f"p{i}", p)
        return guide()

    return program


def mean_and_error(objective, guide, model, params, weight, reps=24):
    found = []
    for _ in range(reps):
        objective.loss_and_grads(model, guided(guide, params))
        found.append(torch.stack([p.grad for p in params]) / weight)
        for p in params:
            p.grad = None
    found = torch.stack(found)
    return found.mean(0), found.std(0) / math.sqrt(reps)


def check(objective, guide, model, params, exact, weight=N):
    mean, error = mean_and_error(objective, guide, model, params, weight)
    exact = torch.as_tensor(exact)
    assert bool((error < 0.03 * exact.abs()).all()), error
    assert bool(((mean - exact).abs() < 4.0 * error).all()), (mean, exact, error)


def test_the_exact_values_are_those_of_the_design():
    assert EXACT[1.0] == pytest.approx(-3.28987, abs=1e-5)
    assert EXACT[1.5] == pytest.approx(-1.40220, abs=1e-5)


FORMS = ("plate", "event", "mask", "handler mask")


@pytest.mark.parametrize(
    ("name", "form", "a0"),
    [  # every form under every objective; the second point once for each objective
        pytest.param(name, form, a0, marks=pytest.mark.slow if a0 == 1.5 and form != "plate" else ())
        for name in HONOURING
        for form in FORMS
        for a0 in (1.0, 1.5)
    ],
)
def test_gamma_comes_out_exact(name, form, a0):
    a = torch.tensor(a0, requires_grad=True)
    half = torch.arange(N) % 2 == 0
    masked = "mask" in form

    def site(d):
        if form == "event":
            d = d.expand([N, 2]).to_event(1)
        if form == "mask":
            d = d.expand([N]).mask(half)
        with pyro.plate("n", N), poutine.mask(mask=half if form == "handler mask" else torch.tensor(True)):
            pyro.sample("z", d)

    def guide():
        site(REJECTION(dist.Gamma(a, torch.tensor(1.0))))

    def model():
        site(dist.Gamma(torch.tensor(3.0), torch.tensor(1.0)))

    weight = N * (2.0 if form == "event" else 0.5 if masked else 1.0)
    check(HONOURING[name](), guide, model, [a], [EXACT[a0]], weight)


@pytest.mark.parametrize("family", ["beta", "dirichlet"])
@pytest.mark.parametrize("name", HONOURING)
def test_beta_and_dirichlet_come_out_exact(name, family):
    start = torch.tensor([1.5, 2.0] if family == "beta" else [1.5, 2.0, 1.2])
    params = [p.clone().requires_grad_() for p in start]

    def of(values):
        values = [v.expand(N) for v in values]
        return dist.Beta(*values) if family == "beta" else dist.Dirichlet(torch.stack(values, -1))

    other = of([torch.tensor(3.0)] * len(start))
    exact = torch.autograd.grad(torch.distributions.kl_divergence(of(params), other).sum() / N, params)

    def guide():
        with pyro.plate("n", N):
            pyro.sample("z", REJECTION(of(params)))

    def model():
        with pyro.plate("n", N):
            pyro.sample("z", other)

    mean, error = mean_and_error(HONOURING[name](), guide, model, params, N, reps=32)
    assert bool((error < 0.02).all())
    assert bool(((mean - torch.stack(exact)).abs() < 4.0 * error).all()), (mean, exact, error)


def test_a_draw_upstream_of_another_under_tracegraph():
    """The first site's score term multiplies the second's cost too."""
    a = torch.tensor(1.0, requires_grad=True)

    def guide():
        with pyro.plate("n", N):
            z = pyro.sample("z", REJECTION(dist.Gamma(a.expand(N), 1.0)))
            pyro.sample("w", dist.Normal(z, 1.0))

    def model():
        with pyro.plate("n", N):
            pyro.sample("z", dist.Gamma(torch.tensor(3.0).expand(N), 1.0))
            pyro.sample("w", dist.Normal(torch.zeros(N), 1.0))

    # E[-log p(w)] = (E[z^2] + 1) / 2 + const = (a^2 + a + 1) / 2: derivative a + 1/2
    check(TraceGraph_ELBO(), guide, model, [a], [EXACT[1.0] + 1.5])


def programs(estimator=REJECTION):
    def guide():
        a = pyro.param("a", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("z", estimator(dist.Gamma(a, torch.tensor(1.0))))

    def model():
        pyro.sample("z", dist.Gamma(torch.tensor(3.0), torch.tensor(1.0)))

    return model, guide


@pytest.mark.parametrize("objective", [TraceMeanField_ELBO(), RenyiELBO(), JitTrace_ELBO(ignore_jit_warnings=True)])
@pytest.mark.parametrize("validate", [True, False])
def test_objectives_that_would_drop_the_term_are_named(objective, validate):
    model, guide = programs()
    name = type(objective).__name__
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), objective)
    with pyro.validation_enabled(validate), pytest.raises(vr.GradientError, match=rf"Rejection\(boost=0\).*{name}"):
        svi.step()


def test_a_loop_of_ones_own_is_refused_when_it_differentiates():
    model, guide = programs()
    guide_trace = poutine.trace(guide).get_trace()
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace()
    loss = guide_trace.log_prob_sum() - model_trace.log_prob_sum()
    with pytest.raises(vr.GradientError, match="this computation would drop"):
        loss.backward()


def test_a_baseline_that_the_host_does_not_have_is_refused():
    model, guide = programs(vr.Rejection(baseline="leave_one_out"))
    with pytest.raises(vr.GradientError, match="asks for a baseline that Trace_ELBO does not have"):
        Trace_ELBO(num_particles=2).loss_and_grads(model, guide)
    model, guide = programs(vr.MeasureValued())
    with pytest.raises(vr.GradientError, match=r"MeasureValued\(\).*Trace_ELBO"):
        Trace_ELBO().loss_and_grads(model, guide)


def test_evaluation_and_prediction_work():
    model, guide = programs()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=4))
    assert math.isfinite(svi.evaluate_loss())
    assert Predictive(model, guide=guide, num_samples=5)()["z"].shape == (5,)
    assert math.isfinite(svi.step())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: dist.TransformedDistribution(d, [dist.transforms.ExpTransform()]),
        lambda d: dist.Independent(d, 1),
        lambda d: dist.MaskedDistribution(d, torch.ones(2, dtype=torch.bool)),
    ],
)
def test_wrappers_that_would_drop_the_term_are_refused(wrap):
    d = REJECTION(dist.Gamma(torch.tensor(1.5, requires_grad=True).expand(2), 1.0))
    wrapped = wrap(d)
    with pytest.raises(vr.GradientError, match=f"was wrapped in {type(wrapped).__name__}"):
        wrapped()


def test_annotated_outermost_a_transformed_distribution_is_right():
    a = torch.tensor(1.0, requires_grad=True)
    exp = [dist.transforms.AffineTransform(0.0, 2.0)]

    def guide():
        with pyro.plate("n", N):
            pyro.sample("z", REJECTION(dist.TransformedDistribution(dist.Gamma(a.expand(N), 1.0), exp)))

    def model():
        with pyro.plate("n", N):
            pyro.sample("z", dist.Gamma(torch.tensor(3.0), 0.5))

    check(Trace_ELBO(), guide, model, [a], [EXACT[1.0]])


def test_it_stays_outermost():
    d = REJECTION(dist.Gamma(torch.tensor(1.5), torch.tensor(1.0)))
    for made in (d.expand([3]), d.expand([3]).to_event(1), d.mask(True), d.expand_by([2])):
        assert isinstance(made, type(d))
        assert made.estimator == REJECTION
    assert d.expand([3]).to_event(1).event_shape == (3,)


def test_a_value_that_was_given_is_refused_under_the_hosts_objectives():
    _, guide = programs()
    given = poutine.condition(guide, data={"z": torch.tensor(1.0)})
    site = poutine.trace(poutine.uncondition(given)).get_trace().nodes["z"]
    with pytest.raises(vr.GradientError, match="was given its value"):
        site["fn"].score_parts(torch.tensor(0.7))
