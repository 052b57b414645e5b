"""Pictures of the report: pairs, intervals and ranks of latents, what was tried, and data beside predictions."""

from __future__ import annotations

from typing import Any

import numpy as np

from vi_reparam.posterior.plots import BLUE, GREY, RED, _draw_marginal, _marginals, _tidy
from vi_reparam.posterior.verdict import KHAT_USABLE

NUM_PAIRS = 5
"""Latents in a picture of pairs."""

NUM_POINTS = 1_000
NUM_REPLICATES = 50
MAX_SITES = 4
NUM_INTERVALS = 30
"""Scalars in a picture of intervals."""

NUM_BINS = 20
"""Of ranks."""


def pair_figure(posterior: Any) -> Any:
    """Scatter plots of the first latents against one another, the prior in grey; None where there is only one.

    Axes end a posterior's width beyond its draws, so a wide prior does not make it a point.
    """
    from matplotlib.figure import Figure

    found = {name: values[:NUM_POINTS] for name, values in _marginals(posterior).items()}
    finite = {name: values[np.isfinite(values)] for name, values in found.items()}
    names = [name for name, values in finite.items() if values.size and np.ptp(values) > 0][:NUM_PAIRS]
    if len(names) < 2:
        return None
    ends = {name: np.quantile(finite[name], [0.0, 0.5, 1.0]) for name in names}
    ends = {name: (1.5 * low - 0.5 * mid, 1.5 * high - 0.5 * mid) for name, (low, mid, high) in ends.items()}
    prior = posterior.prior_beside
    figure = Figure(figsize=(11, 11 * 0.8), layout="constrained")
    grid = figure.add_gridspec(len(names), len(names))
    for i, below in enumerate(names):
        for j, left in enumerate(names[: i + 1]):
            axes = figure.add_subplot(grid[i, j])
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7)
            if i == j:
                _draw_marginal(axes, "", found[below], prior.get(below))
            else:
                if left in prior and below in prior:
                    axes.plot(prior[left], prior[below], ".", ms=2.5, color=GREY, alpha=0.5)
                axes.set_ylim(ends[below])
                axes.plot(found[left], found[below], ".", ms=2.5, color=BLUE, alpha=0.35)
            axes.set_xlim(ends[left])
            if i == len(names) - 1:
                axes.set_xlabel(left, fontsize=9)
            if j == 0:
                axes.set_ylabel(below, fontsize=9)
    return figure


