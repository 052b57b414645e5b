"""The rows of a study, for people and for programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, overload

import numpy as np

from vi_reparam.posterior import markup

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table


LEAN: dict[str, Any] = {"box": None, "padding": (0, 1, 0, 0), "header_style": "bold underline"}
"""How tables look: at 80 columns names are wrapped between words, and numbers never."""

WIDTH = 120
"""Columns of a table that is printed as text."""

NAME = 28
"""Columns that the longest word of an estimator's name takes."""


def shown(value: Any) -> str:
    """A number in three digits and few letters: 8.17e3."""
    return re.sub(r"e([+-])0*", lambda found: "e" + found[1].strip("+"), f"{float(value):.3g}")


class Row(Protocol):
    """One line of a study: a dataclass of choices, which are texts, and figures, which are numbers."""

    CHOICES: ClassVar[tuple[str, ...]]
    """Which of its fields are choices; the others are figures."""

    TITLE: ClassVar[str]
    HEADER: ClassVar[tuple[str, ...]]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def cells(self) -> tuple[str, ...]:
        """The texts under the header."""
        ...


R = TypeVar("R", bound=Row)


class Study(Sequence[R]):
    """A sequence of rows, one a combination of choices.

    Attributes:
        dataset: xarray; a dimension for each choice, the figures by them, NaN where a combination was not run.
    """

    def __init__(self, kind: type[R], rows: Iterable[R], **attributes: Any) -> None:
        import xarray as xr  # slow to import

        self._kind, self._rows = kind, list(rows)
        labels = {name: list(dict.fromkeys(getattr(row, name) for row in self._rows)) for name in kind.CHOICES}
        figures = [field.name for field in fields(kind) if field.name not in kind.CHOICES]
        arrays = {name: np.full([len(part) for part in labels.values()], np.nan) for name in figures}
        for row in self._rows:
            at = tuple(part.index(getattr(row, name)) for name, part in labels.items())
            for name, array in arrays.items():
                array[at] = getattr(row, name)
        self.dataset = xr.Dataset(
            {name: (kind.CHOICES, array) for name, array in arrays.items()}, coords=labels, attrs=attributes
        )

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> list[R]: ...
    def __getitem__(self, index: int | slice) -> R | list[R]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Study({len(self)} rows: {' x '.join(self._kind.CHOICES)})"

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=WIDTH, color_system=None)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get().rstrip()

    def _repr_html_(self) -> str:
        return markup.table(self.to_dataframe().set_index(self._kind.CHOICES[0]))

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries."""
        return [asdict(row) for row in self._rows]  # type: ignore[call-overload]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for every combination that was run."""
        import pandas as pd

        return pd.DataFrame(self.records())

    def table(self) -> Table:
        """A table to print with rich."""
        from rich.table import Table

        table = Table(**LEAN, title=self._kind.TITLE)
        for number, name in enumerate(self._kind.HEADER):
            figure = number >= len(self._kind.CHOICES)
            table.add_column(
                name.replace(" ", "\n") if figure else name, justify="right" if figure else "left", no_wrap=figure
            )
        for row in self._rows:
            table.add_row(*row.cells())
        return table

    def save(self, path: str | Path) -> None:
        """Write the dataset as netCDF."""
        self.dataset.to_netcdf(path, engine="h5netcdf")
