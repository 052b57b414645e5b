"""A folder of compiled programs, so that the next process need not compile them again."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vi_reparam.errors import ArgumentError

if TYPE_CHECKING:
    from vi_reparam.backend.engine import Engine

VARIABLE = "VI_REPARAM_CACHE"
"""Of the environment: ``1`` for the usual folder, ``0`` for none, else a folder."""

SIZE = 1_000_000_000
"""Bytes that it may hold; the programs that were used longest ago go first."""


def cache(guided: Any, folder: str | os.PathLike | None = None) -> Path:
    """Keep compiled programs in a folder, for this and later processes on this machine.

    Call it once, before the first fit; or set the environment variable ``VI_REPARAM_CACHE`` to ``1`` or to a folder.
    The programs are machine code, which is run as it is found. So the folder must belong to you, and nobody else may
    write to it. In NumPyro it is JAX's persistent compilation cache, of at most 1 GB where the package filelock is
    installed; in Pyro torch's inductor cache.

    Args:
        folder: made if it is not there; ``~/.cache/vi-reparam`` unless given, with a folder for each backend.

    Returns:
        The folder.

    Raises:
        ArgumentError: if the folder is not yours alone, or cannot be made.
    """
    return keep(guided.backend.engine, guided.backend.name, folder)


def keep(engine: Engine, name: str, folder: str | os.PathLike | None) -> Path:
    """As `cache`, for the engine of the backend of this name."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vi-reparam"
    path = (usual if folder is None else Path(folder).expanduser()) / name
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        about = path.stat()
    except OSError as error:
        raise ArgumentError(f"cache({str(path)!r}): {error.strerror}; give a folder that can be made") from error
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise ArgumentError(
            f"cache({str(path)!r}): others own or may write to it, and what lies there is run: chmod go-w, or another"
        )
    engine.keep_programs(str(path), SIZE)
    return path


def keep_if_asked(engine: Engine, name: str) -> None:
    """As the environment variable asks."""
    asked = os.environ.get(VARIABLE, "0")
    if asked not in ("", "0"):
        keep(engine, name, None if asked == "1" else asked)
