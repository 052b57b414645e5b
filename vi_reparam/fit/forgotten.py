"""Outcomes that were forgotten: latents that the model would observe, had it been given something for them."""

from __future__ import annotations

import ast
import inspect
import itertools
import linecache
import sys
import textwrap
import warnings
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data
from vi_reparam.backend.tracer import Statement
from vi_reparam.errors import short

MOST_ASKED = 4
"""Latents, the last of a model, of which it is asked whether an argument that was left out would observe them."""

AROUND = ("vi_reparam", "vi_reparam_numpyro", "vi_reparam_pyro", "jax", "torch", "contextlib", "functools")
"""Packages that call a model, beside its framework."""


def warn_of_forgotten(backend: Backend, model: Callable[..., Any], data: Data) -> None:
    """Warn of an outcome that was left out: a latent that the model would observe, where it is given None for it."""
    try:
        found = _found(backend, model, data)
    except Exception:  # whatever is wrong, the fit says so
        return
    for name in dict.fromkeys(found.values()):
        site, *others = (site for site, own in found.items() if own == name)
        more = f", as {len(others)} more are" if others else ""
        text = f"site {short(site)} is fitted as a latent{more}, for {name} that would observe it is None"
        warnings.warn(f"{text}: if it is an outcome, give it", stacklevel=5)


def _found(backend: Backend, model: Callable[..., Any], data: Data) -> dict[str, str]:
    """What would observe a latent, by site; first by what the model's source says, then by what the model does."""
    latents: dict[str, str] = {}

    def look(statement: Statement) -> None:
        latents[statement.name] = what_would_observe(statement.name)

    def run(key: Any) -> None:
        backend.tracer.run(model, data.args, data.kwargs, key, values=look, alone=True)

    backend.tracer.shapes(run)
    found = {site: name for site, name in latents.items() if name}
    try:
        bound = inspect.signature(model).bind(*data.args, **data.kwargs)
    except (TypeError, ValueError):  # no signature, or not this one: whatever runs it says so
        return found
    given = bound.arguments.copy()
    bound.apply_defaults()
    empty = [n for n, value in bound.arguments.items() if value is None and f"the argument {n!r}" not in found.values()]
    asked = [site for site, name in latents.items() if not name.startswith("the argument")]
    return {**found, **_asked(backend, model, data, given, empty, asked)} if empty else found


def _asked(
    backend: Backend, model: Callable[..., Any], data: Data, given: dict[str, Any], empty: list[str], latents: list[str]
) -> dict[str, str]:
    """Sites that an argument observes where it is something, and not None."""
    found: dict[str, str] = {}

    def run(key: Any, **more: Any) -> dict[str, Any]:
        again = inspect.signature(model).bind(*data.args, **data.kwargs)
        again.arguments.clear()
        again.arguments.update({**given, **more})
        return backend.tracer.run(model, again.args, again.kwargs, key, alone=True)

    def look(key: Any) -> None:
        records = run(key)
        for name in empty:
            for site in [site for site in latents if site == name] or latents[-MOST_ASKED:]:
                try:
                    if not run(key, **{name: records[site].value})[site].is_latent:
                        found[site] = f"the argument {name!r}"
                except Exception:  # it is no outcome, or not this one
                    continue

    backend.tracer.shapes(look)
    return found


def what_would_observe(site: str) -> str:
    """What the statement that runs now would observe its site by, as it is written: empty where nothing would.

    It is called while the framework's ``sample`` runs, whose caller says so in its source: ``obs=`` something that is
    None, or another statement of this site, in another branch, that has one.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not (frame.f_code.co_name == "sample" and "obs" in frame.f_code.co_varnames):
        frame = frame.f_back
    if frame is None or frame.f_locals["obs"] is not None or frame.f_back is None:
        return ""
    frameworks = frame.f_globals["__name__"].partition(".")[0], *AROUND
    asked, first = "obs", frame
    while (caller := frame.f_back) is not None:
        root = str(caller.f_globals.get("__name__", "")).partition(".")[0]
        if root in frameworks and frame is not first:
            return f"the argument {asked!r}"
        call = _call_of(caller)
        given = None if call is None else _given(call, asked, frame.f_code)
        if given is None:
            return "" if call is None or frame.f_code.co_name != "sample" else _elsewhere(caller.f_code, site)
        if not isinstance(given, ast.Name) or given.id not in _parameters(caller.f_code):
            return "" if isinstance(given, ast.Constant) else _written(given)
        asked, frame = given.id, caller
    return ""


def _written(expression: ast.expr) -> str:
    return f"`{short(ast.unparse(expression))[1:-1]}`"


def _parameters(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _call_of(frame: FrameType) -> ast.Call | None:
    """The call that a frame is in, as it is written; None where that cannot be known."""
    places = itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None)
    line, end_line, column, end_column = next(places, (None,) * 4)
    if line is None or end_line is None or column is None or end_column is None:
        return None
    lines = [linecache.getline(frame.f_code.co_filename, n, frame.f_globals) for n in range(line, end_line + 1)]
    text = "".join(lines).encode()
    text = text[column : len(text) - len(lines[-1].encode()) + end_column]
    try:
        found = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    return found if isinstance(found, ast.Call) else None


def _given(call: ast.Call, name: str, code: CodeType) -> ast.expr | None:
    """What a call gives for a parameter of the function that it calls, None where it gives nothing."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    names = code.co_varnames[: code.co_argcount]
    names = names[1:] if names[:1] in (("self",), ("cls",)) else names
    place = names.index(name) if name in names else len(call.args)
    if place >= len(call.args) or any(isinstance(arg, ast.Starred) for arg in call.args[: place + 1]):
        return None
    return call.args[place]


def _elsewhere(code: CodeType, site: str) -> str:
    """What another statement of the same function would observe this site by; empty where there is none."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError, TypeError):
        return ""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args):
        named = call.args[0]
        if isinstance(named, ast.Constant) and named.value == site:
            for keyword in call.keywords:
                if keyword.arg == "obs" and not isinstance(keyword.value, ast.Constant):
                    return _written(keyword.value)
    return ""
