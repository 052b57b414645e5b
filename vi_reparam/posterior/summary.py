"""A posterior's table: a row a scalar, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vi_reparam.posterior import markup
from vi_reparam.posterior.sites import Sites
from vi_reparam.posterior.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

ROWS_PER_SITE = 12
MAX_ROWS = 60


@dataclass(frozen=True)
class Summary:
    """A posterior's table and verdict.

    Attributes:
        table: a row a scalar: mean, sd and highest-density interval.
        verdict: whether to trust it.
        num_hidden: by site, how many scalars have no row.
        tried: what `Escalate` tried, a line a family; empty where one family was asked for.
    """

    table: pd.DataFrame
    verdict: Verdict
    num_hidden: dict[str, int]
    tried: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [self.table.to_string()]
        if self.num_hidden:
            parts.append(hidden_line(self.num_hidden))
        return "\n".join([*parts, *self.tried, str(self.verdict)])

    def _repr_html_(self) -> str:
        hidden = markup.note(hidden_line(self.num_hidden)) if self.num_hidden else ""
        tried = markup.block("\n".join(self.tried)) if self.tried else ""
        return markup.table(self.table) + hidden + tried + markup.verdict(self.verdict.grade, str(self.verdict))


def hidden_line(num_hidden: Mapping[str, int]) -> str:
    """What a table leaves out, in words."""
    sites = ", ".join(f"{name} {count:,}" for name, count in num_hidden.items())
    return f"... {sum(num_hidden.values()):,} more rows not shown ({sites})"


def summarize(posterior: Any, hdi_prob: float) -> Summary:
    """The summary of a `vi_reparam.posterior.posterior.Posterior`."""
    values, hidden = posterior.rows()
    table = table_of(values, hdi_prob)
    tried = tried_lines(posterior.tried, posterior.record.get("family"), posterior.why)
    return Summary(table=_rounded(table), verdict=posterior.verdict, num_hidden=hidden, tried=tried)


def table_of(values: Mapping[str, np.ndarray], prob: float) -> pd.DataFrame:
    """Mean, sd and highest-density interval of draws by name, a row each, with the columns of `arviz.summary`.

    Args:
        values: draws by name, shape ``[num_draws]``.
        prob: of the interval.
    """
    import pandas as pd

    rows = [(x.mean(), x.std(ddof=1), *shortest_interval(x, prob)) for x in values.values()]
    edges = (f"hdi_{100 * edge:g}%" for edge in (0.5 - 0.5 * prob, 0.5 + 0.5 * prob))
    return pd.DataFrame(rows, index=list(values), columns=["mean", "sd", *edges])


def shortest_interval(draws: np.ndarray, prob: float) -> tuple[float, float]:
    """The shortest interval that holds this part of the draws; NaN where one of them is."""
    ordered = np.sort(draws)
    if np.isnan(ordered[-1:]).any():
        return math.nan, math.nan
    inside = math.floor(prob * len(ordered))
    lowest = int(np.argmin(ordered[inside:] - ordered[: len(ordered) - inside]))
    return float(ordered[lowest]), float(ordered[lowest + inside])


def first_rows(sites: Sites, heads: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """As `Posterior.rows`, of draws of the first scalars by site, shape ``[num_draws, some]``."""
    values, hidden = {}, {}
    for name, site in {**sites.latents, **sites.deterministics}.items():
        shown = min(heads[name].shape[1], MAX_ROWS - len(values))
        for i in range(shown):
            index = ", ".join(str(int(j)) for j in np.unravel_index(i, site.shape))
            values[f"{name}[{index}]" if site.shape else name] = heads[name][:, i]
        if site.size > shown:
            hidden[name] = site.size - shown
    return values, hidden


def tried_lines(tried: list[dict[str, Any]], family: Any, why: str) -> tuple[str, ...]:
    """What `Escalate` tried, a line a family, the chosen one marked; then why it ended."""
    lines = []
    for a in tried:
        figures = a["note"]
        if not figures:
            bound = f"ELBO {a['elbo']:,.3f} ± {a['error']:.3f}"
            figures = f"{bound}, k-hat {a['khat']:.2f}, {a['steps']:,} steps, {a['seconds']:.1f} s"
        lines.append(f"{'*' if a['family'] == family else ' '} {a['family']}: {figures}")
    return (*lines, f"  {why}") if lines else ()


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(lambda x: float(f"{x:.3g}") if abs(x) < 100 else round(x, 1))
