"""What the commands do: fit, compare estimators, compare guides."""

from __future__ import annotations

import warnings
from typing import Any

from vi_reparam.commands.job import Job
from vi_reparam.commands.report import Report
from vi_reparam.errors import BackendError

MAX_STORED = 5_000_000
"""Numbers of a posterior to write at most: fewer draws of a larger model."""

STUDIES = {"sde": "forms of the SDE guide", "joint": "guides over all latents"}
"""What ``compare --family`` may compare."""


def run_fit(job: Job, report: Report, *, seed: int, picture: bool = True, command: str | None = None) -> dict[str, Any]:
    """Fit, show the summary, write the files; what was found, for JSON. `command` is shown in the report."""
    report.title(f"{job.name}: posterior")
    posterior = job.guided.fit(*job.args, **job.kwargs, **job.settings, seed=seed, progress=report.progress)
    report.show(str(posterior.summary()))
    latents = posterior.verdict.figures.num_latents
    num_draws = max(50, min(1_000, MAX_STORED // max(latents, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the verdict says already
        inference = posterior.to_arviz(num_draws, seed, log_likelihood=latents <= 1_000)
    if path := report.path(f"{job.name}.nc"):
        inference.to_netcdf(str(path))
    if picture and (path := report.path(f"{job.name}.png")):
        posterior.plot(path)
    if path := report.path(f"{job.name}.html"):
        posterior.report(path, command=command)
    value, error = posterior.elbo()
    draws = inference.posterior
    small = [name for name in draws.data_vars if draws[name][0, 0].size <= 100]
    return {
        **_heading(job, seed),
        "num_steps": len(posterior.losses),
        "elbo": {"value": float(value), "standard_error": float(error)},
        "khat": posterior.khat,
        "verdict": {"grade": posterior.verdict.grade, "reasons": posterior.verdict.reasons},
        "posterior": {
            name: {"mean": draws[name].mean(("chain", "draw")).values, "sd": draws[name].std(("chain", "draw")).values}
            for name in small
        },
    }


def run_compare(
    job: Job, report: Report, *, replicates: int, stages: tuple[str, ...], seed: int, picture: str
) -> dict[str, Any]:
    """Compare estimators, show the table, write the files; what was found, for JSON."""
    report.title(f"{job.name}: gradient estimators")
    if not hasattr(job.vr, "compare_estimators"):
        raise BackendError(f"{job.vr.__name__} cannot compare estimators; use another backend")
    particles = job.settings["num_particles"] or 8
    options = {"estimators": job.estimators, "num_replicates": replicates, "num_particles": particles, "stages": stages}
    options |= {"fit_steps": job.settings["num_steps"] or 1_000, "progress": report.progress, "seed": seed}
    comparison = job.vr.compare_estimators(job.guided, *job.args, **job.kwargs, **options)
    report.show(comparison.table(job.focus))
    if path := report.path(f"{picture}.png"):
        comparison.plot(path)
    if path := report.path(f"{job.name}_estimators.nc"):
        comparison.save(path)
    return {
        **_heading(job, seed),
        "replicates": replicates,
        "num_particles": particles,
        "estimators": comparison.to_dataframe().reset_index().to_dict(orient="records"),
    }


def run_study(
    family: str, job: Job, report: Report, *, replicates: int, seed: int, **options: int | None
) -> dict[str, Any]:
    """Compare guides over all latents, show the table, write the file; what was found, for JSON."""
    report.title(f"{job.name}: {STUDIES[family]}")
    name = {"sde": "compare_sde", "joint": "compare_guides"}[family]
    if not hasattr(job.vr, name):
        raise BackendError(f"{job.vr.__name__} has no {name}; use another backend")
    given = {name: value for name, value in options.items() if value is not None}  # else the study's own
    given |= {"num_replicates": replicates, "seed": seed, "progress": report.progress}
    study = getattr(job.vr, name)(job.guided, *job.args, **job.kwargs, **given)
    report.show(study.table())
    if path := report.path(f"{job.name}_{family}.nc"):
        study.save(path)
    return {**_heading(job, seed), "replicates": replicates, "rows": study.records()}


def _heading(job: Job, seed: int) -> dict[str, Any]:
    return {"model": job.name, "backend": job.vr.host.name, "seed": seed}
