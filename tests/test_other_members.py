"""Members of the kinds of `test_nothing_silent.py` that were wrong without a word, or whose reason was."""

import numpy as np
import pytest
from test_both_backends import mean_field, number, unfitted
from test_nothing_silent import OPTIONS, X, line, masked_by_handler
from test_what_people_give import refused

from vi_reparam.fit import escalation, marginal

FIRST, SECOND = np.array([2.0, 5.0, 9.0]), np.array([20.0, 31.0, 40.0])


# Supports: an update beyond the first data's.


def spanned(b, low, high):
    def model(t):
        x = b.host.sample("x", b.dist.Uniform(low(t), high(t)))
        b.host.sample("y", b.dist.Normal(x + 0.0 * t, b.array(1.0)).to_event(1), obs=t)

    return model


SPANS = {
    "an array": (lambda t: t.min(), lambda t: t.max()),
    "a number": (lambda t: float(t.min()), lambda t: float(t.max())),
    "one side": (lambda t: 0.0 * t.min(), lambda t: t.max()),
}


@pytest.mark.filterwarnings("ignore:.* reads its data in Python")
@pytest.mark.parametrize("family", ["MeanField", "FullRank"])
@pytest.mark.parametrize("span", SPANS)
def test_an_update_beyond_the_first_bounds_is_refused(b, family, span):
    guided = b.vr.guide(getattr(b.vr, family)())(spanned(b, *SPANS[span]))
    posterior = unfitted(b, guided, b.array(FIRST))
    words = r"update: site 'x' has other bounds in the new data.*fresh_sites=\['x'\]"
    refused(b, words, lambda: posterior.update(b.array(SECOND), num_steps=1, progress=False))


def test_an_update_within_the_same_bounds_is_taken(b):
    guided = mean_field(b, spanned(b, lambda t: b.array(0.0), lambda t: b.array(50.0)))
    new = unfitted(b, guided, b.array(FIRST)).update(b.array(SECOND), num_steps=2, num_particles=1, progress=False)
    assert np.isfinite(new.losses).all()


# The fitted guide, in another process: its parameters are all that it knows.


def predicted(b, guided, posterior, new):
    if b.name == "numpyro":
        import jax
        from numpyro.infer import Predictive

        drawn = Predictive(guided.model, guide=guided.guide, params=posterior.params, num_samples=60)
        return number(drawn(jax.random.key(0), b.array(new))["y"])
    import pyro
    from pyro.infer import Predictive

    pyro.clear_param_store()
    for name, value in posterior.params.items():
        pyro.param(f"{guided.base_guide.scope}{name}", value)
    return number(Predictive(guided.model, guide=guided.guide, num_samples=60)(b.array(new))["y"])


def test_parameters_say_what_was_fitted(b):
    options = {"num_steps": 150, "num_particles": 2, "progress": False}
    posterior = mean_field(b, line(b)).fit(b.array(X), y=b.array(2.0 * X), **options)
    new = np.array([0.0, 1.0, 3.0])
    y = predicted(b, mean_field(b, line(b)), posterior, new)
    np.testing.assert_allclose(y.mean(0), 2.0 * new, atol=0.4)


@pytest.mark.parametrize("family", ["FullRank", "Structured"])
def test_parameters_of_other_latents_are_refused(b, family):
    def guided():
        return b.vr.guide(getattr(b.vr, family)())(line(b))

    posterior = guided().fit(b.array(X), y=b.array(2.0 * X), **OPTIONS)
    words = r"the guide cannot draw \['slope', 'y'\] with these parameters.*posterior\.predict"
    with pytest.raises(b.vr.SiteError, match=words) as caught:
        predicted(b, guided(), posterior, np.ones(3))
    assert len(str(caught.value).splitlines()[0]) <= 300


# Masks: a masked latent is left out of a fit, which is right only where nothing depends on it.


def flat(b):
    def model(y):
        mu = b.host.sample("mu", b.dist.Normal(b.array(0.0), b.array(1.0)).mask(False))
        b.host.sample("y", b.dist.Normal(mu + 0.0 * y, b.array(1.0)).to_event(1), obs=y)

    return model


def flat_in_rows(b):
    def model(y):
        with b.host.plate("n", len(y)):
            z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)).mask(y < 1.0))
            b.host.sample("y", b.dist.Normal(z, b.array(1.0)), obs=y)

    return model


