"""The command ``vi-reparam``. Backends and models are imported when a command needs them."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import vi_reparam
from vi_reparam.backend import registry
from vi_reparam.errors import ArgumentError, BackendError, ViReparamError

app = typer.Typer(
    name="vi-reparam",
    help="Variational posteriors with a verdict, and the gradient estimators behind them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Target = Annotated[str, typer.Argument(metavar="MODEL", help="A name that `models` lists, or module:attribute.")]
Backend = Annotated[str, typer.Option(help="numpyro or pyro.")]
Out = Annotated[Path | None, typer.Option(help="Folder for pictures and files; none are written without it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all randomness.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimization steps; the model's own if not given.")]
Particles = Annotated[int | None, typer.Option(min=1, help="Particles a step; the model's own if not given.")]
Options = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the model.")]
Data = Annotated[Path | None, typer.Option(help="Keyword arguments of a module:attribute model: .npz or .json.")]
Estimators = Annotated[
    list[str] | None, typer.Option("--estimator", help="Such as 'Rejection(boost=3)'; may be repeated.")
]

MAX_STORED = 5_000_000
"""Numbers of a posterior to write at most: fewer draws of a larger model."""

STUDIES = {"sde": "forms of the SDE guide", "joint": "guides over all latents"}
"""What ``compare --family`` may compare."""


@dataclass
class Report:
    """Where a command's results go: tables for people, or one JSON object."""

    as_json: bool
    out: Path | None = None
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def console(self) -> Console:
        console = Console(stderr=self.as_json, highlight=False)
        if not console.is_terminal:  # a log or a pipe has no width of its own
            console.width = 140
        return console

    def show(self, renderable: Any) -> None:
        if not self.as_json:
            self.console.print(renderable, markup=False, soft_wrap=isinstance(renderable, str))

    def title(self, text: str) -> None:
        if not self.as_json:
            self.console.rule(text, align="left")

    def path(self, name: str) -> Path | None:
        """Where to write a file of this name, and note it; None if nothing is to be written."""
        if self.out is None:
            return None
        path = self.out / name
        self.content.setdefault("files", []).append(str(path))
        return path

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run a command's work; then print what it found."""
        if self.out is not None:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ArgumentError(f"--out {self.out}: cannot be made a folder ({error.strerror})") from error
        # Whatever a framework prints must not get between the reader and the JSON.
        with contextlib.redirect_stdout(sys.stderr) if self.as_json else contextlib.nullcontext():
            yield
        if self.as_json:
            print(json.dumps(_plain(self.content), indent=2))
        elif "files" in self.content:
            self.console.print("wrote " + ", ".join(self.content["files"]), markup=False, soft_wrap=True)


@dataclass
class Job:
    """A guided model with its data and its settings."""

    name: str
    vr: Any
    guided: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    settings: dict[str, Any]
    estimators: list[Any]
    focus: str | None = None


