"""An outcome that was left out is told, wherever in what a model is given it is missing: in both backends."""

import dataclasses
import types
import typing
import warnings

import numpy as np
import pytest
from test_both_backends import mean_field, unfitted

from vi_reparam.fit.forgotten import warn_of_forgotten

X = np.linspace(-1.0, 1.0, 6)
Y = 2.0 * X


def told(b, model, *args, **kwargs):
    """What is said of latents that could be outcomes, before a fit."""
    data = b.vr.guide(model).backend.engine.data(args, kwargs, model)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_of_forgotten(b.vr.guide(model).backend, model, data)
    found = [str(one.message) for one in found if "fitted as a latent" in str(one.message)]
    assert all(len(text) <= 300 and "\n" not in text for text in found)
    return found


def slope_of(b):
    return b.host.sample("slope", b.dist.Normal(b.array(0.0), 5.0))


def likelihood(b, x, y, site="y"):
    """As people write helpers of their own."""
    return b.host.sample(site, b.dist.Normal(slope_of(b) * x, b.array(0.5)).to_event(1), obs=y)


def in_a_dict(b):
    def model(data):
        mean = slope_of(b) * data["x"]
        b.host.sample("y", b.dist.Normal(mean, b.array(0.5)).to_event(1), obs=data.get("y"))

    return model, {"x": X}, {"x": X, "y": Y}, "data.get('y')"


def under_a_key_that_is_none(b):
    def model(data):
        slope = slope_of(b)
        with b.host.plate("rows", len(X)):
            b.host.sample("obs", b.dist.Normal(slope * data["x"], b.array(0.5)), obs=data["y"])

    return model, {"x": X, "y": None}, {"x": X, "y": Y}, "data['y']"


class Rows(typing.NamedTuple):
    x: typing.Any
    y: typing.Any = None


def in_a_named_tuple(b):
    return lambda rows: likelihood(b, rows.x, rows.y), Rows(X), Rows(X, Y), "rows.y"


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    x: typing.Any
    y: typing.Any = None


def in_a_dataclass(b):
    return (
        lambda study: likelihood(b, b.array(study.x), None if study.y is None else b.array(study.y)),
        Study(X),
        Study(X, Y),
        "None if study.y is None else",
    )


def in_a_local_name(b):
    def model(data):
        x, y = (data.get(name) for name in ("x", "y"))
        b.host.sample("y", b.dist.Normal(slope_of(b) * x, b.array(0.5)).to_event(1), obs=y)

    return model, {"x": X}, {"x": X, "y": Y}, "y"


def in_another_branch(b):
    def model(data):
        normal = b.dist.Normal(slope_of(b) * data["x"], b.array(0.5)).to_event(1)
        if "y" in data:
            b.host.sample("y", normal, obs=data["y"])
        else:
            b.host.sample("y", normal)

    return model, {"x": X}, {"x": X, "y": Y}, "data['y']"


def in_a_closure(b):
    state = types.SimpleNamespace(y=None)

    def model(x):
        if x.shape[0] == 5:  # the other data
            state.y = b.array(Y[:5])
        likelihood(b, x, state.y)

    return model, X, X[:5], "state.y"


@pytest.mark.parametrize(
    "case",
    [
        in_a_dict,
        under_a_key_that_is_none,
        in_a_named_tuple,
        in_a_dataclass,
        in_a_local_name,
        in_another_branch,
        in_a_closure,
    ],
)
def test_an_outcome_within_an_argument_is_told(b, case):
    model, without, whole, name = case(b)
    (text,) = told(b, model, without)
    assert f"is fitted as a latent, for `{name}" in text
    assert "would observe it is None: if it is an outcome, give it" in text
    assert told(b, model, whole) == []


def test_an_outcome_among_other_keywords_is_told(b):
    def model(x, **data):
        b.host.sample("y", b.dist.Normal(slope_of(b) * x, b.array(0.5)).to_event(1), obs=data.get("y"))

    (text,) = told(b, model, X)
    assert "site 'y' is fitted as a latent, for `data.get('y')`" in text
    assert told(b, model, X, y=Y) == []


def test_an_outcome_that_a_helper_observes_has_the_argument_s_name(b):
    (text,) = told(b, lambda x, outcome=None: likelihood(b, x, outcome, "seen"), X)
    assert "site 'seen' is fitted as a latent, for the argument 'outcome'" in text


def test_an_outcome_of_an_object_is_told(b):
    class Line:
        y = None

        def model(self, x):
            likelihood(b, x, self.y)

    own = Line()
    (text,) = told(b, own.model, X)
    assert "for `self.y`" in text
    own.y = b.array(Y)
    assert told(b, own.model, X) == []


def test_helpers_that_draw_are_no_outcomes(b):
    def draw(name, scale, obs=None):
        return b.host.sample(name, b.dist.Normal(b.array(0.0), scale), obs=obs)

    def model(x, y):
        slope, level = draw("slope", 5.0), draw("level", 1.0, None)
        b.host.sample("y", b.dist.Normal(level + slope * x, b.array(0.5)).to_event(1), obs=y)

    assert told(b, model, X, Y) == []


def test_a_model_without_source_tells_by_its_argument(b):
    space = {"b": b}
    exec(  # as a model that another program writes
        "def model(x, y=None):\n"
        "    slope = b.host.sample('slope', b.dist.Normal(b.array(0.0), 5.0))\n"
        "    b.host.sample('y', b.dist.Normal(slope * x, b.array(0.5)).to_event(1), obs=y)\n",
        space,
    )
    (text,) = told(b, space["model"], X)
    assert "site 'y' is fitted as a latent, for the argument 'y'" in text


def test_an_outcome_that_is_left_out_of_an_update_is_told(b):
    def model(x, y=None):
        likelihood(b, x, y)

    posterior = unfitted(b, mean_field(b, model), b.array(X), b.array(Y))
    with pytest.warns(UserWarning, match="site 'y' is fitted as a latent, for the argument 'y'"):
        posterior.update(b.array(X), num_steps=1, num_particles=1, progress=False)


def test_outcomes_that_one_statement_observes_are_told_once(b):
    def model(x, data):
        slope = slope_of(b)
        for i in range(3):
            b.host.sample(f"y{i}", b.dist.Normal(slope * x, b.array(0.5)).to_event(1), obs=data.get(i))

    (text,) = told(b, model, X, {})
    assert "site 'y0' is fitted as a latent, as 2 more are, for `data.get(i)`" in text
