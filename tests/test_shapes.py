"""Data and distributions whose shapes cross, so that a datum would count more than once: in both backends."""

import contextlib

import numpy as np
import pytest
from test_both_backends import mean_field
from test_what_people_give import OPTIONS, refused

X = np.linspace(-1.0, 1.0, 6)


def observed(b, mean_of, y_of, plated=True):
    def model(x, y):
        slope = b.host.sample("slope", b.dist.Normal(b.array(0.0), b.array(1.0)).expand([1]).to_event(1))
        normal = b.dist.Normal(mean_of(slope, x), b.array(1.0))
        if not plated:
            b.host.sample("y", normal, obs=y_of(y))
            return
        with b.host.plate("n", 6):
            b.host.sample("y", normal, obs=y_of(y))

    return model


CROSSED = {
    "a column of data": (lambda w, x: w * x, lambda y: y[:, None], True),
    "a column of means": (lambda w, x: w[None, :] * x[:, None], lambda y: y, True),
    "both without a plate": (lambda w, x: w * x, lambda y: y[:, None], False),
    "a matrix product": (lambda w, x: x[:, None] @ w[:, None], lambda y: y, True),
}


@pytest.mark.parametrize("what", CROSSED)
def test_shapes_that_cross_are_refused(b, what):
    model = observed(b, *CROSSED[what])
    refused(
        b, r"site 'y': its data have shape .* would count at every", lambda: mean_field(b, model).fit(X, X, **OPTIONS)
    )


RIGHT = {
    "one datum for each mean": (lambda w, x: w * x, lambda y: y, True),
    "one mean for all": (lambda w, x: w, lambda y: y, True),
    "no plate": (lambda w, x: w * x, lambda y: y, False),
    "one datum": (lambda w, x: w * x, lambda y: y[0], False),
}


@pytest.mark.parametrize("what", RIGHT)
def test_shapes_that_fit_are_taken(b, what):
    guided = mean_field(b, observed(b, *RIGHT[what]))
    guided.fitter.check(guided.backend.engine.data((X, X), {}), guided.backend.engine.key(0))


WIDE = {"mask": np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), "scale": np.array([1.0, 2.0, 1.0, 1.0, 3.0, 1.0])}


def inside(b, what, around, *, latent=False, plated=True):
    """A handler around an outcome, or around a latent."""
    module = __import__(b.name)
    handler = getattr(module.handlers if b.name == "numpyro" else module.poutine, what)
    around = b.array(np.array(around))
    around = around > 0.5 if what == "mask" else around

    def outcome(y):
        return {} if latent else {"obs": y if plated else y[0]}

    def model(y):
        z = b.host.sample("z", b.dist.Normal(b.array(0.0), b.array(1.0)))
        with b.host.plate("n", 6) if plated else contextlib.nullcontext():
            with handler(**{what: around}):
                prior = b.dist.Normal(z + 0.0 * y if plated else z, b.array(1.0))
                u = b.host.sample("u", prior, **outcome(y))
            if latent:
                b.host.sample("y", b.dist.Normal(u, b.array(1.0)), obs=y)

    return mean_field(b, model)


@pytest.mark.parametrize(
    ("what", "how"), [("mask", "column"), ("scale", "column"), ("scale", "column of latents"), ("scale", "row of one")]
)
def test_what_is_wider_than_its_site_is_refused(b, what, how):
    """Each of six rows counted at every one of the six: a standard deviation of 0.17 in place of 0.41."""
    around = WIDE[what][:, None] if "column" in how else WIDE[what]
    guided = inside(b, what, around, latent="latents" in how, plated="column" in how)
    refused(b, r"site 'u'.* ha(ve|s) shape .*would count at every", lambda: guided.fit(X, **OPTIONS))


@pytest.mark.parametrize("what", WIDE)
def test_what_is_as_wide_as_its_site_is_taken(b, what):
    for around in (WIDE[what], WIDE[what][1:2]):
        guided = inside(b, what, around)
        guided.fitter.check(guided.backend.engine.data((X,), {}), guided.backend.engine.key(0))