def _plain(value: Any) -> Any:
    """Numbers, lists and dicts that JSON can hold; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str | bool | None) else str(value)


def _package(backend: str) -> Any:
    """The public face of a backend that can fit."""
    vr = registry.load_package(backend)
    missing = [name for name in ("host", "guide", "Guided", "ELBO") if not hasattr(vr, name)]
    if missing:
        raise BackendError(
            f"backend {backend!r} cannot fit models: it has no {', '.join(missing)}; use another backend"
        )
    return vr


def _options(pairs: list[str]) -> dict[str, Any]:
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


def _estimator(text: str) -> Any:
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


def _read(path: Path) -> dict[str, Any]:
    """Keyword arguments from a file."""
    import numpy as np

    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            if not isinstance(content, dict):
                raise ArgumentError(f"--data {path}: expected a JSON object of keyword arguments")
            return {name: np.asarray(item) if isinstance(item, list) else item for name, item in content.items()}
    except (OSError, ValueError) as error:
        if isinstance(error, ViReparamError):
            raise
        raise ArgumentError(f"--data {path}: cannot be read ({error})") from error
    raise ArgumentError(f"--data {path}: expected a file that ends in .npz or .json")


def _imported(target: str) -> Any:
    """The object behind ``module:attribute``, looked for in the working folder too."""
    module, _, attribute = target.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # a user's module may fail in any way
        raise ArgumentError(f"cannot import {module!r}: {type(error).__name__}: {error}") from error
    if not hasattr(found, attribute):
        raise ArgumentError(f"module {module!r} has no attribute {attribute!r}")
    guided = getattr(found, attribute)
    if not hasattr(guided, "fit"):
        raise ArgumentError(f"{target} is no guided model: decorate it with vr.guide")
    return guided


def _job(
    target: str,
    backend: str,
    *,
    options: dict[str, Any],
    data: Path | None = None,
    num_steps: int | None = None,
    num_particles: int | None = None,
) -> Job:
    """A registry model or a user's own, ready to run.

    Raises:
        ViReparamError: for anything that cannot be used, before any compute.
    """
    if ":" in target:
        if options:
            raise ArgumentError("--set is for ready models; give a module:attribute model its data with --data")
        kwargs = {} if data is None else _read(data)
        vr, guided = _package(backend), _imported(target)
        try:
            inspect.signature(getattr(guided, "model", guided)).bind(**kwargs)
        except TypeError as error:
            raise ArgumentError(f"{target} does not take this data: {error}; see --data") from error
        given = {"num_steps": num_steps, "num_particles": num_particles}
        return Job(
            target.partition(":")[2], vr, guided, (), kwargs, given, [vi_reparam.Auto(), vi_reparam.ScoreFunction()]
        )
    if data is not None:
        raise ArgumentError(f"--data is for a module:attribute model; {target!r} has its own data (options: --set)")
    import vi_reparam_models

    model = vi_reparam_models.get(target, **options)
    vr = _package(backend)
    program, guide = model.model(vr.host), model.guide(vr.host)
    objective = vr.ELBO(entropy=model.entropy)
    guided = vr.guide(objective=objective)(program) if guide is None else vr.Guided(program, guide, objective=objective)
    defaults = model.fit_defaults
    settings = {
        "num_steps": num_steps or defaults.get("num_steps"),
        "num_particles": num_particles or defaults.get("num_particles"),
        "optimizer": vr.host.adam(defaults["learning_rate"]) if "learning_rate" in defaults else None,
    }
    args, kwargs = model.data()
    return Job(model.name, vr, guided, args, kwargs, settings, list(model.estimators), model.focus)


def _fit(job: Job, report: Report, *, seed: int, picture: bool = True) -> dict[str, Any]:
    """Fit, show the summary, write the files; what was found, for JSON."""
    report.title(f"{job.name}: posterior")
    progress = not report.as_json and sys.stderr.isatty()
    posterior = job.guided.fit(*job.args, **job.kwargs, **job.settings, seed=seed, progress=progress)
    report.show(str(posterior.summary()))
    latents = posterior.verdict.figures.num_latents
    inference = posterior.to_arviz(
        max(50, min(1_000, MAX_STORED // max(latents, 1))), seed, log_likelihood=latents <= 1_000
    )
    if path := report.path(f"{job.name}.nc"):
        inference.to_netcdf(str(path))
    if picture and (path := report.path(f"{job.name}.png")):
        posterior.plot(path)
    value, error = posterior.elbo()
    draws = inference.posterior
    small = [name for name in draws.data_vars if draws[name][0, 0].size <= 100]
    return {
        "model": job.name,
        "backend": job.vr.host.name,
        "seed": seed,
        "num_steps": len(posterior.losses),
        "elbo": {"value": float(value), "standard_error": float(error)},
        "khat": posterior.khat,
        "verdict": {"grade": posterior.verdict.grade, "reasons": posterior.verdict.reasons},
        "posterior": {
            name: {
                "mean": draws[name].mean(("chain", "draw")).values,
                "sd": draws[name].std(("chain", "draw")).values,
            }
            for name in small
        },
    }


def _compare(
    job: Job, report: Report, *, replicates: int, stages: tuple[str, ...], seed: int, picture: str
) -> dict[str, Any]:
    """Compare estimators, show the table, write the files; what was found, for JSON."""
    report.title(f"{job.name}: gradient estimators")
    if not hasattr(job.vr, "compare_estimators"):
        raise BackendError(f"{job.vr.__name__} cannot compare estimators; use another backend")
    particles = job.settings["num_particles"] or 8
    comparison = job.vr.compare_estimators(
        job.guided,
        *job.args,
        **job.kwargs,
        estimators=job.estimators,
        num_replicates=replicates,
        num_particles=particles,
        stages=stages,
        fit_steps=job.settings["num_steps"] or 1_000,
        progress=not report.as_json and sys.stderr.isatty(),
        seed=seed,
    )
    report.show(comparison.table(job.focus))
    if path := report.path(f"{picture}.png"):
        comparison.plot(path)
    if path := report.path(f"{job.name}_estimators.nc"):
        comparison.save(path)
    return {
        "model": job.name,
        "backend": job.vr.host.name,
        "seed": seed,
        "replicates": replicates,
        "num_particles": particles,
        "estimators": comparison.to_dataframe().reset_index().to_dict(orient="records"),
    }


def _study(
    family: str,
    job: Job,
    report: Report,
    *,
    replicates: int,
    seed: int,
    num_steps: int | None,
    num_particles: int | None,
) -> dict[str, Any]:
    """Compare guides over all latents, show the table, write the file; what was found, for JSON."""
    report.title(f"{job.name}: {STUDIES[family]}")
    name = {"sde": "compare_sde", "joint": "compare_guides"}[family]
    if not hasattr(job.vr, name):
        raise BackendError(f"{job.vr.__name__} has no {name}; use another backend")
    given = {"num_steps": num_steps, "num_particles": num_particles}  # else the study's own
    study = getattr(job.vr, name)(
        job.guided,
        *job.args,
        **job.kwargs,
        **{option: value for option, value in given.items() if value is not None},
        num_replicates=replicates,
        seed=seed,
        progress=not report.as_json and sys.stderr.isatty(),
    )
    report.show(study.table())
    if path := report.path(f"{job.name}_{family}.nc"):
        study.save(path)
    return {
        "model": job.name,
        "backend": job.vr.host.name,
        "seed": seed,
        "replicates": replicates,
        "rows": study.records(),
    }


def _stages(text: str) -> tuple[str, ...]:
    stages = tuple(part.strip() for part in text.split(","))
    if not set(stages) <= {"start", "fitted"}:
        raise ArgumentError(f"--stages {text!r}: expected start, fitted or start,fitted")
    return stages


@app.command()
def demo(
    *,
    backend: Backend = "numpyro",
    out: Annotated[Path, typer.Option(help="Folder for pictures and files.")] = Path("out"),
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Fit eight schools and the digits, and compare gradient estimators, in about two minutes."""
    report = Report(as_json, out)
    with report.running():
        jobs = [_job("eight_schools", backend, options={}), _job("digits", backend, options={}, num_steps=800)]
        report.content["fits"] = [_fit(job, report, seed=seed) for job in jobs]
        paper = _job("dirichlet_multinomial", backend, options={})
        report.content["comparison"] = _compare(
            paper, report, replicates=500, stages=("start",), seed=seed, picture="demo"
        )


