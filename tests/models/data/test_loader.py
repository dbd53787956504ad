"""The order of batches, resumed and shared between processes."""

from __future__ import annotations

import threading

import pytest
import torch

from models.data import BatchLoader


class Numbers:
    """A split of numbers, to see which rows a loader asks for."""

    def __init__(self, count: int, cached: bool) -> None:
        self.count, self.cached = count, cached

    def __len__(self) -> int:
        return self.count

    def batch(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.clone()

    def batch_labels(self, rows: torch.Tensor) -> torch.Tensor:
        return -rows


def rows_of(loader: BatchLoader) -> list[list[int]]:
    return [images.tolist() for images, _ in loader]


@pytest.mark.parametrize("cached", [True, False])
def test_loader_resumes_with_the_next_batch(cached: bool) -> None:
    whole = BatchLoader(Numbers(23, cached), 4, shuffle=True, seed=3)
    epochs = [rows_of(whole) for _ in range(3)]
    assert epochs[0] != epochs[1]
    assert len({row for batch in epochs[0] for row in batch}) == 20, "the last three do not fill a batch"
    first = BatchLoader(Numbers(23, cached), 4, shuffle=True, seed=3)
    rows_of(first)
    batches = iter(first)
    seen = [next(batches)[0].tolist() for _ in range(2)]
    state = first.state_dict()
    second = BatchLoader(Numbers(23, cached), 4, shuffle=True, seed=3)
    second.load_state_dict(state)
    assert seen + rows_of(second) == epochs[1]
    assert rows_of(second) == epochs[2]
    done = BatchLoader(Numbers(23, cached), 4, shuffle=True, seed=3)
    done.load_state_dict(whole.state_dict())
    assert rows_of(done) == rows_of(whole), "saved at the end of an epoch, it starts the next one"


def test_loader_shares_images_between_processes() -> None:
    parts = [rows_of(BatchLoader(Numbers(23, True), 3, shuffle=True, rank=r, world=2)) for r in range(2)]
    assert [len(part) for part in parts] == [3, 3]
    rows = [row for part in parts for batch in part for row in batch]
    assert len(set(rows)) == len(rows) == 18
    parts = [rows_of(BatchLoader(Numbers(23, True), 3, rank=r, world=2)) for r in range(2)]
    assert sorted(row for part in parts for batch in part for row in batch) == list(range(23))
    with pytest.raises(ValueError, match="for only 3 images; choose a smaller batch_size"):
        BatchLoader(Numbers(3, True), 2, shuffle=True, world=2)


class Watched(Numbers):
    """Tells which batches have been read."""

    def __init__(self, count: int) -> None:
        super().__init__(count, cached=False)
        self.read: list[threading.Event] = [threading.Event() for _ in range(count // 4)]

    def batch(self, rows: torch.Tensor) -> torch.Tensor:
        self.read[int(rows[0]) // 4].set()
        return super().batch(rows)


def test_two_batches_are_read_while_one_is_used() -> None:
    """They are there before they are asked for, so that training does not wait; no more than two."""
    split, before = Watched(20), set(threading.enumerate())
    batches = iter(BatchLoader(split, 4))
    for used in range(3):
        next(batches)
        assert all(done.wait(10) for done in split.read[: used + 3])
        assert not any(done.is_set() for done in split.read[used + 3 :])
    assert any(thread.name.startswith("batches") for thread in threading.enumerate())
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("batches")]
