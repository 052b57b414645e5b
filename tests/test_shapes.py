"""Data and distributions whose shapes cross, so that a datum would count more than once: in both backends."""

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
