"""Pieces of HTML, every text in them escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def block(text: str) -> str:
    """Text as it is."""
    return f"<pre>{escape(text)}</pre>"


def note(text: str) -> str:
    """A remark."""
    return f'<p class="note">{escape(text)}</p>'


def verdict(grade: str, text: str) -> str:
    """A verdict, of the class of its grade."""
    lines = "<br>".join(escape(line) for line in text.splitlines())
    return f'<div class="verdict {escape(grade)}">{lines}</div>'


def table(frame: pd.DataFrame) -> str:
    """A table of numbers and words, with the names of its rows."""
    head = "".join(f"<th>{escape(str(column))}</th>" for column in ("", *frame.columns))
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td>{''.join(f'<td>{_cell(x)}</td>' for x in row)}</tr>"
        for name, row in zip(frame.index, frame.to_numpy(), strict=True)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(x: Any) -> str:
    return escape(x) if isinstance(x, str) else f"{x:g}"
