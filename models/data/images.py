"""One split of images, sounds or volumes: decoded, and cached as levels when it fits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from models.data.cache import Decoded, DecodedCache
from models.data.kinds import Kind, count_levels
from models.data.orientation import turned
from models.data.records import Encoded

if TYPE_CHECKING:
    from numpy.typing import NDArray

AT_ONCE = 2**20  # elements that are read together where all are


def some_rows(count: int, limit: int) -> Tensor:
    """``limit`` of ``count`` row numbers, ascending, drawn at random but always the same ones.

    The first rows would not do: folders of images are sorted by class.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:limit].sort().values


def _nothing(count: int) -> None:
    """Told of decoded items, do nothing."""


class ImageSplit:
    """``len(split)`` items, images for example; ``split.batch(rows)`` gives their levels ``[B, C, *S]``.

    ``split.labels`` is ``[N]`` or None. Of the digits ``load_data(DataConfig()).test.batch([0, 5])`` is
    ``[2, 1, 8, 8]`` uint8, and ``batch_labels([0, 5])`` the two digits, ``[2]`` int64.

    kind: the kind and form of the items.
    axis: images are mirrored to its positive side where it is set, see :mod:`models.data.orientation`.
    hashes: ``[N]``, of each item's file, see :func:`models.data.splits.content_hashes`.
    cache: decode all items now and keep them; else they are decoded batch by batch.
    store: keeps decoded items on disk, mapped into memory. Those that it has are not decoded again, even
        without ``cache``.
    check: without a cache, decode all items once, so that a bad one is found before training starts.
    on_decoded: called with the number of items each time some have been decoded for the cache or the check.
    """

    kind: Kind
    axis: Tensor | None = None

    def __init__(
        self,
        encoded: Encoded,
        labels: Tensor | None,
        kind: Kind,
        *,
        hashes: NDArray[np.bytes_],
        cache: bool,
        store: DecodedCache | None = None,
        check: bool = True,
        on_decoded: Callable[[int], object] | None = None,
    ) -> None:
        self.labels = labels
        self.hashes, self.kind = hashes, kind
        self._encoded = encoded
        self._decoded: Decoded | None = None
        self._histogram: Tensor | None = None
        if cache and store is not None:
            self._decoded = store.fill(hashes, self._decode, on_decoded or _nothing)
        elif cache:
            levels = np.empty((len(encoded), kind.channels, *kind.size), dtype=kind.array_dtype)
            for rows in encoded.chunks():
                levels[rows.start : rows.stop] = self._decode(rows)
                if on_decoded is not None:
                    on_decoded(len(rows))
            self._decoded = Decoded.of_array(levels)
        else:
            self._decoded = None if store is None else store.find(hashes)
            if check and self._decoded is None:
                self._check(on_decoded)

    @property
    def size(self) -> tuple[int, ...]:
        """S of every item."""
        return self.kind.size

    @property
    def channels(self) -> int:
        """C of every item."""
        return self.kind.channels

    @property
    def cached(self) -> bool:
        """Whether the decoded items are in memory."""
        return self._decoded is not None and self._decoded.in_memory

    def __len__(self) -> int:
        return len(self._encoded)

    def batch(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Items of the given rows: levels ``[B, C, *S]``, of images uint8."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        if self._decoded is not None:
            images = torch.from_numpy(self._decoded.take(index.numpy()))
        else:
            images = torch.from_numpy(self._decode(index.tolist()))
        return images if self.axis is None else turned(images, self.axis)

    def batch_labels(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Labels of the given rows, -1 where there are none: ``[B]`` int64."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return torch.full((len(index),), -1) if self.labels is None else self.labels[index]

    def _decode(self, rows: Iterable[int]) -> NDArray[np.integer]:
        items = self._encoded.map(self.kind.decode, list(rows))
        empty = np.empty((0, self.channels, *self.size), dtype=self.kind.array_dtype)
        return np.stack(items) if items else empty

    def digest(self) -> str:
        """Changes with every item, their order and their labels, and not with where the files lie."""
        labels = torch.empty(0, dtype=torch.int64) if self.labels is None else self.labels
        count = f"{len(self)} {self.kind.items}\n".encode()
        return hashlib.sha256(b"".join((count, self.hashes.tobytes(), labels.numpy().tobytes()))).hexdigest()

    def histogram(self, rows: Sequence[int] | None = None) -> Tensor:
        """How many elements have each level, in all items or in ``rows``: int64, ``[256]`` of images.

        Items are read a few at a time, so that memory does not grow with their number.
        """
        if rows is None and self._histogram is not None:
            return self._histogram
        counts = np.zeros(self.kind.levels, dtype=np.int64)
        chosen = range(len(self)) if rows is None else rows
        step = max(1, AT_ONCE // (self.channels * int(np.prod(self.size))))
        for start in range(0, len(chosen), step):
            counts += count_levels(self.batch(chosen[start : start + step]).numpy())
        return torch.from_numpy(counts)

    def _check(self, on_decoded: Callable[[int], object] | None) -> None:
        """Decode every item once and keep none but how often each level occurs."""

        def decode(encoded: bytes, name: str) -> NDArray[np.int64]:
            return count_levels(self.kind.decode(encoded, name))

        counts = np.zeros(self.kind.levels, dtype=np.int64)
        for rows in self._encoded.chunks():
            counts += sum(self._encoded.map(decode, rows))
            if on_decoded is not None:
                on_decoded(len(rows))
        self._histogram = torch.from_numpy(counts)