def forest_figure(posterior: Any) -> Any:
    """Intervals of 50% and 94% of the first scalars, the prior's in grey beneath, cut to where the posterior's are."""
    from matplotlib.figure import Figure

    rows = dict(list(posterior.rows()[0].items())[:NUM_INTERVALS])
    rows = {name: x[np.isfinite(x)] for name, x in rows.items() if np.isfinite(x).any()}
    if not rows:
        return None
    prior, ends = posterior.prior_beside, [0.03, 0.25, 0.5, 0.75, 0.97]
    figure = Figure(figsize=(9, 1.0 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    _tidy(axes, "median, 50% and 94% of the posterior (blue) and of the prior (grey)")
    found = {name: np.quantile(x, ends) for name, x in rows.items()}
    low, high = min(q[0] for q in found.values()), max(q[-1] for q in found.values())
    pad = 0.05 * (high - low) or 0.5
    for place, (name, q) in enumerate(found.items()):
        if name in prior:
            before = np.quantile(prior[name], ends)
            axes.plot(before[[0, 4]], [place + 0.22] * 2, color=GREY, lw=1.2)
            axes.plot(before[[1, 3]], [place + 0.22] * 2, color=GREY, lw=3.0, alpha=0.6)
        axes.plot(q[[0, 4]], [place] * 2, color=BLUE, lw=1.5)
        axes.plot(q[[1, 3]], [place] * 2, color=BLUE, lw=4.0)
        axes.plot(q[2], place, "o", color="white", mec=BLUE, ms=5)
    axes.set_xlim(low - pad, high + pad)
    axes.set_yticks(range(len(found)), list(found), fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", color=GREY, alpha=0.25)
    return figure


def rank_figure(posterior: Any) -> Any:
    """By how much importance weights lift the guide's draws, by rank; None without weights.

    Flat at 1 where the guide is right. A slope says that its mean is off, a cup that it is too narrow, a cap that it is
    too wide. The band holds 95% of what equal weights would give.
    """
    from matplotlib.figure import Figure

    weights, _ = posterior._first
    if not weights.are_usable:
        return None
    share, found = weights.normalized(), _marginals(posterior)
    figure = Figure(figsize=(11, 0.6 + 1.9 * -(-len(found) // 4)), layout="constrained")
    error = 1.96 * np.sqrt(NUM_BINS / len(share))
    for number, (name, values) in enumerate(found.items()):
        axes = figure.add_subplot(-(-len(found) // 4), min(4, len(found)), number + 1)
        _tidy(axes, name)
        ranks = np.argsort(np.argsort(values)) * NUM_BINS // len(values)
        lifted = NUM_BINS * np.bincount(ranks, weights=share, minlength=NUM_BINS)
        axes.axhspan(1.0 - error, 1.0 + error, color=GREY, alpha=0.3)
        axes.bar(np.arange(NUM_BINS), lifted, width=0.9, color=BLUE, alpha=0.7)
        axes.axhline(1.0, color="black", lw=0.8)
        axes.set_xticks([])
    figure.suptitle("weight of the draws by rank, lowest on the left; flat at 1 where the guide is right", fontsize=10)
    return figure


def tried_figure(posterior: Any) -> Any:
    """ELBO and k-hat of each family that `Escalate` fitted; None where there are not two."""
    from matplotlib.figure import Figure

    tried = [a for a in posterior.tried if not a["note"] and np.isfinite(a["elbo"])]
    if len(tried) < 2:
        return None
    figure = Figure(figsize=(11, 1.2 + 0.35 * len(tried)), layout="constrained")
    places, (left, right) = np.arange(len(tried)), figure.subplots(1, 2, sharey=True)
    chosen = [BLUE if a["family"] == posterior.record.get("family") else GREY for a in tried]
    _tidy(left, "ELBO with two standard errors (nats): higher is better")
    for place, a, colour in zip(places, tried, chosen, strict=True):
        left.errorbar(a["elbo"], place, xerr=2 * a["error"], fmt="o", color=colour, capsize=3)
        right.barh(place, max(a["khat"], 0.0), height=0.5, color=colour)
    _tidy(right, f"k-hat: weights are to be trusted below {KHAT_USABLE}")
    right.axvline(KHAT_USABLE, color=RED, ls="--", lw=1.2)
    right.set_xlim(0.0, max(1.0, *(1.1 * a["khat"] for a in tried if np.isfinite(a["khat"]))))
    left.set_yticks(places, [f"{a['family'][:30]}\n{a['seconds']:.1f} s" for a in tried])
    left.ticklabel_format(axis="x", useOffset=False, style="plain")
    left.invert_yaxis()
    left.grid(axis="x", color=GREY, alpha=0.25)
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
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    low, high = np.quantile(np.concatenate([data, rows.reshape(-1)]), [0.005, 0.995])
    axes.set_xlim(min(low, data.min()), max(high, data.max()))


def _draw_means(axes: Any, name: str, data: np.ndarray, rows: np.ndarray) -> None:
    _tidy(axes, f"{name}: mean and sd of data sets predicted (dots) and of the data (cross)")
    axes.plot(rows.mean(1), rows.std(1), ".", color=BLUE, alpha=0.7)
    axes.plot(data.mean(), data.std(), "x", color=RED, ms=9, mew=2.5)
    axes.set_xlabel("mean", fontsize=8)
    axes.set_ylabel("sd", fontsize=8)
    axes.grid(color=GREY, alpha=0.25)
