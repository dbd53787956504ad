"""Decoded data on disk, mapped into memory: what one run has decoded, no later one decodes again.

A :class:`DecodedCache` is a folder for one form of one data set: its size, its channels, how it was decoded.
It finds an array by the hash of the file that it was decoded from, so that splits, limits and studies share
it and a file that has changed is decoded anew. What is missing is decoded once and added as a file of its
own; the folder may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.files import only_writer, write_whole

WORTH_KEEPING = 2**24  # bytes; what is smaller is decoded in a moment
_AT_ONCE = 1024  # items that are decoded before they are written
_INDEX = ".index.npy"

Decode = Callable[[Sequence[int]], NDArray[Any]]


@dataclass(frozen=True)
class Decoded:
    """Items of one shape in several arrays: item ``i`` is ``arrays[array_of[i]][row_of[i]]``.

    in_memory: whether reading one never waits for the disk.
    """

    arrays: tuple[NDArray[Any], ...]
    array_of: NDArray[np.int64]
    row_of: NDArray[np.int64]
    in_memory: bool

    @classmethod
    def of_array(cls, array: NDArray[Any]) -> Decoded:
        """The items of one array in memory."""
        return cls((array,), np.zeros(len(array), np.int64), np.arange(len(array)), True)

    def __len__(self) -> int:
        return len(self.row_of)

    def take(self, items: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """A copy of the items with the given numbers: ``[B, *shape]``."""
        chosen = np.asarray(items, dtype=np.int64)
        first = self.arrays[0]
        if len(self.arrays) == 1:
            return np.asarray(first[self.row_of[chosen]])
        taken = np.empty((len(chosen), *first.shape[1:]), first.dtype)
        for number, array in enumerate(self.arrays):
            here = self.array_of[chosen] == number
            taken[here] = array[self.row_of[chosen[here]]]
        return taken


class DecodedCache:
    """The decoded items of one form in a folder of its own below ``root``.

    form: what tells these items from others, as values for JSON; ``form.json`` in the folder holds it. shape,
    dtype: of one item.
    """

    def __init__(self, root: Path, form: Mapping[str, Any], shape: Sequence[int], dtype: Any) -> None:
        described = dict(form) | {"shape": list(shape), "dtype": np.dtype(dtype).name}
        self._form = json.dumps(described, indent=2, sort_keys=True) + "\n"
        self.folder = root / hashlib.sha256(self._form.encode()).hexdigest()[:20]
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)

    def find(self, hashes: NDArray[np.bytes_]) -> Decoded | None:
        """The items decoded from the files with these ``hashes``, ``[N]``; None unless all are there."""
        decoded, missing = self._look_up(hashes)
        return None if len(missing) else decoded

    def fill(
        self,
        hashes: NDArray[np.bytes_],
        decode: Decode,
        on_decoded: Callable[[int], object] = lambda count: None,
    ) -> Decoded:
        """:meth:`find`, after what is missing has been decoded and added.

        decode: gives the items of some rows of ``hashes`` as ``[n, *shape]``. on_decoded: is called with the
        number of rows that are ready. Of several processes one decodes while the others wait. Where nothing
        can be written all is decoded into memory, and a line on standard error says so.
        """
        decoded, missing = self._look_up(hashes)
        if not len(missing):
            on_decoded(len(hashes))
            return decoded
        try:
            with only_writer(self.folder, wait=True):
                decoded, missing = self._look_up(hashes)
                on_decoded(len(hashes) - len(missing))
                if len(missing):
                    self._add(hashes[missing], missing, decode, on_decoded)
                    decoded, _ = self._look_up(hashes)
            return decoded
        except OSError as error:
            print(
                f"{self.folder} cannot be written ({error.strerror or error}); decoded data stay in memory",
                file=sys.stderr,
                flush=True,
            )
            rows = [
                range(start, min(start + _AT_ONCE, len(hashes))) for start in range(0, len(hashes), _AT_ONCE)
            ]
            return Decoded.of_array(np.concatenate([decode(part) for part in rows]))

    def _look_up(self, hashes: NDArray[np.bytes_]) -> tuple[Decoded, NDArray[np.int64]]:
        """What is there, and the rows, each file once, that are not."""
        arrays, indices = [], []
        for file in sorted(self.folder.glob("*" + _INDEX)):
            index = np.load(file)
            array = self._map(file.with_name(file.name.removesuffix(_INDEX) + ".npy"), len(index))
            if array is not None:
                arrays.append(array)
                indices.append(index)
        stored = np.concatenate([np.empty(0, hashes.dtype), *indices])
        array_of = np.repeat(np.arange(len(arrays)), [len(index) for index in indices])
        row_of = np.concatenate([np.empty(0, np.int64), *(np.arange(len(index)) for index in indices)])
        order = np.argsort(stored, kind="stable")
        place = np.searchsorted(stored[order], hashes)
        place = order[np.minimum(place, len(order) - 1)] if len(order) else np.zeros(len(hashes), np.int64)
        is_there = stored[place] == hashes if len(order) else np.zeros(len(hashes), dtype=bool)
        absent = np.flatnonzero(~is_there)
        _, first = np.unique(hashes[absent], return_index=True)
        missing = absent[np.sort(first)]
        if len(missing):
            return Decoded.of_array(np.empty((0, *self.shape), self.dtype)), missing
        return Decoded(tuple(arrays), array_of[place], row_of[place], in_memory=False), missing

    def _map(self, file: Path, items: int) -> NDArray[Any] | None:
        """A file of the cache; None for one that is damaged, whose items are then decoded again."""
        try:
            array: NDArray[Any] = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError):  # as numpy has it
            return None
        return array if array.shape == (items, *self.shape) and array.dtype == self.dtype else None

    def _add(
        self,
        hashes: NDArray[np.bytes_],
        rows: NDArray[np.int64],
        decode: Decode,
        on_decoded: Callable[[int], object],
    ) -> None:
        """Write the items of ``rows``, and then their hashes, without which nobody takes the file for one."""
        write_whole(self.folder / "form.json", self._form)
        file = self.folder / f"{uuid.uuid4().hex}.npy"
        unfinished = file.with_suffix(".unfinished")
        try:
            with open(unfinished, "wb") as handle:  # by a map a full disk would end the process
                descr = np.lib.format.dtype_to_descr(self.dtype)
                header = {"descr": descr, "fortran_order": False, "shape": (len(rows), *self.shape)}
                np.lib.format.write_array_header_2_0(handle, header)
                for start in range(0, len(rows), _AT_ONCE):
                    part = rows[start : start + _AT_ONCE]
                    handle.write(np.ascontiguousarray(decode(part.tolist()), self.dtype).tobytes())
                    on_decoded(len(part))
            os.replace(unfinished, file)
            index = file.with_name(file.stem + _INDEX)
            with open(unfinished, "wb") as handle:
                np.save(handle, hashes)
            os.replace(unfinished, index)
        finally:
            unfinished.unlink(missing_ok=True)
