"""What changes between two calls is seen, and what cannot be right is said: in both backends."""

import contextlib

import numpy as np
import pytest
from test_both_backends import mean_field, number, unfitted

FIRST, SECOND = np.array([2.0, 5.0, 9.0]), np.array([20.0, 31.0, 40.0])


# Supports from the arguments.


def span(b, t):
    b.host.sample("x", b.dist.Uniform(t.min(), t.max()))


def span_in_python(b, t):
    b.host.sample("x", b.dist.Uniform(float(t.min()), float(t.max())))


def above(b, t):
    b.host.sample("x", b.dist.Pareto(t.max(), b.array(3.0)))


def rows(b, t):
    with b.host.plate("n", len(t)):
        b.host.sample("x", b.dist.Uniform(t - 1.0, t + 1.0))


def rows_of_events(b, t):
    b.host.sample("x", b.dist.Uniform(t - 1.0, t + 1.0).to_event(1))


def within(prior, x, t):
    low = t - 1.0 if "rows" in prior.__name__ else t.max() if prior is above else t.min()
    high = t + 1.0 if "rows" in prior.__name__ else np.inf if prior is above else t.max()
    return bool(np.all((low <= x) & (x <= high)))


@pytest.mark.filterwarnings("ignore:.* reads its data in Python")
@pytest.mark.parametrize("family", ["MeanField", "FullRank"])
@pytest.mark.parametrize("prior", [span, span_in_python, above, rows, rows_of_events], ids=lambda f: f.__name__)
def test_a_support_is_that_of_the_arguments_at_hand(b, prior, family):
    guided = b.vr.guide(getattr(b.vr, family)(init_scale=0.5))(lambda t: prior(b, t))
    posteriors = [(t, unfitted(b, guided, b.array(t))) for t in (FIRST, SECOND)]
    for t, posterior in [*posteriors, posteriors[0]]:
        x = number(posterior.draws(50, seed=len(t))["x"])
        assert within(prior, x, t) and x.std() > 0.01
        assert np.isfinite(posterior.elbo(20)[0])


def test_a_change_point_in_later_data(b):
    """The second data have the first one's shape and a longer span; the change is beyond the first span."""
    guided = mean_field(b, lambda t, y: change(b, t, y))

    def change(b, t, y):
        at = b.host.sample("at", b.dist.Uniform(t.min(), t.max()))
        with b.host.plate("n", len(t)):
            b.host.sample("y", b.dist.Normal(3.0 / (1.0 + b.xp.exp(3.0 * (at - t))), b.array(0.5)), obs=y)

    for high, true in ((9.0, 5.0), (12.0, 10.5)):
        t = np.linspace(0.0, high, 30)
        y = 3.0 / (1.0 + np.exp(3.0 * (true - t)))
        fit = guided.fit(b.array(t), b.array(y), num_steps=150, num_particles=2, progress=False)
        assert number(fit.draws(200)["at"]).mean() == pytest.approx(true, abs=0.15)


def test_an_interval_that_happens_to_be_the_unit_interval(b):
    """The family is chosen by what is known of every call, so the parameters have the same names."""
    guided = mean_field(b, lambda t: span(b, t))
    first, second = (set(guided.start(b.array(t))) for t in (np.array([0.0, 0.3, 1.0]), SECOND))
    assert first == second


def test_intervals_by_row_of_a_guide_with_features(b):
    guided = b.vr.guide(b.vr.SDE(num_steps=2, condition="t"))(lambda t: rows(b, t))
    x = number(unfitted(b, guided, b.array(FIRST)).draws(30)["x"])
    assert x.shape == (30, 3) and within(rows, x, FIRST)


def test_an_array_that_changes_in_place(b):
    if b.name == "numpyro":
        pytest.skip("its arrays do not change")
    guided, t = mean_field(b, lambda t: span(b, t)), b.array(FIRST + 0.0)
    guided.start(t)
    t += 18.0
    assert within(span, number(unfitted(b, guided, t).draws(50)["x"]), FIRST + 18.0)


def moving_uniform(b):
    top = b.host.sample("top", b.dist.HalfNormal(b.array(5.0)))
    b.host.sample("x", b.dist.Uniform(0.0 * top, top))


