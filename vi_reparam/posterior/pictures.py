"""Pictures of the report: pairs of latents, and data beside predictions of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from vi_reparam.posterior.plots import BLUE, GREY, RED, _marginals, _tidy

NUM_PAIRS = 5
"""Latents in a picture of pairs."""

NUM_POINTS = 1_000
NUM_REPLICATES = 50
MAX_SITES = 4


def pair_figure(posterior: Any) -> Any:
    """Scatter plots of the first latents against one another; None where there is only one."""
    from matplotlib.figure import Figure

    found = {name: values[:NUM_POINTS] for name, values in _marginals(posterior).items()}
    names = [name for name, values in found.items() if np.ptp(values[np.isfinite(values)]) > 0][:NUM_PAIRS]
    if len(names) < 2:
        return None
    figure = Figure(figsize=(11, 11 * 0.8), layout="constrained")
    grid = figure.add_gridspec(len(names), len(names))
    for i, below in enumerate(names):
        for j, left in enumerate(names[: i + 1]):
            axes = figure.add_subplot(grid[i, j])
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7)
            if i == j:
                axes.hist(found[below], bins=40, color=BLUE, alpha=0.6)
                axes.set_yticks([])
            else:
                axes.plot(found[left], found[below], ".", ms=2.5, color=BLUE, alpha=0.35)
            if i == len(names) - 1:
                axes.set_xlabel(left, fontsize=9)
            if j == 0:
                axes.set_ylabel(below, fontsize=9)
    return figure


def predictive_figure(posterior: Any) -> Any:
    """The data of each observed site beside predictive draws of them; None for a model without data."""
    from matplotlib.figure import Figure

    observed = {name: x for name, x in posterior.scorer.observed().items() if x.size and np.isfinite(x).all()}
    names = list(observed)[:MAX_SITES]
    if not names:
        return None
    drawn = posterior.predict(num_draws=NUM_REPLICATES, return_sites=names)
    figure = Figure(figsize=(11, 3.0 * len(names)), layout="constrained")
    for i, name in enumerate(names):
        left, right = figure.add_subplot(len(names), 2, 2 * i + 1), figure.add_subplot(len(names), 2, 2 * i + 2)
        rows = np.asarray(posterior.backend.ops.to_numpy(drawn[name]), dtype=float).reshape(NUM_REPLICATES, -1)
        data = np.asarray(observed[name], dtype=float).reshape(-1)
        _draw_densities(left, name, data, rows)
        _draw_means(right, name, data, rows)
    return figure


def _draw_densities(axes: Any, name: str, data: np.ndarray, rows: np.ndarray) -> None:
    """Distribution functions, which need no bins and serve counts too."""
    _tidy(axes, f"{name}: distribution of the data, and of {NUM_REPLICATES} data sets predicted")
    places = np.arange(1, data.size + 1) / data.size
    for k, row in enumerate(rows):
        label = "predicted" if k == 0 else None
        axes.step(np.sort(row), places, where="post", color=BLUE, lw=0.6, alpha=0.35, label=label)
    axes.step(np.sort(data), places, where="post", color="black", lw=1.8, label="data")
    axes.legend(fontsize=8, frameon=False)
    low, high = np.quantile(np.concatenate([data, rows.reshape(-1)]), [0.005, 0.995])
    axes.set_xlim(min(low, data.min()), max(high, data.max()))


def _draw_means(axes: Any, name: str, data: np.ndarray, rows: np.ndarray) -> None:
    _tidy(axes, f"{name}: mean and sd of data sets predicted (dots) and of the data (cross)")
    axes.plot(rows.mean(1), rows.std(1), ".", color=BLUE, alpha=0.7)
    axes.plot(data.mean(), data.std(), "x", color=RED, ms=9, mew=2.5)
    axes.set_xlabel("mean", fontsize=8)
    axes.set_ylabel("sd", fontsize=8)
    axes.grid(color=GREY, alpha=0.25)
