"""vr.SDE on ready models, from the decorator alone: above mean-field, and right where the truth is known."""

import numpy as np
import pytest

import vi_reparam_numpyro as vr
from vi_reparam_models import get
from vi_reparam_models.eight_schools import EFFECT, STANDARD_ERROR

pytestmark = pytest.mark.slow


def eight_schools_moments():
    """Exact posterior means and standard deviations of mu, tau and theta: Gaussian given tau, quadrature over it."""
    tau = np.geomspace(1e-4, 300.0, 20_000)
    total = STANDARD_ERROR**2 + tau[:, None] ** 2
    precision = 1.0 / 25.0 + (1.0 / total).sum(1)
    mu = (EFFECT / total).sum(1) / precision
    log_evidence = -0.5 * (np.log(total).sum(1) + np.log(25.0 * precision) + (EFFECT**2 / total).sum(1))
    log_evidence += 0.5 * mu**2 * precision
    log_weight = log_evidence - np.log1p((tau / 5.0) ** 2) + np.log(np.gradient(tau))
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    own = 1.0 / (1.0 / STANDARD_ERROR**2 + 1.0 / tau[:, None] ** 2)
    shrink = own / tau[:, None] ** 2
    theta = own * EFFECT / STANDARD_ERROR**2 + shrink * mu[:, None]
    variance = own + shrink**2 / precision[:, None]

    def moments(mean, variance):
        first = np.tensordot(weight, mean, 1)
        return first, np.sqrt(np.tensordot(weight, variance + mean**2, 1) - first**2)

    return {"mu": moments(mu, 1.0 / precision), "tau": moments(tau, 0.0), "theta": moments(theta, variance)}


def fits(name, num_steps, **options):
    model = get(name, **options)
    args, kwargs = model.data()
    program = model.model(vr.host)
    return {
        family: vr.guide(spec)(program).fit(*args, **kwargs, num_steps=num_steps, progress=False)
        for family, spec in {"sde": vr.SDE(), "mean_field": vr.MeanField()}.items()
    }


def test_eight_schools_centred():
    found = fits("eight_schools", None, centered=True)
    value, error = found["sde"].elbo(20_000)
    other, other_error = found["mean_field"].elbo(20_000)
    assert value - other > 0.3 + 3.0 * np.hypot(error, other_error)
    draws = found["sde"].draws(40_000)
    for name, (mean, sd) in eight_schools_moments().items():
        assert np.abs((np.asarray(draws[name]).mean(0) - mean) / sd).max() < 0.1, name


def test_breast_cancer():
    found = fits("breast_cancer", 1_000)
    value, error = found["sde"].elbo(10_000)
    other, other_error = found["mean_field"].elbo(10_000)
    assert value - other > 1.0 + 3.0 * np.hypot(error, other_error)


def test_digits_loadings():
    """1,024 positive latents beside 28,752 of a mean field, from the same start.

    Two seeds lie 700 nats apart, so both guides go on from one fit. Independent loadings lose about 33 nats to the best
    Gaussian given the mean scores, where those of a pixel depend on each other.
    """
    model = get("digits")
    args, kwargs = model.data()
    program = model.model(vr.host)
    options = {"num_particles": 1, "progress": False}

    def independent():
        return vr.guide(vr.Sites({"w": vr.MeanField(), "*": vr.MeanField()}))(program)

    first = independent().fit(*args, **kwargs, num_steps=6_000, **options)
    alone = independent()
    alone.base_guide.warm_starts = lambda *_: [dict(first.params)]
    with_sde = vr.guide(vr.Sites({"w": vr.SDE(base=vr.Blocks("pixels")), "*": vr.MeanField()}))(program)
    own = with_sde.base_guide.warm_starts
    with_sde.base_guide.warm_starts = lambda fit, *rest: own(lambda *_: first, *rest)
    found = [g.fit(*args, **kwargs, num_steps=3_000, **options).elbo(4_000) for g in (with_sde, alone)]
    (value, error), (other, other_error) = found
    assert value - other > 3.0 * np.hypot(error, other_error)