def moving_pareto(b):
    top = b.host.sample("top", b.dist.HalfNormal(b.array(5.0)))
    b.host.sample("x", b.dist.Pareto(top, b.array(3.0)))


def moving_with_a_parameter(b):
    top = b.host.param("top", b.array(2.0))
    b.host.sample("x", b.dist.Uniform(0.0 * top, top))


@pytest.mark.parametrize("model", [moving_uniform, moving_pareto, moving_with_a_parameter], ids=lambda f: f.__name__)
def test_a_support_that_follows_what_is_learned_is_refused(b, model):
    with pytest.raises(b.vr.SiteError, match=r"site 'x': its support follows (site|parameter) 'top'; draw a") as caught:
        mean_field(b, lambda: model(b)).fit(num_steps=2, progress=False)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def test_bounds_by_row_of_a_minibatch_are_refused(b):
    def model(t):
        with b.host.plate("n", len(t), subsample_size=2) as rows:
            b.host.sample("x", b.dist.Uniform(t[rows] - 1.0, t[rows] + 1.0))

    with pytest.raises(b.vr.SiteError, match=r"site 'x'.* plate 'n'") as caught:
        mean_field(b, model).fit(b.array(FIRST), num_steps=2, progress=False)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


# Checkpoints of something else.


def one_mean(b, prior=10.0):
    def model(y):
        mu = b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(prior)))
        with b.host.plate("n", len(y)):
            b.host.sample("y", b.dist.Normal(mu, b.array(1.0)), obs=y)

    return model


OPTIONS = {"num_steps": 4, "num_particles": 1, "progress": False}


@pytest.mark.parametrize("what", ["data", "prior", "init_scale", "optimizer", "argument", "init"])
def test_a_checkpoint_of_something_else_is_refused(b, tmp_path, what):
    """In one line, which names what differs, and before the fit."""
    file, y = tmp_path / "fit", b.array(np.zeros(8))

    def fit(y, *, prior=10.0, rate=0.1, start=None, **options):
        guided = mean_field(b, one_mean(b, prior), **options)
        return guided.fit(y, optimizer=b.host.adam(rate), checkpoint=file, init=start, **OPTIONS)

    first = fit(y)
    np.testing.assert_array_equal(fit(y).losses, first.losses)
    change = {"data": {"y": y + 1.0}, "argument": {"y": y[:7]}, "prior": {"prior": 3.0}, "optimizer": {"rate": 0.2}}
    change["init"] = {"start": {"mu": 1.0}}
    name = {"prior": "numbers at site 'mu'", "init_scale": "family", "optimizer": "plan", "argument": "(program|data)"}
    with pytest.raises(
        b.vr.ArgumentError, match=rf"of another fit: its {name.get(what, what)}.*another file"
    ) as caught:
        fit(**{"y": y, **change.get(what, {"init_scale": 0.7})})
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def test_a_checkpoint_with_a_member_missing_is_refused(b, tmp_path):
    file = tmp_path / "fit"
    mean_field(b).fit(1.0, checkpoint=file, **OPTIONS)
    with np.load(file) as whole:
        members = {name: whole[name] for name in whole.files}
    members.pop(next(name for name in members if "z_loc" in name))
    with file.open("wb") as out:
        np.savez(out, **members)
    with pytest.raises(b.vr.ArgumentError, match="damaged") as caught:
        mean_field(b).fit(1.0, checkpoint=file, **OPTIONS)
    assert len(str(caught.value)) <= 300
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(b.vr.ArgumentError, match="not a vi-reparam checkpoint"):
        mean_field(b).fit(1.0, checkpoint=file, **OPTIONS)


@pytest.mark.parametrize("where", ["missing/fit", ".", "file/fit"])
def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_fit(b, tmp_path, where):
    (tmp_path / "file").touch()

    def never(y):
        raise AssertionError("the model ran")

    with pytest.raises(b.vr.ArgumentError, match=r"fit\(checkpoint=") as caught:
        mean_field(b, never).fit(1.0, checkpoint=tmp_path / where, **OPTIONS)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def test_a_folder_that_vanishes_costs_a_warning_and_not_the_fit(b, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()

    def model(y=None):
        if folder.exists():
            folder.rmdir()
        b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))

    with pytest.warns(UserWarning, match="the checkpoint could not be saved"):
        posterior = mean_field(b, model).fit(1.0, checkpoint=folder / "fit", **OPTIONS)
    assert len(posterior.losses) == 4


