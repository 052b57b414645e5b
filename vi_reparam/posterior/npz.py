"""Files of plain arrays: written whole or not at all, and read without trust."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

FREE, TIMES = 100_000_000, 20
"""Bytes to which any file may expand, and how often its own size a larger one may."""


def write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to a file, which appears under its name when it is whole."""
    path = Path(os.path.realpath(path))  # a link stays one
    with partial(path) as (file, name):
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.replace(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def partial(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside `path`, and its name, which no other process or thread has."""
    name = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with name.open("xb") as file:
            yield file, name
    except BaseException:
        with contextlib.suppress(OSError):
            name.unlink()
        raise


def read(path: Path, only: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file, of which nothing is believed: no code is run, and it expands to no more than it may.

    Args:
        only: the one array to read.

    Raises:
        OSError: for a file that cannot be opened.
        ValueError: for one that is damaged, or no file of arrays.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe, which would wait for ever
            raise ValueError("it is no regular file")
        with path.open("rb") as stream, zipfile.ZipFile(stream) as file:
            members = [info for info in file.infolist() if only is None or info.filename == f"{only}.npy"]
            if len({info.filename for info in members}) != len(members):
                raise ValueError("two of its members have one name")
            size, whole = os.fstat(stream.fileno()).st_size, sum(info.file_size for info in members)
            if whole > max(FREE, TIMES * size):
                raise ValueError(f"its {size:,} bytes would expand to {whole:,}")
            return {info.filename.removesuffix(".npy"): _array(file.read(info), info) for info in members}
    except (OSError, ValueError):
        raise
    except Exception as error:  # damage shows in many ways
        raise ValueError(str(error) or type(error).__name__) from error


def digest(arrays: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Equal for equal arrays of equal names, and equal texts about them."""
    plain = {name: value for name, value in about.items() if name != "digest"}
    found = hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.shape} {array.itemsize}".encode())  # a file has no bfloat16, but its bytes
        found.update(array.tobytes())
    return found.hexdigest()


def _array(content: bytes, info: zipfile.ZipInfo) -> np.ndarray:
    """One member, if it holds as many numbers as it says."""
    if not info.filename.endswith(".npy"):
        raise ValueError(f"its member {info.filename!r} is no array")
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its member {info.filename!r} is of a kind that is not known")
    shape, fortran, dtype = readers[version](stream)
    start = stream.tell()
    if dtype.hasobject:
        raise ValueError(f"its member {info.filename!r} holds objects")
    if math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(f"its member {info.filename!r} is not of the size that it says")
    if not dtype.itemsize:
        return np.zeros(shape, dtype)
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if fortran else "C").copy(order="K")
