"""What goes to a package index: types, links and pictures."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BUILD = PROJECT["tool"]["hatch"]


def test_every_package_says_that_it_is_typed():
    for package in BUILD["build"]["targets"]["wheel"]["packages"]:
        assert (ROOT / package / "py.typed").is_file()


def test_the_source_distribution_names_what_is_there():
    for path in BUILD["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / path.lstrip("/")).exists()


def test_on_an_index_no_link_is_relative_and_each_leads_to_a_file():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for rule in BUILD["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    links = re.findall(r"\]\((.+?)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    own = [link for link in links if "/vi-reparam/vi-reparam/" in link]
    assert len(own) > 5 and any(link.endswith(".png") for link in own)
    for link in own:
        path = re.sub(r".*/vi-reparam/vi-reparam/(?:blob/)?main/", "", link).partition("#")[0]
        assert (ROOT / path).is_file(), link
    assert all(link.startswith(("https://", "#")) for link in links)


# Each backend on its own.

INSTALLED_AS = {"pyro-ppl": "pyro", "scikit-learn": "sklearn", "array-api-compat": "array_api_compat"}
BROUGHT = {"jax": {"jaxlib"}, "flowjax": {"paramax"}, "arviz": {"pandas"}, "typer": {"click"}}
"""Packages that come with others, and are imported too."""

OPTIONAL = {"cloudpickle", "filelock", "flax", "IPython", "ipywidgets", "pyarrow", "triton", "zarr", "autograd"}
"""What is imported only where it is there, or whose absence is told."""


def named(requirements):
    """What requirements let import."""
    names = {re.match(r"[\w-]+", one).group() for one in requirements}
    found = {INSTALLED_AS.get(name, name) for name in names}
    return found.union(*(BROUGHT.get(name, set()) for name in found))


def imported(package):
    """Packages from elsewhere that a package's files import."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return {name for name in found - set(sys.stdlib_module_names) if not name.startswith("vi_reparam")}


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_what_a_backend_imports_is_what_it_asks_for(backend):
    own, project = imported(f"backends/vi_reparam_{backend}"), PROJECT["project"]
    asked = named(project["dependencies"]) | named(project["optional-dependencies"][backend])
    assert backend in own and own - asked - OPTIONAL == set()


@pytest.mark.parametrize(("backend", "others"), [("numpyro", ("torch", "pyro")), ("pyro", ("jax", "numpyro"))])
def test_a_backend_is_imported_without_the_other(backend, others):
    pytest.importorskip({"numpyro": "jax", "pyro": "torch"}[backend])
    code = f"import sys, vi_reparam_{backend} as vr; vr.MeanField(); print([n for n in {others} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_the_core_finds_a_backend_by_its_entry(backend):
    pytest.importorskip({"numpyro": "jax", "pyro": "torch"}[backend])
    module, _, name = PROJECT["project"]["entry-points"]["vi_reparam.backends"][backend].partition(":")
    found = getattr(importlib.import_module(module), name)
    assert found is importlib.import_module(f"vi_reparam_{backend}").Guided.backend and found.host.name == backend


def test_the_versions_of_python_are_those_that_are_said():
    least, most = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["project"]["requires-python"]).groups()
    told = {one.rpartition(" ")[2] for one in PROJECT["project"]["classifiers"] if ":: Python ::" in one}
    assert told == {f"3.{minor}" for minor in range(int(least), int(most))}


def test_the_command_is_there_by_its_name():
    module, _, name = PROJECT["project"]["scripts"]["vi-reparam"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_what_h5netcdf_no_longer_brings_is_asked_for(backend):
    """Its newest release reads no file without h5py, and does not ask for it."""
    assert {"h5netcdf", "h5py"} <= named(PROJECT["project"]["optional-dependencies"][backend])
