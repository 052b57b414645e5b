"""Groups that are not there are refused in one line that names them: in both backends, where JAX would clamp them."""

import numpy as np
import pytest
from test_both_backends import mean_field
from test_what_people_give import OPTIONS, refused

from vi_reparam.fit import streaming

Y = np.zeros(6)
GROUPS = {"largest": [0, 1, 2, 3, 4, 7], "one too many": [1, 2, 3, 4, 5, 5], "below": [-1, -6, 0, 0, 0, 0]}


def groups_of(b, name="theta", size=5):
    with b.host.plate(f"{name} groups", size):
        return b.host.sample(name, b.dist.Normal(b.array(0.0), 1.0))


def observe(b, mean, y):
    with b.host.plate("rows", 6):
        b.host.sample("y", b.dist.Normal(mean, b.array(1.0)), obs=y)


def plain(b):
    return lambda group, y: observe(b, groups_of(b)[group], y)


def in_a_matrix(b):
    def model(group, y):
        theta = groups_of(b)
        observe(b, b.host.xp.stack((theta, 2.0 * theta))[1, group], y)

    return model


def as_shifted(b):
    """Numbered from one by the data, from zero by the model."""
    return lambda group, y: observe(b, groups_of(b)[group + 1 - 1], y)


def of_parents(b):
    """Schools in districts: rows to schools to districts."""

    def model(group, y):
        parent = b.host.xp.arange(5)
        observe(b, groups_of(b)[parent[group]], y)

    return model


def one_by_one(b):
    return lambda group, y: observe(b, sum(groups_of(b)[group[i]] for i in range(5, 6)) + groups_of(b, "z")[group], y)


def of_data(b):
    """A covariate of the groups, which is data."""

    def model(group, y):
        observe(b, groups_of(b)[0] * b.array(np.arange(5.0))[group], y)

    return model


def within_a_dict(b):
    return lambda data, y: observe(b, groups_of(b)[data["group"]], y)


FORMS = [plain, in_a_matrix, as_shifted, of_parents, one_by_one, of_data, within_a_dict]


@pytest.mark.parametrize("which", GROUPS)
@pytest.mark.parametrize("form", FORMS)
def test_a_group_that_is_not_there_is_refused(b, form, which):
    group = np.array(GROUPS[which])
    given = {"group": group} if form is within_a_dict else group
    worst = group.max() if which != "below" else -6
    refused(b, f"index {worst} is out of bounds .* size 5", lambda: mean_field(b, form(b)).fit(given, Y, **OPTIONS))


@pytest.mark.parametrize("form", FORMS)
def test_groups_that_are_there_are_taken(b, form):
    group = np.array([0, 1, 2, 3, 4, -5])
    given = {"group": group} if form is within_a_dict else group
    model = form(b)
    assert b.vr.guide(model).prior(1, given, Y)["theta"].shape == (1, 5)


def test_a_group_that_is_not_there_is_refused_in_predictions(b):
    posterior = mean_field(b, plain(b)).fit(np.array([0, 1, 2, 3, 4, 4]), Y, **OPTIONS)
    refused(b, "index 9 is out of bounds .* size 5", lambda: posterior.predict(np.array([0, 1, 9, 0, 0, 0]), Y))


def test_an_index_that_is_clipped_on_purpose_is_taken(b):
    def model(group, y):
        xp = b.host.xp
        inside = xp.clip(group, 0, 4)
        observe(b, xp.where(group < 5, groups_of(b)[inside], b.array(0.0)), y)

    assert b.vr.guide(model).prior(1, np.array([0, 1, 2, 3, 4, 5]), Y)["y"].shape == (1, 6)


def test_a_group_that_is_not_there_is_refused_in_a_later_batch(b, monkeypatch):
    monkeypatch.setattr(streaming, "PILOT", 60)
    group = np.arange(600) % 5
    group[432] = 7

    def model(group, y):
        theta = b.host.sample("theta", b.dist.Normal(b.array(0.0), 1.0).expand([5]).to_event(1))
        with b.host.plate("rows", len(group)):
            b.host.sample("y", b.dist.Normal(theta[group], 1.0), obs=y)

    def source():
        return ((group[i : i + 6], Y) for i in range(0, 600, 6))

    batches = b.vr.batches(source, num_rows=600)
    refused(b, "index 7 is out of bounds .* size 5", lambda: mean_field(b, model).fit(batches, **OPTIONS))
