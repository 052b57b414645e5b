"""The picture of a posterior: losses, log weights, first marginals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.errors import ArgumentError
from vi_reparam.posterior.predict import prior_draws
from vi_reparam.posterior.summary import first_rows
from vi_reparam.posterior.update import Updated

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_MARGINALS = 8
NUM_PRIOR, FEWEST_PRIOR, MOST_PRIOR = 1_000, 50, 1_000_000
"""Draws of the prior beside a posterior; no more numbers than the last, but for the fewest draws."""

PRIOR_SEED = 5
BLUE, GREY, RED = "#2b6cb0", "#a0aec0", "#c53030"
GRADE_COLOURS = {"good": "#2f855a", "fair": "#b7791f", "poor": RED}


def posterior_figure(posterior: Any) -> Figure:
    """Draws the picture; no display is needed."""
    from matplotlib.figure import Figure

    marginals = _marginals(posterior)
    num_rows = -(-len(marginals) // 4)
    figure = Figure(figsize=(11, 3.2 + 2.1 * num_rows), layout="constrained")
    grid = figure.add_gridspec(1 + num_rows, 4, height_ratios=[1.35, *[1.0] * num_rows])
    _draw_losses(figure.add_subplot(grid[0, :2]), posterior.losses, posterior.record.get("rate_falls", ()))
    _draw_weights(figure.add_subplot(grid[0, 2:]), posterior)
    prior = posterior.prior_beside
    for i, (name, values) in enumerate(marginals.items()):
        _draw_marginal(figure.add_subplot(grid[1 + i // 4, i % 4]), name, values, prior.get(name))
    grade = posterior.verdict.grade
    figure.suptitle(f"{posterior.name}: {grade}", color=GRADE_COLOURS[grade], fontsize=13, fontweight="bold")
    return figure


def prior_rows(posterior: Any) -> dict[str, np.ndarray]:
    """Draws of the prior under the names of `Posterior.rows`; none where it is improper or another posterior."""
    scorer, model = posterior.scorer, posterior.guided.model
    if isinstance(model, Updated):
        return {}
    key = posterior.backend.engine.key(PRIOR_SEED)
    size = scorer.sites.num_latents
    num = min(max(MOST_PRIOR // max(size, 1), FEWEST_PRIOR), NUM_PRIOR)
    try:
        found = prior_draws(posterior.backend, model, scorer.data, num, key, params=scorer.params)
    except Exception:  # the model may not be made to be drawn from; then nothing stands beside the posterior
        return {}
    _, shown = posterior._first
    heads = {n: np.asarray(posterior.backend.ops.to_numpy(found[n])).reshape(num, -1) for n in shown}
    return first_rows(scorer.sites, {n: x[:, : shown[n].shape[1]] for n, x in heads.items()})[0]


def write(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure to a file, whose ending says what kind.

    Raises:
        ArgumentError: the folder does not exist, or the ending is not a kind of picture.
    """
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"cannot write {path}: {error}; give a .png, .pdf or .svg in a folder that exists"
        ) from error


def _marginals(posterior: Any) -> dict[str, np.ndarray]:
    values, _ = posterior.rows()
    first: dict[str, np.ndarray] = {}
    # one of each site first, so that a long site does not crowd the others out
    by_site: dict[str, list[str]] = {}
    for name in values:
        by_site.setdefault(name.split("[")[0], []).append(name)
    for depth in range(max(map(len, by_site.values()), default=0)):
        for names in by_site.values():
            if depth < len(names) and len(first) < NUM_MARGINALS:
                first[names[depth]] = values[names[depth]]
    return {name: first[name] for name in values if name in first}


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _draw_losses(axes: Axes, losses: np.ndarray, falls: Sequence[int]) -> None:
    _tidy(axes, "negative ELBO by step (nats)")
    steps, losses = np.arange(len(losses)), np.asarray(losses, dtype=float)
    finite = losses[np.isfinite(losses)]
    if finite.size == 0:
        axes.text(0.5, 0.5, "fitted without steps", ha="center", va="center", transform=axes.transAxes, color=GREY)
        return
    axes.plot(steps, losses, color=GREY, lw=0.5, alpha=0.7)
    width = max(len(losses) // 50, 1)
    if width > 1:
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], smooth, color=BLUE, lw=1.5, label=f"mean of {width} steps")
    for i, step in enumerate(falls):
        label = "step size falls to a fifth" if i == 0 else None
        axes.axvline(step, color="black", ls=":", lw=1.2, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="upper right")
    # the first steps may be orders of magnitude above what matters
    settled = finite[len(finite) // 5 :]
    low, high = settled.min(), np.quantile(settled, 0.995)
    margin = max(0.15 * (high - low), 1e-3 * max(abs(high), 1.0))
    axes.set_ylim(low - margin, min(finite.max(), high + 4 * margin) + margin)
    axes.margins(x=0.01)


def _draw_weights(axes: Axes, posterior: Any) -> None:
    log_weights, figures = posterior.log_weights, posterior.verdict.figures
    _tidy(axes, f"log weights but for the lowest 2% (nats), k-hat {figures.khat:.2f}")
    finite = log_weights[np.isfinite(log_weights)]
    if finite.size:
        low, high = np.quantile(finite, [0.02, 1.0])
        high = max(high, figures.log_evidence if np.isfinite(figures.log_evidence) else high)
        pad = max(0.02 * (high - low), 1e-3)
        axes.hist(finite, bins=60, range=(low - pad, high + pad), color=BLUE, alpha=0.6)
        axes.set_xlim(low - 3 * pad, high + 3 * pad)
        for value, colour, style, label in (
            (figures.elbo, "black", "-", f"ELBO {figures.elbo:,.2f}"),
            (figures.log_evidence, RED, "--", f"log evidence {figures.log_evidence:,.2f}"),
        ):
            if np.isfinite(value):
                axes.axvline(value, color=colour, ls=style, lw=1.3, label=label)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, edgecolor="none", framealpha=0.85, loc="upper left")
    axes.set_yticks([])
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    num_bad = len(log_weights) - finite.size
    if num_bad:
        text = f"{num_bad:,} of {len(log_weights):,} not finite"
        axes.text(0.98, 0.95, text, ha="right", va="top", transform=axes.transAxes, color=RED, fontsize=9)


def _draw_marginal(axes: Axes, name: str, values: Any, prior: Any = None) -> None:
    _tidy(axes, name)
    axes.set_yticks([])
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not values.size:
        return
    low, high = np.quantile(values, [0.005, 0.995])
    if low == high:
        low, high = low - 0.5, high + 0.5
    axes.hist(values, bins=40, range=(low, high), color=BLUE, alpha=0.6, density=True)
    if prior is not None:  # as dense as it is there, however much of it lies outside
        part = np.mean((prior >= low) & (prior <= high))
        inside = prior[(prior >= low) & (prior <= high)]
        weights = np.full(len(inside), part / max(len(inside), 1) * 12 / (high - low))
        axes.hist(inside, bins=12, range=(low, high), weights=weights, histtype="step", color=GREY, lw=1.3)
    axes.axvline(values.mean(), color="black", lw=1.0)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
