"""Encoded items: reading their bytes, from where they may lie, and errors that name them."""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from models.data.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Record = dict[str, Any]  # {"path": str | None, "bytes": bytes | None}
Result = TypeVar("Result")


@dataclass(frozen=True)
class Table:
    """Where the rows of a split come from, for messages: ``name``, or ``files`` of parquet in their order."""

    name: str
    files: Sequence[Path] = ()

    def row(self, number: int, item: str) -> str:
        """What to call the ``item`` in a row, counted from 0 over all files."""
        ends, place = self._ends, self.name
        file = bisect.bisect_right(ends, number)
        if file < len(ends):
            place, number = str(self.files[file]), number - (ends[file - 1] if file else 0)
        return f"the {item} in row {number} of {place} (the first is row 0)"

    @cached_property
    def _ends(self) -> list[int]:
        """How many rows there are up to the end of each file; none where that cannot be told."""
        import pyarrow.parquet as pq

        try:
            return list(itertools.accumulate(pq.read_metadata(file).num_rows for file in self.files))
        except (OSError, ValueError):
            return []


class Encoded:
    """The encoded items of one column of a split.

    item: what one of them is called. at_once: how many are read together. roots: folders in one of which a
    file that a record names must lie once links are resolved, as in a table that may come from anywhere; a
    path that is not absolute begins at the first. None where the files were found by looking. table: whence
    the rows are. origin: of each row its number there, by default its own.
    """

    def __init__(
        self,
        dataset: Dataset,
        column: str,
        item: str,
        at_once: int,
        roots: Sequence[Path] | None,
        table: Table,
        origin: Sequence[int] | None = None,
    ) -> None:
        self.table, self._origin = table, range(len(dataset)) if origin is None else origin
        self.item, self.at_once, self._roots = item, at_once, roots
        self._column = column
        self._dtype = _dtype_of(dataset.features[column])
        self._dataset = dataset.select_columns([column]).with_format("numpy" if self._dtype else None)

    def __len__(self) -> int:
        return len(self._dataset)

    def select(self, rows: Sequence[int]) -> Encoded:
        """The items of some rows, in their order."""
        origin = [self._origin[row] for row in rows]
        chosen = self._dataset.select(rows)
        return Encoded(chosen, self._column, self.item, self.at_once, self._roots, self.table, origin)

    def row_name(self, row: int) -> str:
        """What to call the item in a row, by its place in the data before they were split."""
        return self.table.row(self._origin[row], self.item)

    def map(self, function: Callable[[bytes, str], Result], rows: Sequence[int]) -> list[Result]:
        """``function`` of the bytes of each of ``rows`` and of what to call it in a message, by threads.

        DataError for an item that cannot be read.
        """
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda *item: function(*self._read(*item)), self._records(rows), rows))

    def chunks(self) -> Iterator[range]:
        """All rows in order, as many at a time as are read together."""
        for start in range(0, len(self), self.at_once):
            yield range(start, min(start + self.at_once, len(self)))

    def _records(self, rows: Sequence[int]) -> list[Record | None]:
        values: Any = self._dataset[list(rows)][self._column]
        if self._dtype is None:
            return list(values)
        column = self._dataset.with_format("arrow")[list(rows)][self._column]
        is_null = column.is_null().to_pylist()
        return [
            None if null else self._as_file(value, row)
            for value, null, row in zip(values, is_null, rows, strict=True)
        ]

    def _as_file(self, array: Any, row: int) -> Record:
        """An array of the table as the bytes of a ``.npy`` file."""
        file = io.BytesIO()
        with naming(self.row_name(row), self.item, "store it as an array of equal rows"):
            np.save(file, np.asarray(array).astype(self._dtype), allow_pickle=False)
        return {"path": None, "bytes": file.getvalue()}

    def _read(self, record: Record | None, row: int) -> tuple[bytes, str]:
        if record is None or (record["bytes"] is None and record["path"] is None):
            raise DataError(f"{self.row_name(row)} is missing (null); remove that row from the data")
        if record["bytes"] is not None:
            return record["bytes"], self.row_name(row)
        name, path = str(record["path"]), Path(record["path"])
        if self._roots is not None:
            path = (self._roots[0] / path).resolve()
            if not any(path.is_relative_to(root.resolve()) for root in self._roots):
                raise DataError(
                    f"{self.row_name(row)} is in the file {record['path']}, which lies outside "
                    f"{self._roots[0]}; put it inside, or store the bytes of each {self.item} in the table"
                )
        if path.exists() and not path.is_file():  # devices have no end
            raise DataError(f"{record['path']} is no regular file; replace or remove it")
        with naming(name, self.item):
            return path.read_bytes(), name


def _dtype_of(feature: Any) -> str | None:
    """The dtype of the numbers in a column of arrays or of lists of lists; None for other columns."""
    import datasets

    if isinstance(feature, datasets.Array3D):
        return str(feature.dtype)
    while isinstance(feature, datasets.List):
        feature = feature.feature
    return str(feature.dtype) if isinstance(feature, datasets.Value) else None


@contextlib.contextmanager
def naming(name: str, item: str, remedy: str = "replace or remove it") -> Iterator[None]:
    """Whatever a decoder raises inside becomes a DataError with the file, the reason and the remedy.

    Damaged and hostile files make decoders raise anything: struct.error, KeyError, MemoryError and errors
    of their own, Pillow's DecompressionBombError for enormous dimensions among them. What is a DataError
    already stays as it is.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # Pillow would name the buffer in memory that it was given, and so does soundfile.
        is_unknown = type(error).__name__ == "UnidentifiedImageError"
        text = str(getattr(error, "error_string", error))
        reason = ("no known format" if is_unknown else text) or type(error).__name__
        article = "an" if item[0] in "aeiou" else "a"
        raise DataError(f"{name} cannot be read as {article} {item} ({reason}); {remedy}") from error
