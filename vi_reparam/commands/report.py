"""Where a command's results go."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from vi_reparam.errors import ArgumentError


@dataclass
class Report:
    """Where a command's results go: tables for people, or one JSON object."""

    as_json: bool
    out: Path | None = None
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def console(self) -> Console:
        console = Console(stderr=self.as_json, highlight=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:  # a log or a pipe has no width of its own
            console.width = 140
        return console

    @property
    def progress(self) -> bool:
        """Whether to show progress bars."""
        return not self.as_json and sys.stderr.isatty()

    def show(self, renderable: Any) -> None:
        if not self.as_json:
            self.console.print(renderable, markup=False, soft_wrap=isinstance(renderable, str))

    def title(self, text: str) -> None:
        if not self.as_json:
            self.console.rule(text, align="left")

    def path(self, name: str) -> Path | None:
        """Where to write a file of this name, and note it; None if nothing is to be written."""
        if self.out is None:
            return None
        path = self.out / name
        self.content.setdefault("files", []).append(str(path))
        return path

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run a command's work; then print what it found."""
        if self.out is not None:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ArgumentError(f"--out {self.out}: cannot be made a folder ({error.strerror})") from error
        # Whatever a framework prints must not get between the reader and the JSON.
        with contextlib.redirect_stdout(sys.stderr) if self.as_json else contextlib.nullcontext():
            yield
        if self.as_json:
            print(json.dumps(plain(self.content), indent=2))
        elif "files" in self.content:
            self.console.print("wrote " + ", ".join(self.content["files"]), markup=False, soft_wrap=True)


def plain(value: Any) -> Any:
    """Numbers, lists and dicts that JSON can hold; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str | bool | None) else str(value)
