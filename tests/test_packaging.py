"""What goes to a package index: types, links and pictures."""

import pathlib
import re
import tomllib

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