def test_nothing_is_left_beside_a_checkpoint(b, tmp_path):
    mean_field(b).fit(1.0, checkpoint=tmp_path / "fit", **OPTIONS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit"]


# State that a program does not see.


class Holder:
    """What a model may read beside its arguments."""

    def __init__(self, b):
        self.b, self.y, self.scale, self.table = b, b.array(np.zeros(5)), 1.0, {"y": np.zeros(5)}

    def observe(self, y, scale=1.0):
        mu = self.b.host.sample("mu", self.b.dist.Normal(self.b.array(0.0), self.b.array(50.0)))
        with self.b.host.plate("n", len(y)):
            self.b.host.sample("y", self.b.dist.Normal(mu, self.b.array(scale)), obs=self.b.array(y))

    def by_attribute(self):
        self.observe(self.y)


def by_closure(holder):
    return holder, lambda: holder.observe(holder.y), ()


def by_scalar(holder):
    return holder, lambda: holder.observe(holder.y, holder.scale), ()


def by_mutable_argument(holder):
    return holder, lambda held: held.observe(held.y), (holder,)


def by_array_in_place(holder):
    return holder, lambda: holder.observe(holder.table["y"]), ()


def by_bound_method(holder):
    return holder, holder.by_attribute, ()


def more(holder):
    holder.y, holder.scale = holder.b.array(np.full(5, 20.0)), 3.0
    holder.table["y"] += 20.0


def longer(holder):
    holder.y, holder.table = holder.b.array(np.full(7, 20.0)), {"y": np.full(7, 20.0)}


@pytest.mark.parametrize("change", [more, longer], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "reads",
    [by_closure, by_scalar, by_mutable_argument, by_array_in_place, by_bound_method],
    ids=lambda f: f.__name__,
)
def test_what_a_model_reads_beside_its_arguments_may_change(b, reads, change):
    holder, model, args = reads(Holder(b))
    guided = mean_field(b, model)
    before = guided.fit(*args, **OPTIONS).losses
    change(holder)
    after, fresh = (g.fit(*args, **OPTIONS).losses for g in (guided, mean_field(b, model)))
    np.testing.assert_array_equal(after, fresh)
    assert not np.allclose(before, after)


def test_new_inputs_that_a_model_reads_beside_its_arguments(b):
    x = {"x": b.array(np.ones(3))}

    def model(y=None):
        a = b.host.sample("a", b.dist.Normal(b.array(0.0), b.array(0.01)))
        with b.host.plate("n", 3):
            b.host.sample("y", b.dist.Normal(a + x["x"], b.array(0.01)), obs=y)

    posterior = mean_field(b, model).fit(b.array(np.ones(3)), **OPTIONS)
    for value in (1.0, 9.0):
        x["x"] = b.array(np.full(3, value))
        assert number(posterior.predict(num_draws=50)["y"]).mean() == pytest.approx(value, abs=0.5)


# The fitted guide, called without the outcome.

X = np.array([-1.0, -0.5, 0.0, 0.5, 1.0, 2.0])


def line(b, noise=0.1):
    def model(x, y=None):
        slope = b.host.sample("slope", b.dist.Normal(b.array(0.0), b.array(5.0)))
        with b.host.plate("n", len(x)):
            b.host.sample("y", b.dist.Normal(slope * x, b.array(noise)), obs=y)

    return model


def line_of_events(b):
    """The outcome is no plate's, and a latent's name is beside it."""

    def model(x, y=None):
        slope = b.host.sample("slope", b.dist.Normal(b.array(0.0), b.array(5.0)))
        noise = b.host.sample("noise", b.dist.Gamma(b.array(2.0), b.array(50.0)))
        b.host.sample("y", b.dist.Normal(slope * x, noise).to_event(1), obs=y)

    return model


def two_outcomes(b):
    def model(x, y=None, z=None):
        line(b)(x, y)
        b.host.sample("z", b.dist.Gamma(b.array(2.0), b.array(1.0)), obs=z)

    return model


def predictions(b, guided, posterior, new):
    """Of y, by the framework's own Predictive, with the fitted guide and its parameters."""
    if b.name == "numpyro":
        import jax
        from numpyro.infer import Predictive

        drawn = Predictive(guided.model, guide=guided.guide, params=posterior.params, num_samples=60)
        return number(drawn(jax.random.key(0), b.array(new))["y"])
    import pyro
    from pyro.infer import Predictive

    pyro.clear_param_store()
    for name, value in posterior.params.items():  # in the store they have the guide's scope before their names
        pyro.param(name if name in {"slope"} else f"{guided.base_guide.scope}{name}", value)
    return number(Predictive(guided.model, guide=guided.guide, num_samples=60)(b.array(new))["y"])


@pytest.mark.parametrize("family", ["MeanField", "FullRank"])
@pytest.mark.parametrize("make", [line, line_of_events, two_outcomes], ids=lambda f: f.__name__)
def test_the_fitted_guide_draws_no_outcome_that_was_left_out(b, make, family):
    guided = b.vr.guide(getattr(b.vr, family)())(make(b))
    given = {"z": b.array(1.0)} if make is two_outcomes else {}
    options = {"num_steps": 150, "num_particles": 2, "progress": False}
    posterior = guided.fit(b.array(X), y=b.array(2.0 * X), **given, **options)
    for new in (X, np.array([0.0, 1.0, 3.0])):
        y = predictions(b, guided, posterior, new)
        assert y.shape == (60, len(new))
        np.testing.assert_allclose(y.mean(0), 2.0 * new, atol=0.4)


def test_an_outcome_that_was_fitted_is_drawn(b):
    """A fit says what is a latent, whatever another fit of the same guide observed."""
    guided = mean_field(b, line(b))
    without = guided.fit(b.array(X), **OPTIONS)
    guided.fit(b.array(X), y=b.array(X), **OPTIONS)
    assert set(without.draws(5)) == {"slope", "y"}
    assert set(guided.fit(b.array(X[:3]), **OPTIONS).draws(5)) == {"slope", "y"}


@pytest.mark.parametrize("family", ["MeanField", "FullRank"])
@pytest.mark.parametrize("size", [1, 3, 9])
def test_a_local_latent_of_another_size_names_itself_and_predict(b, family, size):
    def model(x, y=None):
        with b.host.plate("n", len(x)):
            u = b.host.sample("u", b.dist.Normal(x, b.array(1.0)))
            b.host.sample("y", b.dist.Normal(u, b.array(1.0)), obs=y)

    guided = b.vr.guide(getattr(b.vr, family)())(model)
    posterior = guided.fit(b.array(X), y=b.array(X), **OPTIONS)
    with pytest.raises(b.vr.SiteError, match=r"site 'u' in plate 'n'.*posterior\.predict") as caught:
        predictions(b, guided, posterior, np.ones(size))
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)
    assert posterior.predict(b.array(np.ones(size)), num_draws=7)["y"].shape == (7, size)


