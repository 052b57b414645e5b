"""The comparison of gradient estimators: what was measured, for people and for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.errors import ArgumentError
from vi_reparam.estimators import Auto, Estimator
from vi_reparam.families import Family
from vi_reparam.fit.measure import Moments
from vi_reparam.study.table import LEAN, NAME, shown

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from rich.table import Table


def z_scores(mean: np.ndarray, error: np.ndarray, reference: np.ndarray, reference_error: np.ndarray) -> np.ndarray:
    """(mean - reference) in standard errors of the difference; 0 where both are without error and equal."""
    gap = mean - reference
    spread = np.hypot(error, reference_error)
    exact = spread <= 1e-12 * (np.abs(reference) + 1e-300)
    safe = np.where(exact, 1.0, spread)
    same = np.abs(gap) <= 1e-6 * np.maximum(np.abs(reference), 1e-12)
    return np.where(exact, np.where(same, 0.0, np.inf * np.sign(gap)), gap / safe)


class Comparison:
    """Gradient estimators side by side, under common random numbers.

    Attributes:
        dataset: dimensions estimator x stage x parameter; mean and variance of the gradient,
            `variance_error`, `variance_per_draw` (variance times particles), bias `z` against
            the reference, and by estimator x stage `seconds` per gradient and
            `variance_x_seconds` (summed over parameters).
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self.dataset = dataset

    def to_dataframe(self) -> pd.DataFrame:
        """One row for every estimator, stage and parameter."""
        return self.dataset.to_dataframe().reset_index()

    def table(self, parameter: str | None = None) -> Table:
        """A table to print with rich, with the variance of one coordinate too if asked for.

        Raises:
            ArgumentError: if there is no such parameter.
        """
        from rich.table import Table
        from rich.text import Text

        data, attrs, number = self.dataset, self.dataset.attrs, self.dataset.sizes["parameter"]
        if parameter is not None and parameter not in data.parameter.values:
            some = ", ".join(map(str, data.parameter.values[:5]))
            raise ArgumentError(f"parameter {parameter!r} was not compared: there are {number}, as {some}")
        table = Table(
            **LEAN,
            title=f"Gradient variance per draw; {attrs['num_particles']} particles, "
            f"{attrs['num_replicates']} replicates",
            caption=f"variance x time: relative to the best. |z| against {attrs['reference']}; of {number} unbiased "
            f"ones the largest is about {expected_largest_z(number):.1f}",
        )
        table.add_column(
            "estimator", min_width=min(NAME, max(len(str(n)) for n in data.estimator.values)), overflow="fold"
        )
        own = () if parameter is None else (Text(parameter),)
        for name in (*own, "median", "largest", "largest\n|z|", "ms /\ngrad.", "var. x\ntime"):
            table.add_column(name, justify="right", no_wrap=True)
        for stage in data.stage.values:
            at = data.sel(stage=stage)
            best = float(at.variance_x_seconds.min())
            table.add_row(Text(str(stage), style="bold"))
            for estimator in data.estimator.values:
                one = at.sel(estimator=estimator)
                variances, z = one.variance_per_draw, np.abs(one.z.values)
                alone = () if parameter is None else (shown(variances.sel(parameter=parameter)),)
                cost = float(one.variance_x_seconds) / best if best > 0 else float("nan")
                spread = shown(np.median(variances)), shown(np.max(variances))
                price = shown(1e3 * one.seconds), shown(cost)
                table.add_row(Text(str(estimator)), *alone, *spread, f"{float(np.max(z)):.2f}", *price)
        return table

    def plot(self, path: str | Path | None = None) -> Any:
        """A matplotlib figure of variances over parameters, and variance x time; saved to `path` if given."""
        import matplotlib

        if path is not None:
            matplotlib.use("Agg", force=False)
        import matplotlib.pyplot as plt

        data = self.dataset
        stages, names = list(data.stage.values), [str(n) for n in data.estimator.values]
        size = 11, (1.3 + 0.34 * len(names)) * len(stages) + 0.4
        options = {"squeeze": False, "width_ratios": (2.2, 1), "sharey": "row", "layout": "constrained"}
        figure, axes = plt.subplots(len(stages), 2, figsize=size, **options)
        for row, stage in zip(axes, stages, strict=True):
            at = data.sel(stage=stage)
            y = np.arange(len(names))[::-1]
            per_draw = np.maximum(at.variance_per_draw.values, 1e-300)
            low, q1, mid, q3, high = np.quantile(per_draw, (0.0, 0.25, 0.5, 0.75, 1.0), axis=1)
            row[0].hlines(y, low, high, color="#9bb4cc", lw=2)
            row[0].hlines(y, q1, q3, color="#2f6690", lw=7)
            row[0].plot(mid, y, "o", color="white", markeredgecolor="#16425b", ms=7)
            row[0].set(xscale="log", xlabel="variance per draw, over parameters", title=f"{stage}: variance")
            row[0].set_yticks(y, names)
            cost = at.variance_x_seconds.values
            cost = cost / cost.min() if cost.min() > 0 else cost
            row[1].barh(y, cost, color=["#c8553d" if c == cost.min() else "#d9d9d9" for c in cost], height=0.6)
            row[1].set(xscale="log", xlabel="variance x time, best = 1", title="price of a digit")
            for y_, c in zip(y, cost, strict=True):
                row[1].text(c, y_, f" {c:.3g}", va="center", fontsize=8)
            row[1].set_xlim(0.8, max(10.0, 4.0 * float(np.max(cost))))
            for axis in row:
                axis.grid(axis="x", alpha=0.25)
                axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"{data.attrs['model']}: gradient estimators, {data.attrs['num_particles']} particles")
        if path is not None:
            figure.savefig(path, dpi=130)
            plt.close(figure)
        return figure

    def save(self, path: str | Path) -> None:
        """Write the dataset as netCDF."""
        self.dataset.to_netcdf(path, engine="h5netcdf")

    def __repr__(self) -> str:
        sizes, stages = self.dataset.sizes, self.dataset.stage.values.tolist()
        return f"Comparison({sizes['estimator']} estimators, stages {stages}, {sizes['parameter']} parameters)"


