"""The command ``vi-reparam``. Backends and models are imported when a command needs them."""

from __future__ import annotations

import io
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import vi_reparam
from vi_reparam.backend import registry
from vi_reparam.commands.inputs import read_estimator, read_stages
from vi_reparam.commands.job import make_job
from vi_reparam.commands.report import Report
from vi_reparam.commands.runs import STUDIES, run_compare, run_fit, run_study
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
Data = Annotated[
    Path | None,
    typer.Option(
        help="Keyword arguments of a module:attribute model: .npz, .json, or the columns of .csv or .parquet."
    ),
]
Estimators = Annotated[
    list[str] | None, typer.Option("--estimator", help="Such as 'Rejection(boost=3)'; may be repeated.")
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vi-reparam {vi_reparam.__version__}")
        raise typer.Exit


@app.callback()
def _all(
    *, version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False
) -> None: ...


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
        jobs = [make_job("eight_schools", backend), make_job("digits", backend, num_steps=800)]
        report.content["fits"] = [run_fit(job, report, seed=seed) for job in jobs]
        paper = make_job("dirichlet_multinomial", backend)
        settings = {"replicates": 500, "stages": ("start",), "seed": seed, "picture": "demo"}
        report.content["comparison"] = run_compare(paper, report, **settings)


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
        job = make_job(model, backend, options, data, num_steps=num_steps, num_particles=num_particles)
        report.content |= run_fit(job, report, seed=seed, command=shlex.join(["vi-reparam", *sys.argv[1:]]))


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
            job = make_job(model, backend, options, data)
            options_of_study = {"num_steps": num_steps, "num_particles": num_particles}
            report.content |= run_study(family, job, report, replicates=replicates, seed=seed, **options_of_study)
            return
        chosen = [read_estimator(text) for text in estimator or []]
        wanted = read_stages(stages)
        job = make_job(model, backend, options, data, num_steps=num_steps, num_particles=num_particles)
        job.estimators = chosen or job.estimators
        job.focus = parameter or job.focus
        settings = {"replicates": replicates, "stages": wanted, "seed": seed, "picture": f"{job.name}_estimators"}
        report.content |= run_compare(job, report, **settings)


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
            {"name": m.name, "description": m.description, "options": ready.options(m.name), "source": m.source}
            for m in found
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
    """One line on standard error, if there is something to say; the exit code of bad input."""
    if message:
        print(f"vi-reparam: {' '.join(message.split())}", file=sys.stderr)
    return 2


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 2 and one line for bad input."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of ASCII alone
    try:
        code = app(args=arguments, standalone_mode=False)
        if sys.stdout is not None:  # closed by whoever called it
            sys.stdout.flush()
    except ViReparamError as error:
        code = _refuse(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk
        code = _refuse(f"cannot write: {error.strerror or error}")
        sys.stdout = None  # type: ignore[assignment]  (what it still holds would fail again)
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
