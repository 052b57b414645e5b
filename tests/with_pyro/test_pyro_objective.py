"""vr.ELBO: exact gradients in lanes and one by one, Rao-Blackwellization, and what it refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

import vi_reparam_pyro as vr

N = 500
EXACT = -2.0 * math.pi**2 / 6.0


def gamma_programs(a, rate=None):
    rate = torch.tensor(1.0) if rate is None else rate

    def guide():
        with pyro.plate("n", N):
            pyro.sample("z", dist.Gamma(a, rate).expand([N]))

    def model():
        with pyro.plate("n", N):
            pyro.sample("z", dist.Gamma(3.0, torch.tensor(1.0)))

    return model, guide


def gradients(objective, model, guide, params, reps=16):
    found = torch.stack(
        [torch.stack(torch.autograd.grad(objective.differentiable_loss(model, guide), params)) for _ in range(reps)]
    )
    return found.mean(0), found.std(0) / math.sqrt(reps)


@pytest.mark.parametrize("lanes", [None, False])
@pytest.mark.parametrize(
    "estimator",
    [
        vr.Rejection(boost=0),
        vr.Rejection(),
        vr.Rejection(baseline=None),
        vr.Implicit(),
        vr.ScoreFunction(),
        vr.ScoreFunction(baseline="optimal"),
        vr.Auto(),
    ],
)
def test_gamma_is_exact(estimator, lanes):
    a = torch.tensor(1.0, requires_grad=True)
    model, guide = gamma_programs(a)
    objective = vr.ELBO(4, vectorize_particles=lanes)
    mean, error = gradients(objective, model, vr.estimate(guide, estimator), [a], reps=24)
    assert float(error[0]) / N < 0.02 * abs(EXACT) * (3.0 if isinstance(estimator, vr.ScoreFunction) else 1.0)
    assert abs(float(mean[0]) / N - EXACT) < 4.0 * float(error[0]) / N
    (structure,) = objective._known.values()
    assert structure.in_lanes == (lanes is None)


def test_measure_valued_is_exact_in_the_rate():
    rate = torch.tensor(2.0, requires_grad=True)
    model, guide = gamma_programs(torch.tensor(1.5), rate)
    exact = torch.autograd.grad(
        torch.distributions.kl_divergence(dist.Gamma(1.5, rate), dist.Gamma(torch.tensor(3.0), torch.tensor(1.0))), rate
    )[0]
    for lanes in (None, False):
        objective = vr.ELBO(2, vectorize_particles=lanes)
        mean, error = gradients(objective, model, vr.estimate(guide, vr.MeasureValued()), [rate])
        assert float(error[0]) / N < 0.05
        assert abs(float(mean[0]) / N - exact) < 4.0 * float(error[0]) / N


def test_measure_valued_refuses_what_it_does_not_serve():
    a = torch.tensor(1.5, requires_grad=True)
    model, guide = gamma_programs(a)
    with pytest.raises(vr.GradientError, match="serves rate of gamma, not its concentration"):
        vr.ELBO().loss_and_grads(model, vr.estimate(guide, vr.MeasureValued()))


@pytest.mark.parametrize("estimator", [vr.ScoreFunction(), vr.MeasureValued()])
def test_a_discrete_latent_is_exact(estimator):
    logits = torch.tensor(0.3, requires_grad=True)

    def guide():
        with pyro.plate("n", N):
            pyro.sample("z", dist.Bernoulli(logits=logits.expand(N)))

    def model():
        with pyro.plate("n", N):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(torch.tensor([-1.0, 2.0])[z.long()], 1.0), obs=torch.ones(N))

    p = torch.sigmoid(logits)
    cost = [
        -math.log(0.5) - dist.Normal(m, 1.0).log_prob(torch.tensor(1.0))
        for m in (torch.tensor(-1.0), torch.tensor(2.0))
    ]
    loss = p * (cost[1] + torch.log(p)) + (1 - p) * (cost[0] + torch.log1p(-p))
    exact = torch.autograd.grad(loss, logits)[0]
    mean, error = gradients(vr.ELBO(4), model, vr.estimate(guide, estimator), [logits])
    assert abs(float(mean[0]) / N - exact) < 4.0 * float(error[0]) / N + 1e-9
    assert float(error[0]) / N < 0.02


def test_analytic_entropy_and_a_second_site():
    a, b = (torch.tensor(x, requires_grad=True) for x in (1.0, 2.0))

    def guide():
        with pyro.plate("n", N):
            pyro.sample("z", dist.Gamma(a.expand(N), 1.0))
            pyro.sample("w", dist.Beta(b.expand(N), 2.0).mask(torch.arange(N) % 2 == 0))

    def model():
        with pyro.plate("n", N):
            pyro.sample("z", dist.Gamma(torch.tensor(3.0), 1.0))
            pyro.sample("w", dist.Beta(torch.tensor(3.0), 1.5).mask(torch.arange(N) % 2 == 0))

    kl = torch.distributions.kl_divergence(dist.Beta(b, 2.0), dist.Beta(torch.tensor(3.0), 1.5))
    exact = torch.stack([torch.tensor(EXACT), 0.5 * torch.autograd.grad(kl, b)[0]])
    for entropy in ("analytic", "monte_carlo"):
        mean, error = gradients(vr.ELBO(4, entropy=entropy), model, vr.estimate(guide, vr.Rejection()), [a, b])
        assert bool(((mean / N - exact).abs() < 4.0 * error / N).all()), (mean / N, exact, error / N)


def test_score_terms_multiply_only_the_costs_downstream():
    a = torch.tensor(2.0, requires_grad=True)

    def guide():
        with pyro.plate("n", 3):
            z = pyro.sample("z", dist.Gamma(a.expand(3), 1.0))
            pyro.sample("w", dist.Normal(z, 1.0))
        pyro.sample("u", dist.Normal(torch.tensor(0.0), 1.0))

    def model():
        with pyro.plate("n", 3):
            pyro.sample("z", dist.Gamma(torch.tensor(3.0), 1.0))
            w = pyro.sample("w", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(torch.floor(w), 1.0), obs=torch.zeros(3))
        u = pyro.sample("u", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(u, 1e-3), obs=torch.tensor(1.0))

    objective = vr.ELBO(2)
    objective.loss_and_grads(model, vr.estimate(guide, {"z": vr.Rejection()}))
    (structure,) = objective._known.values()
    # floor has no gradient, and still x depends on z, through w
    assert structure.dependents["z"] == {("guide", "z"), ("model", "z"), ("guide", "w"), ("model", "w"), ("model", "x")}
    assert structure.plates == {"n"}


def test_dependence_survives_a_custom_function():
    class Twice(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return 2.0 * x

        @staticmethod
        def setup_context(ctx, inputs, output): ...

        @staticmethod
        def backward(ctx, g):
            return 2.0 * g

    def guide():
        pyro.sample("z", dist.Gamma(torch.tensor(2.0, requires_grad=True), 1.0))

    def model():
        z = pyro.sample("z", dist.Gamma(3.0, torch.tensor(1.0)))
        pyro.sample("y", dist.Normal(Twice.apply(z), 1.0), obs=torch.tensor(1.0))

    structure = vr.ELBO().check(model, vr.estimate(guide, vr.Rejection()))
    assert ("model", "y") in structure.dependents["z"]


@pytest.mark.parametrize("shift", [0, 2])
def test_a_false_plate_is_refused(shift):
    def guide():
        with pyro.plate("n", 8):
            pyro.sample("z", dist.Gamma(torch.full((8,), 2.0, requires_grad=True), 1.0))

    def model():
        with pyro.plate("n", 8):
            z = pyro.sample("z", dist.Gamma(torch.tensor(3.0), 1.0))
            middle = z.mean() if shift == 0 else torch.roll(z, shift)
            pyro.sample("y", dist.Normal(middle, 1.0), obs=torch.zeros(8))

    for estimator in (vr.Rejection(), vr.ScoreFunction()):
        with pytest.raises(vr.GradientError, match="plate 'n' is false: the model cost at 'y'"):
            vr.ELBO(2).loss_and_grads(model, vr.estimate(guide, estimator))
    vr.ELBO(2).loss_and_grads(model, vr.estimate(guide, vr.Implicit()))


def test_a_plate_that_cannot_be_checked_is_summed_over():
    def guide():
        with pyro.plate("n", 4):
            pyro.sample("z", dist.Gamma(torch.full((4,), 2.0, requires_grad=True), 1.0))

    def model():
        with pyro.plate("n", 4):
            z = pyro.sample("z", dist.Gamma(torch.tensor(3.0), 1.0))
            pyro.factor("f", torch.where(z > 0.0, -math.inf, 0.0))

    with pytest.warns(UserWarning, match="could not be checked"):
        structure = vr.ELBO(2).check(model, vr.estimate(guide, vr.Rejection()))
    assert structure.plates == frozenset()


def test_a_program_that_reads_a_draw_runs_one_by_one_and_is_right():
    a = torch.tensor(1.0, requires_grad=True)

    def guide():
        pyro.sample("z", dist.Gamma(a, 1.0))

    def model():
        z = pyro.sample("z", dist.Gamma(3.0, torch.tensor(1.0)))
        if z.item() > 1.0:
            pyro.factor("f", torch.tensor(2.0))

    # the factor adds -2 P(z > 1) to the loss; for Gamma(a, 1) at a = 1 dP/da by quadrature
    t = torch.linspace(1.0, 60.0, 400_001)
    density = torch.exp(-t) * (torch.log(t) - torch.digamma(torch.tensor(1.0)))
    exact = EXACT - 2.0 * float(torch.trapezoid(density, t))
    objective = vr.ELBO(16)
    mean, error = gradients(objective, model, vr.estimate(guide, vr.ScoreFunction()), [a], reps=50)
    assert not next(iter(objective._known.values())).in_lanes
    assert abs(float(mean[0]) - exact) < 4.0 * float(error[0])
    with pytest.raises(vr.ArgumentError, match="reads a drawn value in Python"):
        vr.ELBO(2, vectorize_particles=True).loss(model, vr.estimate(guide, vr.ScoreFunction()))


def test_decaying_average_is_held_by_the_guide():
    a = torch.tensor(2.0, requires_grad=True)
    model, guide = gamma_programs(a)
    guide = vr.estimate(guide, vr.ScoreFunction(baseline="decaying_average"))
    objective = vr.ELBO(1)
    for _ in range(3):
        objective.loss_and_grads(model, guide)
    assert float(guide.averages["z"]["count"]) == 3.0
    assert guide.averages["z"]["mean"].shape == (N,)


@pytest.mark.parametrize(
    ("estimator", "particles", "message"),
    [
        (vr.Rejection(baseline="leave_one_out"), 1, "needs two or more particles"),
        (vr.ScoreFunction(baseline="optimal"), 2, "needs three or more"),
    ],
)
def test_baselines_that_cannot_be_had(estimator, particles, message):
    model, guide = gamma_programs(torch.tensor(2.0, requires_grad=True))
    with pytest.raises(vr.GradientError, match=message):
        vr.ELBO(particles).loss_and_grads(model, vr.estimate(guide, estimator))


def test_an_annotated_distribution_without_a_handler():
    a = torch.tensor(1.0, requires_grad=True)
    model, _ = gamma_programs(a)

    def guide():
        with pyro.plate("n", N):
            pyro.sample("z", vr.Rejection(boost=0)(dist.Gamma(a, torch.tensor(1.0))))

    mean, error = gradients(vr.ELBO(4), model, guide, [a])
    assert abs(float(mean[0]) / N - EXACT) < 4.0 * float(error[0]) / N
    hidden = vr.Rejection()(dist.Gamma(a, torch.tensor(1.0)))

    def hiding():
        with pyro.plate("n", N):
            pyro.sample("z", dist.Delta(hidden.expand([N])()))

    with pytest.raises(vr.GradientError, match="the wrapper would drop its score term"):
        vr.ELBO().loss_and_grads(model, hiding)


def test_a_value_that_was_replayed_gets_its_gradient_back():
    a = torch.tensor(1.5, requires_grad=True)
    model, guide = gamma_programs(a)
    kept = dist.Gamma(1.5, torch.tensor(1.0)).sample((N,))
    replayed = pyro.poutine.infer_config(guide, lambda site: {})

    class Give(pyro.poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            if msg["name"] == "z":
                msg["value"] = kept

    def given():
        with Give():
            replayed()

    mean, _ = gradients(vr.ELBO(64), model, vr.estimate(given, vr.Rejection(boost=1, baseline=None)), [a], reps=8)
    assert bool(torch.isfinite(mean).all())
    assert vr.ELBO().loss(model, vr.estimate(given, vr.Rejection(boost=1))) == pytest.approx(
        float(
            (
                dist.Gamma(1.5, torch.tensor(1.0)).log_prob(kept) - dist.Gamma(3.0, torch.tensor(1.0)).log_prob(kept)
            ).sum()
        )
    )


def test_precedence_and_what_estimate_refuses():
    model, guide = gamma_programs(torch.tensor(2.0, requires_grad=True))
    with pytest.raises(vr.ArgumentError, match=r"estimators name \['y'\]"):
        vr.estimate(guide, {"y": vr.Implicit()})()
    with pytest.raises(vr.ArgumentError, match="expected an estimator"):
        vr.estimate(guide, {"z": "implicit"})
    with pytest.raises(vr.SiteError, match="does not apply to gamma"):
        vr.estimate(guide, {"*": vr.Pathwise()})()
    with pytest.raises(vr.SiteError, match="misses the latent site 'z'"):
        vr.ELBO().loss(model, lambda: None)

    def annotated():
        with pyro.plate("n", N):
            pyro.sample("z", dist.Gamma(2.0, torch.tensor(1.0)), infer={"estimator": vr.Rejection()})

    for estimators, expected in (
        ({"*": vr.Implicit()}, vr.Rejection()),
        ({"z": vr.ScoreFunction()}, vr.ScoreFunction()),
    ):
        site = pyro.poutine.trace(vr.estimate(annotated, estimators)).get_trace().nodes["z"]
        assert site["fn"].estimator == expected


def test_options():
    for bad in (0, 1.5, True):
        with pytest.raises(vr.ArgumentError, match="num_particles"):
            vr.ELBO(bad)
    with pytest.raises(vr.ArgumentError, match="entropy"):
        vr.ELBO(entropy="exact")
    assert repr(vr.ELBO(3)) == "ELBO(num_particles=3, entropy='monte_carlo')"
    assert vr.ELBO(3, entropy="analytic").with_particles(5).entropy == "analytic"


def test_in_plain_svi_two_guides_never_share_a_value():
    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, torch.tensor(0.5)))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    small, large = (vr.guide(vr.MeanField(), objective=vr.ELBO(16))(model) for _ in range(2))
    pyro.set_rng_seed(1)
    for guided, y in ((small, torch.full((20,), 1.0)), (large, torch.full((20,), 9.0))):
        svi = SVI(guided.model, guided.guide, pyro.optim.Adam({"lr": 0.1}), guided.objective)
        for _ in range(150):
            svi.step(y)
    means = [float(v.detach()) for n, v in pyro.get_param_store().items() if n.endswith("rate_mean")]
    assert len(means) == 2
    assert means[0] == pytest.approx(22.0 / 20.5, rel=0.1)
    assert means[1] == pytest.approx(182.0 / 20.5, rel=0.1)


def test_the_seed_governs_everything():
    model, guide = gamma_programs(torch.tensor(2.0, requires_grad=True))
    guide = vr.estimate(guide, vr.Rejection())
    losses = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        losses.append(vr.ELBO(3).loss(model, guide))
    assert losses[0] == losses[1] != losses[2]
