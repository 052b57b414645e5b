"""Draws written to a file as they are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vi_reparam.errors import ArgumentError
from vi_reparam.posterior.inference_data import dims_of, safe_name
from vi_reparam.posterior.sites import Site

GROUP = "predictions"


def write(
    path: Path, sites: Mapping[str, Site], chunks: Iterable[Mapping[str, np.ndarray]], num: int, size: int
) -> Path:
    """Writes draws to a group of a netCDF file, part after part.

    Args:
        sites: the form of each variable.
        chunks: the draws, by site, in their order; `num`: how many in all.
        size: of a chunk: the file's own chunks have it too.

    Raises:
        ArgumentError: the file cannot be written.
    """
    import h5netcdf

    try:
        file: Any = h5netcdf.File(path, "w")
    except OSError as error:
        text = f"cannot write {path}: {error.strerror or error}; give a .nc file in a folder that exists"
        raise ArgumentError(text[:300]) from error
    with file:
        group, named = file.create_group(GROUP), dims_of(sites)
        group.dimensions["chain"], group.dimensions["draw"] = 1, num
        first, made = 0, {}
        for rows in chunks:
            for name, values in rows.items():
                if name not in made:
                    made[name] = _variable(group, safe_name(name), values, named.get(safe_name(name)), num, size)
                made[name][0, first : first + len(values)] = values
            first += len(next(iter(rows.values()), ()))
    return path


def _variable(group: Any, name: str, values: np.ndarray, dims: list[str] | None, num: int, size: int) -> Any:
    """A variable of the file with its dimensions, which several may share."""
    shape = values.shape[1:]
    dims = [f"{name}_dim_{i}" for i in range(len(shape))] if dims is None else dims
    for dim, length in zip(dims, shape, strict=True):
        if dim not in group.dimensions:
            group.dimensions[dim] = length
    dtype = np.dtype("int8") if values.dtype == bool else values.dtype
    chunks = (1, min(size, num), *shape)
    return group.create_variable(name, ("chain", "draw", *dims), dtype=dtype, chunks=chunks)