@app.command()
def fit(
    model: Target,
    *,
    backend: Backend = "numpyro",
    out: Out = None,
    as_json: AsJson = False,
    seed: Seed = 0,
    num_steps: Steps = None,
    num_particles: Particles = None,
    options: Options = None,
    data: Data = None,
) -> None:
    """Fit a model and print its posterior, with a verdict."""
    report = Report(as_json, out)
    with report.running():
        job = _job(
            model,
            backend,
            options=_options(options or []),
            data=data,
            num_steps=num_steps,
            num_particles=num_particles,
        )
        report.content |= _fit(job, report, seed=seed)


@app.command()
def compare(
    model: Target,
    *,
    backend: Backend = "numpyro",
    out: Out = None,
    as_json: AsJson = False,
    seed: Seed = 0,
    num_steps: Steps = None,
    num_particles: Particles = None,
    replicates: Annotated[int, typer.Option(min=2, help="Gradients an estimator and stage.")] = 1_000,
    stages: Annotated[str, typer.Option(help="start, fitted or start,fitted.")] = "start,fitted",
    estimator: Estimators = None,
    parameter: Annotated[str | None, typer.Option(help="A coordinate to show by itself, as 'shape[0]'.")] = None,
    family: Annotated[
        str | None, typer.Option(help="sde: forms of the SDE guide; joint: mean field, Gaussians, flows.")
    ] = None,
    options: Options = None,
    data: Data = None,
) -> None:
    """Measure the variance, bias and cost of gradient estimators on a model, or compare guides over all its latents."""
    report = Report(as_json, out)
    with report.running():
        if family is not None:
            if family not in STUDIES:
                raise ArgumentError(f"--family {family!r}: expected sde or joint")
            if estimator or parameter:
                raise ArgumentError(
                    f"--family {family} draws all sites together: leave --estimator and --parameter out"
                )
            job = _job(model, backend, options=_options(options or []), data=data)
            options_of_study = {"num_steps": num_steps, "num_particles": num_particles}
            report.content |= _study(family, job, report, replicates=replicates, seed=seed, **options_of_study)
            return
        chosen = [_estimator(text) for text in estimator or []]
        wanted = _stages(stages)
        job = _job(
            model,
            backend,
            options=_options(options or []),
            data=data,
            num_steps=num_steps,
            num_particles=num_particles,
        )
        job.estimators = chosen or job.estimators
        job.focus = parameter or job.focus
        report.content |= _compare(
            job, report, replicates=replicates, stages=wanted, seed=seed, picture=f"{job.name}_estimators"
        )


