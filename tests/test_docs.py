"""The documentation: every program in it runs, every page is in the site, every public name is in the reference."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

LINE = """
import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist, vi_reparam_numpyro as vr
numpyro.handlers.seed(rng_seed=0).__enter__()
x = jnp.linspace(-1.0, 1.0, 20)
y = 0.5 * x + 0.1
def model(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
def guide(x, y=None):
    numpyro.sample("slope", dist.Normal(numpyro.param("loc", 0.0), 0.2))
guided = vr.guide(vr.FullRank())(model)
"""
BEFORE = {
    "README": LINE + "optimizer = numpyro.optim.Adam(0.01)\n",
    "estimators": LINE + "a, b = 2.0, 1.0\n",
    "gpu": LINE + "from jax.sharding import Mesh, NamedSharding, PartitionSpec\nmodel = guided\n",
    "guides": LINE + "model = guided\n",
    "idea": LINE + "from numpyro import plate, sample\nfrom numpyro.distributions import Gamma, Poisson\n"
    "counts = jnp.ones((1797, 64), int)\n",
    "minibatches": LINE + "x, y, w, noise = jnp.ones((500, 2)), jnp.ones(500), jnp.ones(2), 1.0\n",
    "sde": LINE + "sigma, y = jnp.array([15.0, 10, 16]), jnp.array([28.0, 8, -3])\n",
    "trust": LINE + "posterior = line_posterior = curve_posterior = guided.fit(x, y=y, progress=False)\n",
}
"""What a page takes as given; its programs run after this and after one another."""

SHORTER = {"sde": ("fit(sigma, y=y)", "fit(sigma, y=y, num_steps=30)"), "trust": ("num_fits=200", "num_fits=20")}


def programs(page):
    return PYTHON.findall(page.read_text(encoding="utf-8"))


WITH_PROGRAMS = [page for page in PAGES if programs(page)]


@pytest.mark.parametrize("page", WITH_PROGRAMS, ids=lambda page: page.stem)
def test_the_programs_of_a_page_are_python(page):
    for code in programs(page):
        compile(code, page.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PROGRAMS, ids=lambda page: page.stem)
def test_the_programs_of_a_page_run(page, tmp_path):
    """In one fresh process, in an empty folder, with the installed line of ArviZ."""
    code = "\n".join([BEFORE.get(page.stem, ""), *programs(page)])
    if page.stem in SHORTER:
        assert code.count(SHORTER[page.stem][0]) == 1
        code = code.replace(*SHORTER[page.stem])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if page.stem in ("README", "quick_start", "workflow", "minibatches"):
        assert "verdict: good" in done.stdout and "verdict: poor" not in done.stdout
    if page.stem in ("quick_start", "workflow"):
        assert list(tmp_path.glob("*.html"))


def test_every_page_is_in_the_site():
    listed = re.findall(r"^\s+- .*: (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(["index.md", *(page.name for page in PAGES[1:])])


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_every_public_name_is_in_the_reference(backend):
    pytest.importorskip({"numpyro": "jax", "pyro": "torch"}[backend])
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: [\w.]*?(\w+)$", text, re.MULTILINE)) | set(re.findall(r"\bvr\.(\w+)", text))
    shown |= set(re.search(r"vi_reparam\.errors\n.*\n +members: \[(.*?)\]", text).group(1).split(", "))
    assert set(importlib.import_module(f"vi_reparam_{backend}").__all__) <= shown