def flat_in_events(b):
    def model(y):
        prior = b.dist.Normal(b.array(np.zeros((len(y), 2))), b.array(1.0)).to_event(1)
        with b.host.plate("n", len(y)):
            z = b.host.sample("z", prior.mask(y < 1.0))
            b.host.sample("y", b.dist.Normal(z[..., 1], b.array(1.0)), obs=y)

    return model


def flat_of_a_scale(b):
    def model(y):
        s = b.host.sample("s", b.dist.LogNormal(b.array(0.0), b.array(1.0)).mask(False))
        u = b.host.sample("u", b.dist.Normal(b.array(0.0), s))
        b.host.sample("y", b.dist.Normal(u + 0.0 * y, b.array(1.0)).to_event(1), obs=y)

    return model


@pytest.mark.parametrize("family", ["MeanField", "FullRank", "Escalate"])
@pytest.mark.parametrize("make", [flat, flat_in_rows, flat_in_events, flat_of_a_scale], ids=lambda f: f.__name__)
def test_a_masked_prior_of_what_others_depend_on_is_refused(b, make, family):
    """The verdict of mu was good at 1.00 ± 0.01, where a flat prior gives 1.00 ± 0.41."""
    guided = b.vr.guide(getattr(b.vr, family)())(make(b))
    words = r"site '\w+' is masked where the rest of the model depends on it.*give it a wide prior without the mask"
    refused(b, words, lambda: guided.fit(b.array(np.array([0.5, 1.5, 2.0])), progress=False))


def test_a_masked_latent_of_which_nothing_hears_is_taken(b):
    guided = mean_field(b, masked_by_handler(b, lambda y: y < 1.0))
    assert np.isfinite(guided.fit(b.array(X), **OPTIONS).losses).all()


# Reasons: what is told is what happened.


def groups(b):
    def model(y):
        s = b.host.sample("s", b.dist.HalfNormal(b.array(1.0)))
        with b.host.plate("n", len(y)):
            u = b.host.sample("u", b.dist.Normal(b.array(0.0), s))
            b.host.sample("y", b.dist.Normal(u, b.array(1.0)), obs=y)

    return model


def test_a_fit_without_steps_has_no_checkpoint(b, tmp_path):
    guided = b.vr.guide(b.vr.NestedLaplace())(groups(b))
    words = r"fitted without steps, and fit\(checkpoint=\.\.\.\) has nothing to act on"
    refused(b, words, lambda: guided.fit(b.array(X), checkpoint=tmp_path / "fit", progress=False))


def test_a_ladder_with_a_family_without_steps_has_a_checkpoint(b, tmp_path):
    guided = b.vr.guide(b.vr.Escalate(families=[b.vr.NestedLaplace()]))(groups(b))
    posterior = guided.fit(b.array(X[:3]), checkpoint=tmp_path / "fit", progress=False)
    assert "NestedLaplace" in posterior.record["family"]


def test_draws_without_a_density_are_no_reading(b, monkeypatch):
    def nowhere(self, g, x):
        return marginal.Looks(np.full(len(g), -np.inf), x, np.ones((1, len(g))), np.ones_like(x))

    def fails(self, g, x):
        raise ValueError("two shapes that differ")

    guided = b.vr.guide(b.vr.NestedLaplace())(groups(b))
    for wrong, words in (
        (nowhere, "log p of the model is not finite at any of 16 starts"),
        (fails, r"failed on model \(two shapes that differ\): use vr\.Structured\(\)"),
    ):
        monkeypatch.setattr(marginal.Marginal, "__call__", wrong)
        refused(b, words, lambda: guided.fit(b.array(X[:3]), progress=False))


def test_an_error_of_the_look_at_a_model_is_told(b, monkeypatch):
    """It made the ladder a mean field, without a word."""
    guided = b.vr.guide(groups(b))
    data = guided.backend.engine.data((b.array(X),), {}, guided.model)
    kind = type(guided.for_family(b.vr.Structured()).base_guide)

    def split(self, *_):
        raise UserWarning("a warning that is an error here")

    monkeypatch.setattr(kind, "split", split)
    refused(b, "could not run on arguments of shapes .*: a warning that", lambda: escalation.shape_of(guided, data))