@app.command()
def models(*, as_json: AsJson = False) -> None:
    """List the ready models."""
    import vi_reparam_models as ready

    report = Report(as_json)
    with report.running():
        found = [ready.get(name) for name in ready.names()]
        table = Table("model", "what", "options")
        table.columns[0].no_wrap = True
        for model in found:
            options = ", ".join(f"{name}={value}" for name, value in ready.options(model.name).items())
            table.add_row(model.name, model.description, options)
        report.show(table)
        report.content["models"] = [
            {
                "name": model.name,
                "description": model.description,
                "options": ready.options(model.name),
                "source": model.source,
            }
            for model in found
        ]


@app.command()
def backends(*, as_json: AsJson = False) -> None:
    """List the backends, and whether each can be used here."""
    report = Report(as_json)
    with report.running():
        table = Table("backend", "usable", "note")
        report.content["backends"] = []
        for name in sorted(registry.backends()):
            try:
                registry.load(name)
                usable, note = True, ""
            except BackendError as error:
                usable, note = False, str(error)
            table.add_row(name, "yes" if usable else "no", note)
            report.content["backends"].append({"name": name, "usable": usable, "note": note})
        report.show(table)


def _refuse(message: str) -> int:
    """One line on standard error; the exit code of bad input."""
    print(f"vi-reparam: {' '.join(message.split())}", file=sys.stderr)
    return 2


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 2 and one line for bad input."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        code = app(args=arguments, standalone_mode=False)
    except ViReparamError as error:
        code = _refuse(str(error))
    except typer.Abort:
        code = 130
    except Exception as error:
        # Typer's own complaints (a missing argument, an unknown option) know how to say so.
        if not hasattr(error, "format_message"):
            raise
        code = _refuse(error.format_message())  # type: ignore[attr-defined]
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