def everywhere(estimator: Estimator, sites: Mapping[str, Family]) -> dict[str, Estimator]:
    """An estimator at all the sites that it serves, and `Auto` at the others.

    A site some of whose parameters it does not serve (a weak derivative's gamma) gets it only if
    there is no site that it serves whole.

    Raises:
        ArgumentError: if it applies nowhere.
    """
    served = [name for name, family in sites.items() if estimator.applies_to(family)]
    if estimator.kind == "measure_valued":
        whole = [name for name in served if set(sites[name].weak_parameters) == set(sites[name].parameters)]
        served = whole or served
    if not served:
        kinds = ", ".join(f"{name!r}: {family.name}" for name, family in sites.items())
        raise ArgumentError(f"{estimator!r} applies to no site of the guide ({kinds})")
    return {name: estimator if name in served else Auto() for name in sites}


def expected_largest_z(number: int) -> float:
    """About the largest of `number` independent absolute standard normals."""
    return float(np.sqrt(2.0 * np.log(2.0 * max(number, 1)))) if number > 1 else 1.0


def build(
    estimators: list[str],
    stages: list[str],
    parameters: list[str],
    measured: Mapping[tuple[str, str], tuple[Moments, float, np.ndarray]],
    **attributes: Any,
) -> Comparison:
    """A `Comparison` from moments, seconds and z by (estimator, stage)."""

    def stacked(of: Callable[[Moments, float, np.ndarray], Any]) -> np.ndarray:
        return np.array([[of(*measured[e, s]) for s in stages] for e in estimators])

    import xarray as xr  # slow to import

    dims = ("estimator", "stage", "parameter")
    variance, time = stacked(lambda m, _, z: m.variance), stacked(lambda m, seconds, z: seconds)
    dataset = xr.Dataset(
        {
            "mean": (dims, stacked(lambda m, _, z: m.mean)),
            "variance": (dims, variance),
            "variance_error": (dims, stacked(lambda m, _, z: m.variance_error)),
            "variance_per_draw": (dims, variance * attributes["num_particles"]),
            "z": (dims, stacked(lambda m, _, z: z)),
            "seconds": (dims[:2], time),
            "variance_x_seconds": (dims[:2], variance.sum(-1) * time),
        },
        coords={"estimator": estimators, "stage": stages, "parameter": parameters},
        attrs={**attributes, "num_replicates": next(iter(measured.values()))[0].count},
    )
    return Comparison(dataset)