# Missing data.


def test_data_that_the_model_masks_cost_a_warning(b):
    y = np.array([0.5, np.nan, 1.5, np.nan])

    def model(y):
        mu = b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(1.0)))
        seen = y == y
        with b.host.plate("n", len(y)):
            b.host.sample("y", b.dist.Normal(mu, b.array(1.0)).mask(seen), obs=b.xp.where(seen, y, b.xp.zeros_like(y)))

    with pytest.warns(
        UserWarning, match="argument 0 holds 2 NaN or infinite values of 4: the model's density is finite"
    ):
        posterior = mean_field(b, model).fit(b.array(y), num_steps=150, num_particles=2, progress=False)
    assert number(posterior.params["mu_loc"]) == pytest.approx(2.0 / 3.0, abs=0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_data_that_the_model_does_not_mask_are_refused(b, bad):
    with pytest.raises(b.vr.ArgumentError, match=r"argument 1 holds 1 NaN.*of site 'y' is not finite") as caught:
        mean_field(b, line(b)).fit(b.array(X), b.array([*X[:5], bad]), **OPTIONS)
    assert len(str(caught.value)) <= 300


def masked_by_distribution(b, mask):
    """z_i ~ N(mu, 1) where the mask holds, y_i ~ N(z_i, 1)."""

    def model(y):
        seen = mask(y)
        mu = b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("n", len(y)):
            z = b.host.sample("z", b.dist.Normal(mu, b.array(1.0)).mask(seen))
            b.host.sample("y", b.dist.Normal(z, b.array(1.0)).mask(seen), obs=y)

    return model


def masked_by_handler(b, mask):
    if b.name == "numpyro":
        from numpyro.handlers import mask as masking
    else:
        from pyro.poutine import mask as masking

    def model(y):
        mu = b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("n", len(y)), masking(mask=mask(y)):
            z = b.host.sample("z", b.dist.Normal(mu, b.array(1.0)))
            b.host.sample("y", b.dist.Normal(z, b.array(1.0)), obs=y)

    return model


@pytest.mark.parametrize("entropy", ["monte_carlo", "path", "analytic"])
@pytest.mark.parametrize("model", [masked_by_distribution, masked_by_handler], ids=lambda f: f.__name__)
def test_a_masked_latent_has_neither_density_nor_entropy(b, model, entropy):
    """y_1 = y_3 = 2 are seen, each N(mu, 2): mu | y ~ N(1, 1/2), and y ~ N(0, 2 + 1) with a covariance of 1."""
    y = np.array([2.0, 50.0, 2.0])
    covariance = np.array([[3.0, 1.0], [1.0, 3.0]])
    evidence = -np.log(2.0 * np.pi) - 0.5 * np.log(8.0) - 0.5 * 2.0 * np.linalg.solve(covariance, [2.0, 2.0]).sum()
    guided = b.vr.guide(b.vr.MeanField(), objective=b.vr.ELBO(8, entropy=entropy))(model(b, lambda y: y < 10.0))
    posterior = guided.fit(b.array(y), num_steps=400, progress=False)
    assert number(posterior.params["mu_loc"]) == pytest.approx(1.0, abs=0.12)
    value, error = posterior.elbo(2_000)
    assert evidence - 0.5 < value < evidence + 4.0 * error
    assert number(posterior.log_weights).std() < 2.0


def masked_in_rows(b, mask):
    """A ragged table: a scale for each row, a positive latent for each cell, of which some are not there."""

    def model(y):
        seen, (rows, columns) = mask(y), y.shape
        mu = b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("row", rows, dim=-2), b.host.plate("column", columns, dim=-1):
            z = b.host.sample("z", b.dist.LogNormal(mu, b.array(1.0)).mask(seen))
            b.host.sample("y", b.dist.Normal(b.xp.log(z), b.array(1.0)).mask(seen), obs=y)

    return model


def globals_of(y):
    """mu of the models above: mean, sd and log evidence, of what is seen."""
    seen = y[y < 10.0]
    precision = 1.0 + len(seen) / 2.0
    covariance = 2.0 * np.eye(len(seen)) + 1.0
    quadratic = seen @ np.linalg.solve(covariance, seen)
    evidence = -0.5 * (len(seen) * np.log(2.0 * np.pi) + np.linalg.slogdet(covariance)[1] + quadratic)
    return seen.sum() / 2.0 / precision, precision**-0.5, evidence


RAGGED = np.array([[2.0, 50.0, 2.5], [50.0, 1.0, 0.5]])


@pytest.mark.parametrize(
    ("model", "y", "family"),
    [
        (masked_by_handler, RAGGED[0], "FullRank()"),
        (masked_by_distribution, RAGGED[0], "LowRank(rank=1)"),
        (masked_in_rows, RAGGED, "FullRank()"),
        (masked_in_rows, RAGGED, "StudentT()"),
        pytest.param(masked_by_handler, RAGGED[0], "Flow()", marks=pytest.mark.slow),
        pytest.param(masked_by_handler, RAGGED[0], "SDE(num_steps=4)", marks=pytest.mark.slow),
        pytest.param(masked_in_rows, RAGGED, "Mixture()", marks=pytest.mark.slow),
        pytest.param(masked_in_rows, RAGGED, "Escalate()", marks=pytest.mark.slow),
        pytest.param(
            masked_in_rows, RAGGED, "Sites({'z': vr.FullRank(), '*': vr.MeanField()})", marks=pytest.mark.slow
        ),
    ],
    ids=lambda x: getattr(x, "__name__", None) if callable(x) else x if isinstance(x, str) else "",
)
def test_a_masked_latent_of_a_guide_over_all_latents_leaves_the_others_right(b, model, y, family):
    """The weights know the exact evidence and mean: parts that are not there take no share in either."""
    guided = b.vr.guide(eval(f"vr.{family}", {"vr": b.vr}))(model(b, lambda y: y < 10.0))
    posterior = guided.fit(b.array(y), num_steps=None if "Escalate" in family else 300, progress=False)
    mean, sd, evidence = globals_of(y)
    value, error = posterior.log_evidence()
    assert abs(value - evidence) < 4.0 * error + 1e-3
    found, error = posterior.expectation(lambda z: z["mu"], num_draws=10_000, weighted=True)
    assert abs(found - mean) < 4.0 * error + 1e-3
    if family not in ("StudentT()", "Sites({'z': vr.FullRank()})"):  # neither can have this posterior
        assert posterior.verdict.grade == "good"
        assert number(posterior.draws(10_000)["mu"]).std() == pytest.approx(sd, rel=0.1)


@pytest.mark.parametrize("how", ["by a handler", "by the distribution", "by data"])
def test_a_model_whose_every_latent_is_masked_is_refused(b, how):
    """Its start was called good."""
    module = __import__(b.name)
    handlers = module.handlers if b.name == "numpyro" else module.poutine

    def model(seen):
        mask = seen > 0.5 if how == "by data" else False
        with handlers.mask(mask=mask) if how == "by a handler" else contextlib.nullcontext():
            prior = b.dist.Normal(b.array(np.zeros(2)), b.array(1.0))
            z = b.host.sample("z", prior if how == "by a handler" else prior.mask(mask))
            b.host.sample("y", b.dist.Normal(0.0 * z, b.array(1.0)), obs=b.array(np.ones(2)))

    words = r"every latent is masked \('z'\), and has neither prior nor data: take the mask away"
    with pytest.raises(b.vr.SiteError, match=words):
        mean_field(b, model).fit(b.array(np.zeros(2)), **OPTIONS)


def test_a_latent_that_is_masked_has_no_prior_to_be_structured_by(b):
    guided = b.vr.guide(b.vr.Structured())(masked_by_handler(b, lambda y: y < 10.0))
    with pytest.raises(b.vr.SiteError, match=r"site 'z' is masked.*vr\.MeanField") as caught:
        guided.fit(b.array(X), **OPTIONS)
    assert len(str(caught.value)) <= 300


# What people give.


def test_a_model_without_a_latent_is_refused(b):
    def observed(y):
        b.host.sample("y", b.dist.Normal(b.array(0.0), b.array(1.0)), obs=y)

    def with_a_parameter(y):
        b.host.sample("y", b.dist.Normal(b.host.param("at", b.array(0.0)), b.array(1.0)), obs=y)

    def with_a_plate(y):
        with b.host.plate("n", 3):
            b.host.sample("y", b.dist.Normal(b.array(0.0), b.array(1.0)), obs=y)

    for model in (observed, with_a_parameter, with_a_plate):
        for family in (b.vr.MeanField(), b.vr.FullRank(), b.vr.Escalate()):
            with pytest.raises(b.vr.ArgumentError, match="nothing to fit: the model has no latent site") as caught:
                b.vr.guide(family)(model).fit(b.array(np.zeros(3)), progress=False)
            assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def test_integers_of_numpy_and_a_family_without_parentheses(b):
    guided = b.vr.guide(b.vr.MeanField)(line(b))
    options = {"num_steps": np.int64(3), "num_particles": np.int32(2), "seed": np.int64(1)}
    posterior = guided.fit(b.array(X), b.array(X), progress=False, **options)
    assert len(posterior.losses) == 3 and posterior.record["num_particles"] == 2
