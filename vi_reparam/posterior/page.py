"""A posterior's report: one HTML page that holds all it shows."""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from vi_reparam.errors import ArgumentError, first_line
from vi_reparam.posterior import markup, pictures, plots
from vi_reparam.posterior.summary import hidden_line

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a202c; background: #fff; margin: 0 auto; max-width: 70rem;
  padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
.verdict { border-left: 0.4rem solid; padding: 0.4rem 1rem; background: #f7fafc; }
.good { border-color: #2f855a; } .fair { border-color: #b7791f; } .poor { border-color: #c53030; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 0.15rem 0.8rem; text-align: right; border-bottom: 1px solid #e2e8f0; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
pre { background: #f7fafc; padding: 0.6rem; overflow-x: auto; font-size: 0.85rem; }
@media (max-width: 40rem) { td, th { padding: 0.15rem 0.35rem; font-size: 0.85rem; } pre { white-space: pre-wrap; }
  figure { overflow-x: auto; } img { max-width: none; width: 44rem; } }
figcaption, .note { color: #4a5568; font-size: 0.9rem; } figure { margin: 0; }
"""


MEANINGS = {
    "good": "A mean is likely off by at most 0.1 of its standard deviation, and a standard deviation by at most 15%.",
    "fair": "A mean is likely off by at most 0.4 of its standard deviation, and a standard deviation by at most 35%.",
    "poor": "Do not rely on these numbers before the reasons above are mended.",
}
"""Of each grade, for readers who know nothing else of it."""


def write(posterior: Any, path: str | os.PathLike, *, command: str | None = None) -> Path:
    """Writes a posterior's page.

    Args:
        command: the command that made it, to be shown.

    Raises:
        ArgumentError: if the file cannot be written.
    """
    path, text = Path(path), page(posterior, command)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        text = f"cannot write {path}: {error.strerror}; give a .html file in a folder that exists"
        raise ArgumentError(text) from error
    return path


def page(posterior: Any, command: str | None) -> str:
    """The page's text."""
    name = escape(posterior.name)
    body = "\n".join(_sections(posterior, command))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{name}: posterior</title><style>{STYLE}</style></head>\n'
        f"<body><main>\n<h1>{name}</h1>\n{body}\n</main></body></html>\n"
    )


def _sections(posterior: Any, command: str | None) -> Iterator[str]:
    summary = posterior.summary()
    yield markup.verdict(summary.verdict.grade, str(summary.verdict))
    yield markup.note(MEANINGS[summary.verdict.grade])
    yield "<h2>Latents</h2>\n" + markup.table(summary.table)
    if summary.num_hidden:
        yield markup.note(hidden_line(summary.num_hidden))
    yield "<h2>The fit</h2>" + _picture(
        plots.posterior_figure(posterior), "Losses, log weights, and first marginals with the prior (grey)."
    )
    if summary.tried:
        yield "<h2>What was tried</h2>\n" + markup.block("\n".join(summary.tried))
        figure = pictures.tried_figure(posterior)
        yield "" if figure is None else _picture(figure, "Each family that was fitted; the chosen one is blue.")
    caption = "Medians and intervals, with the prior's."
    yield from _optional("Intervals", caption, pictures.forest_figure, posterior)
    caption = "How importance weights lift draws, by their rank: flat at 1 where the guide is right."
    yield from _optional("Ranks", caption, pictures.rank_figure, posterior)
    yield from _optional(
        "Pairs", "Draws of latents against one another; the prior in grey.", pictures.pair_figure, posterior
    )
    caption = "Data beside draws from the posterior predictive distribution."
    yield from _optional("Predictive check", caption, pictures.predictive_figure, posterior)
    yield "<h2>How it was made</h2>\n" + _facts(posterior, command)


def _optional(title: str, caption: str, draw: Any, posterior: Any) -> Iterator[str]:
    """A picture that a model may not have, or may refuse; then the reason stands in its place."""
    try:
        figure = draw(posterior)
    except Exception as error:  # a model's own code may fail in any way on draws that its data never gave
        yield f"<h2>{title}</h2>\n" + markup.note(f"Not drawn: {first_line(error)}")
        return
    if figure is not None:
        yield f"<h2>{title}</h2>\n" + _picture(figure, caption)


def _picture(figure: Any, caption: str) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _facts(posterior: Any, command: str | None) -> str:
    record = posterior.record
    facts = {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "guide": record.get("family"),
        "objective": record.get("objective"),
        "particles": record.get("num_particles"),
        "steps": record.get("num_steps"),
        "seconds": f"{record['seconds']:.1f}" if "seconds" in record else None,
        "seed": posterior.seed,
        **(record.get("versions") or {}),
    }
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    made = "" if command is None else markup.block(command)
    return f'{made}<div class="wide"><table>{rows}</table></div>'
