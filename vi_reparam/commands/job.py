"""What a command works on: a ready model or a user's own, with its data."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vi_reparam
from vi_reparam.backend import disk_cache, registry
from vi_reparam.backend.ops import Args
from vi_reparam.commands.inputs import TABLES, read_data, read_options
from vi_reparam.errors import ArgumentError, BackendError, first_line


@dataclass
class Job:
    """A guided model with its data and its settings."""

    name: str
    vr: Any
    guided: Any
    args: Args
    kwargs: dict[str, Any]
    settings: dict[str, Any]
    estimators: list[Any]
    focus: str | None = None


def package_of(backend: str) -> Any:
    """The public face of a backend that can fit."""
    vr = registry.load_package(backend)
    missing = [name for name in ("host", "guide", "Guided", "ELBO") if not hasattr(vr, name)]
    if missing:
        text = f"backend {backend!r} cannot fit models: it has no {', '.join(missing)}; use another backend"
        raise BackendError(text)
    if os.environ.get(disk_cache.VARIABLE) is None and hasattr(vr, "cache"):
        with contextlib.suppress(ArgumentError):  # without a folder of one's own, each run compiles anew
            vr.cache()
    return vr


def imported(target: str) -> Any:
    """The object behind ``module:attribute``, looked for in the working folder too."""
    module, _, attribute = target.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        said = f"{type(error).__name__}: {first_line(error)}"
        raise ArgumentError(f"cannot import {module!r}: {said[:200]}") from error
    if not hasattr(found, attribute):
        raise ArgumentError(f"module {module!r} has no attribute {attribute!r}")
    guided = getattr(found, attribute)
    if not hasattr(guided, "fit"):
        raise ArgumentError(f"{target} is no guided model: decorate it with vr.guide")
    return guided


def make_job(
    target: str, backend: str, options: list[str] | None = None, data: Path | None = None, **steps: int | None
) -> Job:
    """A registry model or a user's own, ready to run.

    Args:
        options: of the model, as ``name=value``; `data`: a file of a user's model's arguments.
        steps: `num_steps` and `num_particles` of a fit; else the model's own.

    Raises:
        ViReparamError: for anything that cannot be used, before any compute.
    """
    given = {name: steps.get(name) for name in ("num_steps", "num_particles")}
    if ":" in target:
        if options:
            raise ArgumentError("--set is for ready models; give a module:attribute model its data with --data")
        kwargs = {} if data is None else read_data(data)
        vr, guided = package_of(backend), imported(target)
        signature = inspect.signature(getattr(guided, "model", guided))
        taken = signature.parameters.values()
        if data is not None and data.suffix.lower() in TABLES and all(p.kind is not p.VAR_KEYWORD for p in taken):
            others = [name for name in kwargs if name not in signature.parameters]
            kwargs = {name: column for name, column in kwargs.items() if name not in others}
        else:
            others = []
        try:
            signature.bind(**kwargs)
        except TypeError as error:
            unread = f", and the file has {', '.join(others)[:100]}" if others else ""
            raise ArgumentError(f"{target} does not take this data: {error}{unread}; see --data") from error
        if others:
            print(f"vi-reparam: {target} does not name the columns {', '.join(others)[:200]}", file=sys.stderr)
        estimators = [vi_reparam.Auto(), vi_reparam.ScoreFunction()]
        return Job(target.partition(":")[2], vr, guided, (), kwargs, given, estimators)
    if data is not None:
        raise ArgumentError(f"--data is for a module:attribute model; {target!r} has its own data (options: --set)")
    import vi_reparam_models

    model = vi_reparam_models.get(target, **read_options(options or []))
    vr = package_of(backend)
    program, guide = model.model(vr.host), model.guide(vr.host)
    objective = vr.ELBO(entropy=model.entropy)
    guided = vr.guide(objective=objective)(program) if guide is None else vr.Guided(program, guide, objective=objective)
    guided.name, defaults = model.name, model.fit_defaults
    settings: dict[str, Any] = {name: value or defaults.get(name) for name, value in given.items()}
    settings["optimizer"] = vr.host.adam(defaults["learning_rate"]) if "learning_rate" in defaults else None
    args, kwargs = model.data()
    return Job(model.name, vr, guided, args, kwargs, settings, list(model.estimators), model.focus)
