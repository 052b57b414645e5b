"""Which refusals have no test that reads their words: ``python tests/words.py`` lists them.

A rough count, by text alone: a refusal has a test where a string of a test, cut at what a pattern leaves open, holds at
least ten letters, and all of them are in its message.
"""

from __future__ import annotations

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = ("vi_reparam", "backends", "models")
ERRORS = re.compile(r"(Argument|Site|Gradient|Backend|NonFinite|ViReparam)Error$")
OPEN = re.compile(r"\.\*|\.\+|d\+|S\+|\||\n|\[\^.*?\]|'")
"""What a pattern leaves open."""

FEWEST = 10
"""Letters in a row by which a test knows a message."""


def pieces(node: ast.expr) -> list[str]:
    """The texts of a message between what it fills in."""
    found: list[str] = []
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.append(part.value)
    return found


def refusals() -> list[tuple[str, int, list[str]]]:
    """File, line and texts of each error that is made with a message of its own."""
    found = []
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                texts = pieces(node.args[0]) if ERRORS.search(name) else []
                if any(len(text) >= FEWEST for text in texts):
                    found.append((str(path.relative_to(ROOT)), node.lineno, texts))
    return found


def read() -> set[str]:
    """What tests look for, cut at what patterns leave open and at what they fill in."""
    found = set[str]()
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text())
        told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
                found |= {one.strip() for one in OPEN.split(node.value.replace("\\", ""))}
    return {one for one in found if len(one) >= FEWEST}


def untested() -> list[tuple[str, int, list[str]]]:
    """The refusals that no test reads."""
    known = read()
    return [
        (path, line, texts)
        for path, line, texts in refusals()
        if not any(one in text or _is_in(text, one) for text in texts for one in known)
    ]


def _is_in(text: str, one: str) -> bool:
    text = text.strip(" ():;,.")
    return len(text) >= FEWEST and text in one


if __name__ == "__main__":
    missing = untested()
    for path, line, texts in missing:
        print(f"{path}:{line}: {' ... '.join(texts)[:110]}")
    print(f"{len(missing)} of {len(refusals())} without a test that reads their words")
