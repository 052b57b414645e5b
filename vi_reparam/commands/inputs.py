"""What is typed on the command line, read."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import vi_reparam
from vi_reparam.errors import ArgumentError, ViReparamError, first_line
from vi_reparam.posterior import npz


def read_options(pairs: list[str]) -> dict[str, Any]:
    """``name=value`` pairs; values are JSON where they can be, else text."""
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ArgumentError(f"--set {pair!r}: expected NAME=VALUE, such as centered=true")
        try:
            options[name] = json.loads(text)
        except json.JSONDecodeError:
            options[name] = text
    return options


def read_estimator(text: str) -> Any:
    """An estimator written as its constructor: a name, and keywords with literal values."""
    advice = f"--estimator {text!r}: expected such as Implicit or 'Rejection(boost=3)'"
    try:
        node = ast.parse(text, mode="eval").body
        name, keywords = (node.func, node.keywords) if isinstance(node, ast.Call) else (node, [])
        if not isinstance(name, ast.Name) or (isinstance(node, ast.Call) and node.args):
            raise ArgumentError(advice)
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords}
        kind = getattr(vi_reparam, name.id, None)
        if not (inspect.isclass(kind) and issubclass(kind, vi_reparam.Estimator)):
            raise ArgumentError(advice)
        return kind(**values)
    except (SyntaxError, TypeError, ValueError) as error:
        if isinstance(error, ViReparamError):
            raise
        raise ArgumentError(f"{advice} ({error})") from error


def read_data(path: Path) -> dict[str, Any]:
    """Keyword arguments from a file; of a table, each column is one.

    Raises:
        ArgumentError: for a file that cannot be read.
    """
    import numpy as np

    ending = path.suffix.lower()
    try:
        if ending == ".npz":
            return npz.read(path)
        if ending == ".json":
            content = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_once)
            if not isinstance(content, dict):
                raise ArgumentError(f"--data {path}: expected a JSON object of keyword arguments")
            return {
                name: np.asarray(_filled(item)) if isinstance(item, list) else item for name, item in content.items()
            }
        if ending in TABLES:
            import pandas as pd

            table = pd.read_csv(path) if ending == ".csv" else pd.read_parquet(path)
            return {str(name): table[name].to_numpy() for name in table.columns}
    except ViReparamError:
        raise
    except ImportError:
        raise ArgumentError(f"--data {path}: pandas reads such files with pyarrow: pip install pyarrow") from None
    except Exception as error:  # a damaged file fails in many ways
        raise ArgumentError(f"--data {path}: cannot be read ({first_line(error)[:120]})") from error
    raise ArgumentError(f"--data {path}: expected a file that ends in .npz, .json, .csv or .parquet")


TABLES = (".csv", ".parquet")
"""Endings of files of which a model takes the columns that it names."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("two of its entries have one name")
    return found


def _filled(item: Any) -> Any:
    """Lists with NaN for null, which is how JSON writes what is missing."""
    if isinstance(item, list):
        return [_filled(part) for part in item]
    return float("nan") if item is None else item


def read_stages(text: str) -> tuple[str, ...]:
    """The stages of a comparison, separated by commas."""
    stages = tuple(part.strip() for part in text.split(","))
    if not set(stages) <= {"start", "fitted"}:
        raise ArgumentError(f"--stages {text!r}: expected start, fitted or start,fitted")
    return stages
