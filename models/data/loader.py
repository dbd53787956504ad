"""Batches in a seeded order, resumable at any batch, split evenly over processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from vq_kernels.checks import check_integer

_AHEAD = 2  # batches that are read before they are asked for
Batch = tuple[Tensor, Tensor]  # images [B, C, H, W] uint8, labels [B] int64 (-1 for none)


class Split(Protocol):
    """What a loader reads: an ImageSplit or a CodeSplit; ``cached`` if reading a batch costs nothing."""

    @property
    def cached(self) -> bool: ...

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int] | Tensor) -> Any: ...

    def batch_labels(self, rows: Sequence[int] | Tensor) -> Tensor: ...


class BatchLoader:
    """Iterates over batches ``(split.batch(rows), split.batch_labels(rows))``; each iteration is one epoch.

    With 1,250 images of 8 x 8 and a ``batch_size`` of 64 an epoch without ``shuffle`` has 20 batches:
    ``[64, 1, 8, 8]`` images and ``[64]`` labels, 34 of each in the last one.

    The order of an epoch depends on (seed, epoch) alone. ``state_dict`` holds epoch and position, so
    that a loader restored in the middle of an epoch goes on with the next batch. With ``world`` processes
    process ``rank`` takes every world-th image and all take equally many; only with ``shuffle`` are the
    few that would make the last batch smaller left out. Of a split that is not ``cached`` the next two
    batches are read in a thread while one is used, so that training waits for none of them.

    pin: put what is read into pinned memory, from which a GPU copies while it computes.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        pin: bool = False,
    ) -> None:
        check_integer(1, batch_size=batch_size)
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self.rank, self.world, self.pin = rank, world, pin
        self.epoch, self.position = -1, 0
        self._resume = False
        if len(self) == 0:
            raise ValueError(
                f"batch_size is {batch_size} on each of {world} processes, for only {len(split)} images; "
                f"choose a smaller batch_size"
            )

    def __len__(self) -> int:
        """Batches in an epoch of this process."""
        if self.shuffle:
            return len(self.split) // self.world // self.batch_size
        return -(-len(self._order()) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        if not self._resume:
            self.epoch, self.position = self.epoch + 1, 0
        self._resume = False
        order = self._order()
        batches = [
            order[index * self.batch_size : (index + 1) * self.batch_size]
            for index in range(self.position, len(self))
        ]
        for batch in self._load(batches):
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position, from where :meth:`load_state_dict` goes on, and the number of processes."""
        return {"epoch": self.epoch, "position": self.position, "world": self.world}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the batch after the position in ``state``, in the same order."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._resume = self.position < len(self)

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.rank, len(self.split), self.world)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(len(self.split), generator=generator)[self.rank :: self.world]

    def _load(self, batches: list[Tensor]) -> Iterator[tuple[Any, Tensor]]:
        if self.split.cached:
            yield from (self._read(rows) for rows in batches)
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        ahead: deque[Future[tuple[Any, Tensor]]] = deque()
        try:
            for rows in batches:
                ahead.append(pool.submit(self._read, rows))
                if len(ahead) > _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, rows: Tensor) -> tuple[Any, Tensor]:
        batch, labels = self.split.batch(rows), self.split.batch_labels(rows)
        return (_pinned(batch), labels.pin_memory()) if self.pin else (batch, labels)


def _pinned(batch: Any) -> Any:
    """Images, or the codes of every level, in pinned memory."""
    return tuple(map(_pinned, batch)) if isinstance(batch, tuple) else batch.pin_memory()
