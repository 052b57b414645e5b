"""Rows of data that do not come all at once: arrays on disk, loaders, functions that make iterators."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vi_reparam.errors import ArgumentError
from vi_reparam.fit.shuffle import Permutation

Rows = tuple[np.ndarray, ...]
"""Arrays with a row for each element: a batch, or any other stretch of the source."""

BATCH_SIZE = 1_000
POOL = 8
"""Batches that are read together and shuffled, of arrays that are read by chunks."""


def batches(
    source: Any, *, num_rows: int | None = None, batch_size: int | None = None, plate: str | None = None
) -> Batches:
    """Data to fit batch by batch, in memory that does not grow with them: ``model.fit(vr.batches(source), ...)``.

    The model is written for a batch as it is for all data, ``plate("rows", len(x))``: the plate whose size is that of
    a batch is scaled to all rows.

    Args:
        source: one of

            - arrays with a row for each element: a tuple (the model's first arguments), a dict (its arguments by name)
              or a single one; in memory, memory-mapped (`numpy.memmap`), of zarr or h5py, or anything with a shape and
              slices. They are read in random order, those on disk chunk by chunk;
            - batches of such arrays: a PyTorch ``DataLoader``, a list, or a function that returns an iterator, called
              anew for each pass. They are read in their own order, which should be random;
            - an iterator of batches, whose first `num_rows` rows are the data. They come once, so they are written to
              files in the folder for temporary ones, and read from there.
        num_rows: how many rows there are in all; needed where the source does not tell.
        batch_size: rows of a step; 1,000 of arrays unless given, else those of the first batch. Other batches are cut
            and joined to this size.
        plate: the rows' plate; needed where another one has the same size as a batch.

    Returns:
        What `fit` takes in place of the arguments that hold rows.

    Raises:
        ArgumentError: for a source that is none of these, options that cannot be used, or an iterator that ends early.
    """
    return Batches(source, num_rows, batch_size, plate)


class Batches:
    """As `batches`.

    Attributes:
        names: of the arguments that a batch gives; None for positional ones.
        num_rows: in all.
        plate: the rows' plate; None to look for it.
    """

    def __init__(self, source: Any, num_rows: int | None, batch_size: int | None, plate: str | None) -> None:
        for name, value in (("num_rows", num_rows), ("batch_size", batch_size)):
            if value is not None and (isinstance(value, bool) or not hasattr(value, "__index__") or value < 1):
                raise ArgumentError(f"batches({name}={value!r}): expected a positive int")
        self.names: tuple[str, ...] | None = None
        self.plate = plate
        self._arrays: tuple[Any, ...] | None = None
        self._passes: Callable[[], Iterator[Any]] | None = None
        self._form: tuple[tuple[str, ...] | None, list[Any]] | None = None  # of a row of the first batch
        self._given = batch_size
        parts = None if isinstance(source, list) else _parts(source)
        if parts is not None and all(hasattr(x, "shape") and hasattr(x, "__getitem__") for x in parts[1]):
            self.names, self._arrays = parts[0], tuple(_in_memory(x) for x in parts[1])
            known = _num_rows(self._arrays)
        else:
            self._passes = _passes_of(source)
            known = _told(source)
        if num_rows is not None and self._arrays is not None and num_rows != known:
            raise ArgumentError(f"batches(num_rows={num_rows}): the arrays have {known} rows; leave it out")
        count = known if num_rows is None else num_rows
        if count is None:
            raise ArgumentError(
                f"batches({type(source).__name__}): give num_rows=, how many rows there are in all; it does not tell"
            )
        self.num_rows = int(count)
        self._ahead: Iterator[Rows] | None = None
        if hasattr(source, "__next__"):
            self._keep(source)

    def _keep(self, source: Any) -> None:
        """Write an iterator's rows to files, which are removed with this object, and map them into memory."""
        files: list[Any] = []
        count, rows = 0, ()
        try:
            folder = Path(tempfile.mkdtemp(prefix="vi_reparam_"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            with contextlib.ExitStack() as opened:
                while count < self.num_rows and (batch := next(source, None)) is not None:
                    rows = tuple(part[: self.num_rows - count] for part in self._rows(batch))
                    if any(part.dtype.hasobject for part in rows):
                        raise ArgumentError("a batch of the iterator holds Python objects: give arrays of numbers")
                    self._given = self._given or len(rows[0])
                    paths = [folder / str(i) for i in range(len(rows))]
                    files = files or [opened.enter_context(path.open("wb")) for path in paths]
                    for file, part in zip(files, rows, strict=True):
                        file.write(part.tobytes())
                    count += len(rows[0])
        except OSError as error:
            raise ArgumentError(
                f"cannot write the iterator's rows to {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a "
                "folder with room, or give a function that makes the iterator anew"
            ) from error
        if count < self.num_rows:
            raise ArgumentError(
                f"the iterator of batches ended after {count:,} rows, and num_rows is {self.num_rows:,}: give the "
                "number that it gives"
            )
        self._arrays = tuple(
            np.memmap(folder / str(i), part.dtype, "r", shape=(self.num_rows, *part.shape[1:]))
            for i, part in enumerate(rows)
        )

    @property
    def size(self) -> int:
        """Rows of a batch."""
        if self._given is None:
            self._given = BATCH_SIZE if self._arrays is not None else len(self.first()[0])
        return min(int(self._given), self.num_rows)

    def call(self, rows: Rows) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """These rows as arguments of the model."""
        return (rows, {}) if self.names is None else ((), dict(zip(self.names, rows, strict=True)))

    def rows_in(self, call: tuple[tuple[Any, ...], Mapping[str, Any]]) -> int:
        """How many rows arguments of the model hold."""
        args, kwargs = call
        return len(args[0] if self.names is None else kwargs[self.names[0]])

    def pilot(self, num: int) -> Rows:
        """So many rows or a few more, to start a fit from; as random as the source is. None is lost."""
        if self._arrays is None:
            return self.first(min(num, self.num_rows))
        rows, found = self.steps(0, 0), []
        while sum(len(part[0]) for part in found) < min(num, self.num_rows - self.size + 1):
            found.append(next(rows))
        return _joined(found)

    def steps(self, seed: int, first: int) -> Iterator[Rows]:
        """Batches of one size without end, from the step `first` on: each row once in a pass, in an order of its own.

        Raises:
            ArgumentError: for a source that ends too early, or whose rows are not as many as was said.
        """
        if self._arrays is None:
            return self._skipped(_cut(self._again(), self.size), first)
        if all(type(array) in (np.ndarray, np.memmap) for array in self._arrays):
            return self._picked(seed, first)
        return self._skipped(_cut(self._pooled(seed), self.size), first)

    def once(self) -> Iterator[Rows]:
        """All rows, in stretches of a batch's size, the last one shorter."""
        if self._arrays is not None:
            for start in range(0, self.num_rows, self.size):
                yield tuple(np.asarray(array[start : start + self.size]) for array in self._arrays)
            return
        yield from _cut(self._pass(), self.size, last=True)

    def _picked(self, seed: int, first: int) -> Iterator[Rows]:
        assert self._arrays is not None
        per_pass, numbers = self.num_rows // self.size, np.arange(self.size, dtype=np.int64)
        turn, step = divmod(first, per_pass)
        while True:
            order = Permutation(self.num_rows, (seed, turn))
            for number in range(step, per_pass):
                rows = np.sort(order(numbers + number * self.size))  # in the order of the file
                yield tuple(np.asarray(array[rows]) for array in self._arrays)
            turn, step = turn + 1, 0

    def _pooled(self, seed: int) -> Iterator[Rows]:
        """Chunks in random order, the rows of some of them shuffled at a time."""
        assert self._arrays is not None
        chunk = max(_chunk(array) for array in self._arrays) or self.size
        starts = np.arange(0, self.num_rows, chunk)
        together, turn = max(2, -(-POOL * self.size // chunk)), 0
        while True:
            rng = np.random.default_rng((seed, turn))
            order = rng.permutation(starts)
            for begin in range(0, len(order), together):
                pool = [[np.asarray(a[s : s + chunk]) for a in self._arrays] for s in order[begin : begin + together]]
                rows = _joined([tuple(part) for part in pool])
                mixed = rng.permutation(len(rows[0]))
                yield tuple(array[mixed] for array in rows)
            turn += 1

    def _again(self) -> Iterator[Rows]:
        """Pass after pass."""
        while True:
            count = 0
            for batch in self._pass():
                count += len(batch[0])
                yield batch
            if not 0 <= self.num_rows - count < max(self.size, 1):  # a loader may drop the last batch
                raise self._other_count(f"{count:,}")

    def _pass(self) -> Iterator[Rows]:
        assert self._passes is not None
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            yield from ahead
            return
        count = 0
        for batch in (self._rows(batch) for batch in self._passes()):
            count += len(batch[0])
            if count > self.num_rows:
                raise self._other_count(f"more than {self.num_rows:,}")
            yield batch

    def _other_count(self, given: str) -> ArgumentError:
        return ArgumentError(
            f"the source of batches gave {given} rows in one pass, and num_rows is {self.num_rows:,}: give the number "
            "that it gives"
        )

    def first(self, num: int = 1) -> Rows:
        """The first batches of a source of batches, so many rows or a few more; they are put back."""
        ahead, found = self._pass(), []
        while sum(len(part[0]) for part in found) < num and (rows := next(ahead, None)) is not None:
            found.append(rows)
        if not found:
            raise ArgumentError("the source of batches is empty: give one that has rows")
        self._ahead = itertools.chain(found, ahead)
        return _joined(found)

    def _rows(self, batch: Any) -> Rows:
        parts = _parts(batch)
        if parts is None:
            raise ArgumentError(
                f"a batch is a {type(batch).__name__}: expected an array, or a tuple, list or dict of arrays, "
                "with a row for each element"
            )
        names, given = parts
        if names is not None and self.names is not None and set(names) == set(self.names):  # a dict in another order
            names, given = self.names, tuple(batch[name] for name in self.names)
        rows = tuple(np.asarray(_in_memory(part)) for part in given)
        _num_rows(rows)
        form = names, [(x.shape[1:], x.dtype) for x in rows]
        if self._form is None:
            self.names, self._form = names, form
        own, (named, first) = form[1], self._form
        fit = len(own) == len(first) and all(
            shape == other and np.can_cast(dtype, kept, "same_kind")
            for (shape, dtype), (other, kept) in zip(own, first, strict=True)
        )
        if names != named or not fit:
            raise ArgumentError(
                f"a batch has rows {_described(form)[:100]}, and the first one had {_described(self._form)[:100]}: "
                "give batches of one form"
            )
        return tuple(x.astype(dtype, copy=False) for x, (_, dtype) in zip(rows, first, strict=True))

    def _skipped(self, rows: Iterator[Rows], num: int) -> Iterator[Rows]:
        for _ in range(num):
            next(rows)
        return rows


def _described(form: Any) -> str:
    """Names, shapes and types of a row's arrays."""
    names, arrays = form
    told = [f"{dtype} of shape {shape}" for shape, dtype in arrays]
    return ", ".join(told if names is None else [f"{n!r}: {text}" for n, text in zip(names, told, strict=True)])


def _parts(thing: Any) -> tuple[tuple[str, ...] | None, tuple[Any, ...]] | None:
    """Names and arrays of a tree of one level; None for what is none."""
    if isinstance(thing, dict):
        return (tuple(thing), tuple(thing.values())) if thing else None
    if isinstance(thing, tuple | list):
        return (None, tuple(thing)) if thing and all(hasattr(x, "shape") for x in thing) else None
    return (None, (thing,)) if hasattr(thing, "shape") else None


def _in_memory(array: Any) -> Any:
    """A framework's array as NumPy's; what is read from disk, a memory map included, stays."""
    if hasattr(array, "detach"):
        return array.detach().cpu().numpy()
    framework = type(array).__module__.partition(".")[0]
    return np.asarray(array) if framework in ("jax", "jaxlib", "pandas", "polars") else array


def _num_rows(arrays: tuple[Any, ...]) -> int:
    """Rows of arrays, checked."""
    counts = [int(array.shape[0]) if len(array.shape) else 0 for array in arrays]
    if not all(counts) or len(set(counts)) > 1:
        raise ArgumentError(
            f"the arrays of a batch have {str(counts)[:60]} rows: give as many rows of each, at least one; what has "
            "no rows goes to fit as an argument of its own"
        )
    return counts[0]


def _told(source: Any) -> int | None:
    """How many rows a loader says that it has."""
    try:
        return len(source.dataset)
    except (AttributeError, TypeError):
        return None


def _passes_of(source: Any) -> Callable[[], Iterator[Any]]:
    """What starts a pass over a source."""
    if hasattr(source, "__iter__") and not isinstance(source, dict | str | bytes):
        return lambda: iter(source)
    if callable(source):
        made: Callable[[], Any] = source
        return lambda: iter(made())
    raise ArgumentError(
        f"batches({type(source).__name__}): expected arrays, batches of arrays (a DataLoader, an iterator), or a "
        "function that returns an iterator of them"
    )


def _chunk(array: Any) -> int:
    """Rows that are read together; 0 where it is not known."""
    chunks = getattr(array, "chunks", None)
    return int(np.max(chunks[0])) if chunks else 0


def _joined(parts: list[Rows]) -> Rows:
    return tuple(np.concatenate(own) for own in zip(*parts, strict=True))


def _cut(rows: Iterator[Rows], size: int, *, last: bool = False) -> Iterator[Rows]:
    """Batches of one size from stretches of any; `last`: the rest too, which is shorter."""
    held: list[Rows] = []
    count = 0
    for part in rows:
        held.append(part)
        count += len(part[0])
        if count < size:
            continue
        whole = _joined(held) if len(held) > 1 else part
        for start in range(0, count - size + 1, size):
            yield tuple(array[start : start + size] for array in whole)
        count %= size
        held = [tuple(array[len(array) - count :] for array in whole)] if count else []
    if last and count:
        yield _joined(held)
