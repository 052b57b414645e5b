"""Draws written to a file as they are made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vi_reparam.errors import ArgumentError, first_line, short
from vi_reparam.posterior.inference_data import dims_of, safe_name
from vi_reparam.posterior.sites import Site

GROUP = "predictions"
Make = Callable[[str, np.ndarray, list[str]], Any]
"""Makes a variable of all draws, by its name, its first values and the names of their dimensions."""


def write(
    path: Path, sites: Mapping[str, Site], chunks: Iterable[Mapping[str, np.ndarray]], num: int, size: int
) -> Path:
    """Writes draws to a group of a netCDF file, or of a zarr store (``.zarr``), part after part.

    Args:
        sites: the form of each variable.
        chunks: the draws, by site, in their order; `num`: how many in all.
        size: of a chunk: the file's own chunks have it too.

    Raises:
        ArgumentError: the file cannot be written, or zarr is missing.
    """
    kind = _to_zarr if path.suffix == ".zarr" else _to_netcdf
    try:
        return kind(path, chunks, dims_of(sites), num, size)
    except OSError as error:
        why = (error.strerror or first_line(error))[:80]
        text = f"cannot write {short(str(path), 90)}: {why}; give a {path.suffix[:9] or '.nc'} in a folder that exists"
        raise ArgumentError(text) from error


def _to_netcdf(path: Path, chunks: Any, named: Mapping[str, list[str]], num: int, size: int) -> Path:
    import h5netcdf

    with h5netcdf.File(path, "w") as file:
        group: Any = file.create_group(GROUP)
        group.dimensions["chain"], group.dimensions["draw"] = 1, num

        def make(name: str, values: np.ndarray, dims: list[str]) -> Any:
            for dim, length in zip(dims, values.shape[1:], strict=True):
                if dim not in group.dimensions:  # several variables may share it
                    group.dimensions[dim] = length
            shape = (1, min(size, num), *values.shape[1:])
            return group.create_variable(name, ("chain", "draw", *dims), dtype=values.dtype, chunks=shape)

        _fill(chunks, named, make)
    return path


def _to_zarr(path: Path, chunks: Any, named: Mapping[str, list[str]], num: int, size: int) -> Path:
    try:
        import zarr  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ArgumentError(f"{path} asks for zarr: pip install 'zarr>=3', or give a .nc file") from None
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "no such folder", str(path.parent))
    if (path / "zarr.json").is_file():
        shutil.rmtree(path)
    elif path.exists():
        raise FileExistsError(17, "it is there, and no zarr store", str(path))
    root: Any = zarr.open_group(path, mode="w-")
    group = root.create_group(GROUP)

    def make(name: str, values: np.ndarray, dims: list[str]) -> Any:
        shape, part = (1, num, *values.shape[1:]), (1, min(size, num), *(max(n, 1) for n in values.shape[1:]))
        names = ("chain", "draw", *dims)
        return group.create_array(name, shape=shape, chunks=part, dtype=values.dtype, dimension_names=names)

    _fill(chunks, named, make)
    return path


def _fill(chunks: Iterable[Mapping[str, np.ndarray]], named: Mapping[str, list[str]], make: Make) -> None:
    """Write the draws into variables that are made at their first values."""
    first, made = 0, {}
    for rows in chunks:
        for name, values in rows.items():
            values = np.asarray(values).astype("int8") if values.dtype == bool else np.asarray(values)
            if name not in made:
                own = safe_name(name)
                dims = named.get(own) or [f"{own}_dim_{i}" for i in range(values.ndim - 1)]
                made[name] = make(own, values, dims)
            made[name][0, first : first + len(values)] = values
        first += len(next(iter(rows.values()), ()))
