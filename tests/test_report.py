"""The page that a posterior leaves, and what notebooks show."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from vi_reparam.commands.app import main
from vi_reparam.errors import ArgumentError
from vi_reparam.posterior.plots import BLUE, GREY, prior_rows

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser would find: text, pictures, and whether every element ends."""

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.text, self.outside = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                (self.pictures if value.startswith("data:image/png;base64,") else self.outside).append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def posterior(vr, few_weights):
    host, dist = vr.host, vr.host.dist

    def model(y=None):
        level = host.sample("level<script>", dist.Normal(host.array(0.0), host.array(2.0)))
        slope = host.sample("slope", dist.Normal(host.array(0.0), host.array(1.0)))
        with host.plate("days", 6):
            host.sample("y", dist.Normal(level + slope, host.array(1.0)), obs=None if y is None else host.array(y))

    guided = vr.guide(vr.MeanField())(model)
    y = np.array([0.3, -0.2, 0.5, 1.0, -1.0, 0.0])
    tried = {"family": "MeanField()", "elbo": -9.0, "error": 0.1, "khat": 0.4, "steps": 5, "seconds": 1.0, "note": ""}
    record = {
        "family": "MeanField()",
        "num_steps": 0,
        "tried": [tried],
        "why": "it <is> good",
        "versions": {"torch": "2"},
    }
    return vr.Posterior(guided, guided.start(y), args=(y,), kwargs={}, losses=[3.0, 2.0], seed=0, record=record)


def test_pictures_have_the_prior_beside_and_ranks_are_flat_where_the_guide_is_right(posterior, tmp_path):
    figure = posterior.plot(kind="forest")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert set(names) == set(posterior.rows()[0]) == set(prior_rows(posterior))
    ranks = posterior.plot(tmp_path / "ranks.png", kind="ranks")
    lifted = np.array([bar.get_height() for bar in ranks.axes[0].patches if bar.get_width() == 0.9])
    assert lifted.sum() == pytest.approx(len(lifted)) and (tmp_path / "ranks.png").stat().st_size > 0
    pairs = posterior.plot(kind="pair").axes[1]
    assert [line.get_color() for line in pairs.lines] == [GREY, BLUE] and len(pairs.lines[0].get_xdata()) > 50
    with pytest.raises(ArgumentError, match=r"plot\(kind='tried'\): this posterior has nothing"):
        posterior.plot(kind="tried")
    posterior.record["tried"].append({**posterior.record["tried"][0], "family": "Flow()", "khat": 0.8})
    left, right = posterior.plot(kind="tried").axes
    assert [label.get_text().split("\n")[0] for label in left.get_yticklabels()] == ["MeanField()", "Flow()"]
    assert [bar.get_width() for bar in right.patches] == [0.4, 0.8]
    with pytest.raises(ArgumentError, match=r"plot\(kind='pairs'\): expected one of"):
        posterior.plot(kind="pairs")


def test_a_page_holds_all_and_asks_for_nothing(posterior, tmp_path):
    path = posterior.report(tmp_path / "model.html", command="vi-reparam fit 'a & b'")
    page = Page(path.read_text())
    assert page.open == []
    assert page.outside == []
    assert len(page.pictures) == 5  # the fit, intervals, ranks, pairs, the predictive check
    for picture in page.pictures:
        assert base64.b64decode(picture.partition(",")[2]).startswith(b"\x89PNG")
    text = "".join(page.text)
    for part in ("level<script>", "it <is> good", "vi-reparam fit 'a & b'", posterior.verdict.line, "torch"):
        assert part in text
    assert all(reason in text for reason in posterior.verdict.reasons)
    with pytest.raises(ArgumentError, match=r"cannot write .*\.html file in a folder that exists"):
        posterior.report(tmp_path / "none" / "model.html")


def test_a_model_whose_predictions_fail_still_has_a_page(posterior, tmp_path, monkeypatch):
    monkeypatch.setattr(type(posterior), "predict", lambda *_, **__: 1 / 0)
    text = posterior.report(tmp_path / "model.html").read_text()
    assert "Not drawn: division by zero" in text
    assert len(Page(text).pictures) == 4


def test_notebooks_show_tables(posterior):
    for shown in (posterior._repr_html_(), posterior.summary()._repr_html_()):
        page = Page(shown)
        assert page.open == []
        assert "level<script>" in "".join(page.text)
        assert re.search(rf'class="verdict {posterior.verdict.grade}"', shown)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_the_command_leaves_a_report(backend, tmp_path, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["fit", "eight_schools", "--backend", backend, "--num-steps", "50", "--out", str(tmp_path), "--json"])
    assert caught.value.code == 0
    found = json.loads(capfd.readouterr().out)
    assert str(tmp_path / "eight_schools.html") in found["files"]
    assert "eight_schools: posterior" in (tmp_path / "eight_schools.html").read_text()
